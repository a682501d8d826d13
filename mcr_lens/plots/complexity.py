"""Do heads sink more, or less, on prompts that are harder?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._optional import require
from mcr_lens.complexity import layer_scores, read_complexity
from mcr_lens.plots.panels import HEIGHT, Legend, Line, Panel, draw
from mcr_lens.plots.theme import AXIS, GREY, faded, make_room, panel_title, plain, series_color, shortened
from mcr_lens.ranks import correlate
from mcr_lens.reading import number, subject

if TYPE_CHECKING:
    import plotly.graph_objects as go

RESAMPLES = 1000
"""Resamples per layer: enough for an interval that is looked at, and quick for models of many layers."""

GAP = 0.13
"""Room between two panels side by side, as a share of the width: tick labels, on a telephone."""

LEAST_SPAN = 0.1
"""An axis of sink scores spans at least so much, so that noise does not fill it."""


def plot_complexity(ds: xr.Dataset, complexity: Any = None, *, dark: bool = False) -> "go.Figure":
    """Draw how sink scores go with the complexity of the prompts: three layers, and ρ in every layer.

    Above, a point per prompt in an early, a middle and a late layer: complexity and sink score, averaged
    over heads. Below, by block, Spearman's ρ of the two with its 95 % interval over resampled prompts
    (`bootstrap`, each layer by itself). ρ is Pearson's correlation of the ranks, ties ranked by their mean.

    Sink scores fall with the number of queries, and losses with the context: among prompts of different
    lengths a correlation may be that of length, and the subtitle says so. Correlate with "n_tokens" to see,
    or read `complexity_response`, which takes the length out.

    Args:
        ds: what `measure`, `load` or `condition` returns.
        complexity: one number per prompt: the name of a variable or coordinate such as "n_tokens", an array,
            or None for `next_token_loss`, in nats per token.
        dark: light on dark.

    Raises:
        ResultSchemaError: not a result, several conditions, or no `sink_score`.
        ValueError: fewer than five prompts, no complexity, or one that is not a finite number for every
            prompt, or the same for all of them.
        ImportError: plotly is not installed.

    Source: arXiv 2510.06477, Fig. 5 (reconstruction: protocol not found; complexity, averaging and
    correlation are this library's).
    """
    values, label, units = read_complexity(ds, complexity)
    held = xr.DataArray(layer_scores(ds), dims=("prompt", "layer"), coords={"layer": ds.layer.values})
    scores = held.reindex(layer=np.arange(ds.attrs["n_layers"])).values  # a gap where a layer is left out
    found = [correlate(values, column, resamples=RESAMPLES) for column in scores.T]
    rho, low, high = (np.array(part) for part in zip(*found, strict=True))
    return _draw(ds, values, scores, (rho, low, high), (label, units), dark=dark)


def _draw(
    ds: xr.Dataset,
    values: np.ndarray,
    scores: np.ndarray,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    axis: tuple[str, str],
    *,
    dark: bool,
) -> "go.Figure":
    n_layers = int(ds.attrs["n_layers"])
    name = "Spearman's ρ"
    line = Line(name, *found, by_block=True, n_layers=n_layers, color=GREY)
    fig = draw(
        [Panel("Rank correlation of the two, by block", name, (line,), least=(-1.0, 1.0))],
        Legend(((name, GREY, "solid"),), bare="", band="95 % interval, each block by itself"),
        title=str(ds.attrs.get("model", "model")),
        subtitle=_about(ds),
        relative=False,
        dark=dark,
    )
    fig.update_layout(hovermode="closest")
    fig.update_traces(fillcolor=faded(GREY, 0.22), selector={"fill": "tonexty"})
    fig.update_yaxes(dtick=0.5)
    fig.add_hline(y=0, line={"color": GREY, "width": 1}, layer="below")
    there = ds.layer.values.tolist()
    chosen = list(dict.fromkeys(there[int(share * len(there))] for share in (1 / 6, 1 / 2, 5 / 6)))
    _add_scatters(fig, values, scores, found[0], chosen, axis, subject(ds))
    return fig


def _add_scatters(
    fig: Any, values: np.ndarray, scores: np.ndarray, rho: np.ndarray, chosen: Sequence[int],
    axis: tuple[str, str], name: str,
) -> None:  # fmt: skip
    """A point per prompt for some layers, side by side above the correlations, where they are marked too."""
    go = require("plotly.graph_objects", extra="plots")
    label, units = axis
    words = label.split(",")[0] + ("" if units == "1" else f" ({units})")
    pixels = HEIGHT + AXIS + 64
    bottom, top = make_room(fig, pixels, above=True)
    low = bottom + (top - bottom) * (AXIS + 30) / pixels
    width = (1 - GAP * (len(chosen) - 1)) / len(chosen)
    for place, layer in enumerate(chosen):
        n, left, color = place + 2, place * (width + GAP), series_color(place)
        fig.add_trace(
            go.Scatter(
                x=values, y=scores[:, layer], mode="markers", xaxis=f"x{n}", yaxis=f"y{n}", showlegend=False,
                marker={"color": color, "size": 7, "opacity": 0.75}, customdata=np.arange(len(values)),
                hovertemplate="prompt %{customdata}: complexity %{x:.4~g}, sink score %{y:.4~g}"
                "<extra></extra>",
            )
        )  # fmt: skip
        fig.add_trace(
            go.Scatter(
                x=[layer + 0.5], y=[rho[layer]], mode="markers", hoverinfo="skip", showlegend=False,
                marker={"color": color, "size": 10}, xaxis="x", yaxis="y",
            )
        )  # fmt: skip
        text = f"block {layer}<br>ρ {number(float(rho[layer]), -2).replace('-', '−')}"
        panel_title(fig, text, x=left, y=top, left=16)
        fig.update_layout({
            f"xaxis{n}": {"domain": [left, left + width], "anchor": f"y{n}", "nticks": 4, "matches": "x2",
                          "tickfont_size": 11},
            f"yaxis{n}": {"domain": [low, top], "anchor": f"x{n}", "nticks": 5, "tickfont_size": 11,
                          "range": _span(scores[:, layer])},
        })  # fmt: skip
    fig.update_layout(yaxis2_title={"text": f"attention to {plain(name)}", "font_size": 12.5, "standoff": 6})
    fig.add_annotation(
        text=shortened(words, 48),
        x=0.5,
        xref="paper",
        y=low,
        yref="paper",
        yanchor="top",
        yshift=-24,
        showarrow=False,
        font={"size": 13},
    )


def _span(scores: np.ndarray) -> list[float]:
    known = scores[np.isfinite(scores)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    half = max(1.15 * (high - low), LEAST_SPAN) / 2
    return [(low + high) / 2 - half, (low + high) / 2 + half]


def _about(ds: xr.Dataset) -> str:
    """How many prompts, and whether their lengths could be what is seen."""
    lengths = sorted(set(ds.n_tokens.values.tolist()))
    text = f"{ds.sizes['prompt']} prompts of {lengths[0]}"
    if len(lengths) == 1:
        return f"{text} tokens"
    return f"{text} to {lengths[-1]} tokens: length alone moves sink scores"
