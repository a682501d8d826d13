"""How many heads are sinks at every threshold at once, block by block, and how many would be by chance?"""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens._optional import require
from mcr_lens.plots.series import mean_and_interval
from mcr_lens.plots.theme import BAR, BY_BLOCK, GREY, color_bar, depth_ticks, faded, frame
from mcr_lens.reading import SINK_THRESHOLD, subject
from mcr_lens.sink_curves import sink_curve, uniform_sink_score

if TYPE_CHECKING:
    import plotly.graph_objects as go

HEIGHT = 380
"""Pixels of the inside of the figure."""

MEAN = "#009E73"
"""Colour of the mean over blocks, which the scale of the blocks does not hold."""

KEYS = {
    "strongest_sink_score": "the most attended key",
    "early_sink_score": "the top key of the first half",
}
"""To which key the other scores look."""


def plot_sink_curves(ds: xr.Dataset, *, variable: str = "sink_score", dark: bool = False) -> "go.Figure":
    """Draw the sink rate against its threshold τ: one line per block, their mean, and uniform heads.

    A line is the share of the heads of a block whose score reaches τ, mean over prompts (`sink_curve`). The
    band is the 95 % interval over prompts of the mean over blocks. The dashed line is the rate of heads that
    look at all keys alike (`uniform_sink_rate`), mean over prompts and blocks: sinks are what lies above
    and to the right of it. It is known for "sink_score" only, where `sink_queries` was measured.

    Args:
        ds: what `measure`, `load` or `condition` returns.
        variable: "sink_score" (BOS), "strongest_sink_score" (any key) or "early_sink_score".
        dark: light on dark.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or the score was not measured.
        ValueError: another variable, or a score without a single number.
        ImportError: plotly is not installed.

    Source: this library, after arXiv 2510.06477 and arXiv 2604.11791, eq. 17.
    """
    go = require("plotly.graph_objects", extra="plots")
    curve = sink_curve(ds, variable=variable)
    taus, blocks = curve.threshold.values, curve.layer.values
    if not curve.notnull().any():
        raise ValueError(f"{as_shown(variable)} holds no number, so it has no curve; measure longer prompts")
    each = mean_and_interval(curve)[0]
    mean, low, high = mean_and_interval(curve.mean("layer"))
    fig = go.Figure()
    for number, block in enumerate(blocks):
        fig.add_trace(_block(taus, each[:, number], int(block), blocks))
    _add_mean(fig, taus, (mean, low, high))
    names = [trace.name for trace in fig.data if trace.showlegend]
    fig.add_trace(_floor(ds, variable, taus))
    names.append(fig.data[-1].name)
    fig.add_vline(x=SINK_THRESHOLD, line={"color": GREY, "width": 1, "dash": "dot"})
    fig.add_annotation(
        x=SINK_THRESHOLD, y=1, yref="paper", text=f"τ = {SINK_THRESHOLD:g}", showarrow=False,
        xanchor="left", yanchor="bottom", font_size=12,
    )  # fmt: skip
    if len(blocks) > 1:
        fig.add_trace(_bar(blocks))
    key = KEYS.get(variable, subject(ds))
    many = ds.sizes["prompt"]
    frame(
        fig, title=str(ds.attrs.get("model", "model")),
        subtitle=f"share of heads whose mean attention to {key} is at least τ, "
        f"{many} prompt{'' if many == 1 else 's'}",
        inner=HEIGHT, above=8, right=BAR if len(blocks) > 1 else 16, legend=names, dark=dark,
    )  # fmt: skip
    fig.update_xaxes(title={"text": "threshold τ"}, range=[-0.01, 1.01], dtick=0.2)
    fig.update_yaxes(title={"text": "share of heads"}, range=[-0.02, 1.03], dtick=0.2)
    return fig


def _block(taus: np.ndarray, rate: np.ndarray, block: int, blocks: np.ndarray) -> Any:
    go = require("plotly.graph_objects", extra="plots")
    sample = require("plotly.colors", extra="plots").sample_colorscale
    first, last = int(blocks.min()), int(blocks.max())
    place = (block - first) / (last - first) if last > first else 0.0
    color = sample([list(stop) for stop in BY_BLOCK], place)[0]
    return go.Scatter(
        x=taus, y=rate, mode="lines", line={"color": color, "width": 1.3}, opacity=0.85, showlegend=False,
        hovertemplate=f"block {block}, τ = %{{x:.2f}}<br><b>%{{y:.3~f}}</b> of the heads<extra></extra>",
    )  # fmt: skip


def _add_mean(fig: Any, taus: np.ndarray, line: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    go = require("plotly.graph_objects", extra="plots")
    mean, low, high = line
    banded = bool(np.isfinite(low).any())
    name = "mean over blocks" + (", with 95 % interval" if banded else "")
    if banded:
        edge = {"x": taus, "mode": "lines", "line_width": 0, "hoverinfo": "skip", "legendgroup": "mean"}
        fig.add_trace(go.Scatter(y=low, showlegend=False, **edge))
        fig.add_trace(
            go.Scatter(y=high, fill="tonexty", fillcolor=faded(MEAN, 0.3), showlegend=False, **edge)
        )
    between = " (%{customdata[0]:.3~f} to %{customdata[1]:.3~f})" if banded else ""
    fig.add_trace(
        go.Scatter(
            x=taus,
            y=mean,
            mode="lines",
            line={"color": MEAN, "width": 4},
            name=name,
            legendgroup="mean",
            showlegend=True,
            customdata=np.stack([low, high], 1),
            hovertemplate=f"mean over blocks, τ = %{{x:.2f}}<br><b>%{{y:.3~f}}</b>{between}<extra></extra>",
        )
    )


def _floor(ds: xr.Dataset, variable: str, taus: np.ndarray) -> Any:
    """Rate of uniform heads at every threshold, mean over prompts and blocks, or why it is not known."""
    go = require("plotly.graph_objects", extra="plots")
    name, rate = "uniform heads", np.full(len(taus), np.nan)
    if variable != "sink_score":
        name = "uniform heads: known for sink_score only"
    elif "sink_queries" not in ds:
        name = "uniform heads: sink_queries not measured"
    else:
        score = uniform_sink_score(ds).values
        score = score[np.isfinite(score)]
        if score.size:
            rate = (score[:, None] >= taus).mean(0)
        else:
            name = "uniform heads: not known with this window"
    return go.Scatter(
        x=taus, y=rate, mode="lines", line={"color": GREY, "width": 2, "dash": "dash", "shape": "hv"},
        name=name, legendgroup="uniform", showlegend=True,
        hovertemplate="uniform heads, τ = %{x:.2f}<br><b>%{y:.3~f}</b><extra></extra>",
    )  # fmt: skip


def _bar(blocks: np.ndarray) -> Any:
    """The colour bar, which plotly hangs on markers only."""
    go = require("plotly.graph_objects", extra="plots")
    first, last = int(blocks.min()), int(blocks.max())
    marker = {
        "color": [first], "cmin": first, "cmax": last, "size": 0.1, "showscale": True,
        "colorscale": [list(stop) for stop in BY_BLOCK],
        "colorbar": color_bar((0, 1), "block", dtick=depth_ticks(last - first)),
    }  # fmt: skip
    return go.Scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip")
