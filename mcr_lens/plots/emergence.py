"""How do spike, valley and sinks grow while a model trains?"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._optional import require
from mcr_lens.growth import EVENTS, steps_to_stay
from mcr_lens.plots.panels import HEIGHT, MARKED, Legend, Line, Panel, add_legend, dress_y
from mcr_lens.plots.series import BAND, mean_and_interval
from mcr_lens.plots.theme import GREY, faded, frame, panel_title, plain, series_color, wrapped
from mcr_lens.reading import MASSIVE_RATIO, SINK_LAYER, SINK_THRESHOLD, VALLEY, sink_rates, subject
from mcr_lens.summaries import normalized_entropy
from mcr_lens.training_steps import require_steps

if TYPE_CHECKING:
    import plotly.graph_objects as go

DECADES = 100
"""The last step over the first after 0 from which on the axis is logarithmic."""

MEAN = "averaged over all layers"

MARK = "from here to the end"
"""What a line across a panel says."""

DOTTED: dict[str, str | float] = {"color": GREY, "dash": "dot", "width": 1.5}
"""How such a line looks."""


@dataclass(frozen=True)
class Axis:
    """Where training steps stand, and what is written there."""

    places: np.ndarray
    ticks: list[float]
    labels: list[str]
    log: bool


def plot_emergence(ds: xr.Dataset, *, dark: bool = False) -> "go.Figure":
    """Draw how norm, entropy and sinks grow over a training: means over prompts with 95 % intervals, by step.

    Up to four panels, for what was measured: the norm ratio of BOS at the depth where its mean is largest,
    step by step; the normalised entropy at the depth where its mean is lowest, step by step; the sink rate
    at 0.3 in the layer where it is largest, step by step, and averaged over all layers; the next-token loss.
    A dotted line, and the title, say from which step on a criterion of `emergence_steps` holds to the end,
    where one does: a ratio of 10, a valley of 0.2, a sink rate of 0.5. The axis is logarithmic where steps
    span two decades, with step 0 at its left end.

    Args:
        ds: what `emergence` or `join_steps` returns.
        dark: light on dark.

    Raises:
        ResultSchemaError: no axis `step`, several conditions, or no prompts.
        ValueError: nothing to draw was measured.
        ImportError: plotly is not installed.

    Source: arXiv 2510.06477, Fig. 2 (reconstruction: what is averaged, and the criteria).
    """
    require_steps(ds)
    panels = _panels(ds)
    if not panels:
        raise ValueError(
            "the result has none of massive_activation_ratio, matrix_entropy, sink_score and "
            "next_token_loss, which the growth is drawn from; measure one of them"
        )
    many, steps = ds.sizes["prompt"], ds.sizes["step"]
    about = f"{many} prompt{'' if many == 1 else 's'}, {steps} checkpoint{'' if steps == 1 else 's'}"
    return _draw(panels, ds.step.values, title=str(ds.attrs.get("model", "model")), subtitle=about, dark=dark)


def _panels(ds: xr.Dataset) -> list[tuple[Panel, float]]:
    """Panels with the step from which on their event is there, NaN where it is not."""
    name, found = subject(ds), []
    least = dict(zip(EVENTS, (MASSIVE_RATIO, VALLEY, SINK_LAYER), strict=True))
    stays = steps_to_stay(ds, least, SINK_THRESHOLD)

    def add(title: str, unit: str, event: tuple[str, str], *arrays: xr.DataArray, **options: Any) -> None:
        color, lines, step = series_color(len(found)), [], stays.get(event[0], np.nan)
        for number, array in enumerate(arrays):
            mean, low, high = mean_and_interval(array.transpose("prompt", "step"))
            lines.append(Line("", mean, low, high, False, 0, color, bare=number > 0))
        title += f": {event[1]} from {step:,.0f} on" if np.isfinite(step) else ""
        found.append((Panel(title, unit, tuple(lines), **options), step))

    space = "\N{NO-BREAK SPACE}"
    if "massive_activation_ratio" in ds:
        event = ("spike", f"≥{space}{MASSIVE_RATIO:g}")
        largest = _where_largest(ds.massive_activation_ratio, "depth")
        add(f"Norm ratio of {name}", "norm ratio (log)", event, largest, log=True, least=(0.8, 12.0))
    if "matrix_entropy" in ds:
        lowest = _where_largest(-normalized_entropy(ds), "depth")
        add("Lowest entropy", "H / ln min(T, d)", ("valley", "a valley"), -lowest, least=(0.0, 1.0))
    if "sink_score" in ds:
        rate = sink_rates(ds)[0]
        event = ("sinks", f"≥{space}{SINK_LAYER:g}")
        rates = (_where_largest(rate, "layer"), rate.mean("layer"))
        add("Largest sink rate", "share of heads", event, *rates, least=(0.0, 1.0))
    if "next_token_loss" in ds:
        add("Next-token loss", "nats/token", ("", ""), ds.next_token_loss)
    return found


def _where_largest(array: xr.DataArray, axis: str) -> xr.DataArray:
    """By prompt and step, where the mean over prompts is largest at that step."""
    values = array.astype(float)
    values = values.where(np.isfinite(values))
    with warnings.catch_warnings():  # a mean of nothing is NaN, and a gap
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = values.mean("prompt")
    return values.isel({axis: mean.fillna(-np.inf).argmax(axis)}).drop_vars(axis, errors="ignore")


def axis_of(steps: np.ndarray) -> Axis:
    """Places and ticks of training steps: as they are, or by their logarithm where they span two decades.

    >>> axis_of(np.array([0, 10, 100, 1000])).places.round(2).tolist()
    [0.5, 1.0, 2.0, 3.0]
    """
    after = steps[steps > 0]
    if not len(after) or after.max() < DECADES * after.min():
        return Axis(steps.astype(float), [], [], log=False)
    logs = np.log10(np.where(steps > 0, steps, 1.0))
    first, last = math.log10(after.min()), math.log10(after.max())
    zero = first - max(0.08 * (last - first), 0.5)
    stride = max(1, math.ceil((last - first) / 6))
    powers = [p for p in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1) if p % stride == 0]
    ticks, labels = [float(p) for p in powers], [_short(10**p) for p in powers]
    if (steps == 0).any():
        ticks, labels = [zero, *ticks], ["0", *labels]
    return Axis(np.where(steps > 0, logs, zero), ticks, labels, log=True)


def _short(step: int) -> str:
    """A step in a few characters: 1k for 1,000, 1M for 1,000,000."""
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if step >= size:
            return f"{step / size:g}{letter}"
    return str(step)


def _draw(
    panels: Sequence[tuple[Panel, float]], steps: np.ndarray, *, title: str, subtitle: str, dark: bool
) -> "go.Figure":
    subplots = require("plotly.subplots", extra="plots")
    titles = [wrapped(panel.title) for panel, _ in panels]
    room = 44 + 17 * max(text.count("<br>") + 1 for text in titles)
    inner = len(panels) * (HEIGHT + room) - room
    fig = subplots.make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True,
        vertical_spacing=room / inner if len(panels) > 1 else 0,
    )  # fmt: skip
    axis = axis_of(steps)
    for row, ((panel, stays), text) in enumerate(zip(panels, titles, strict=True), start=1):
        for line in reversed(panel.lines):  # the first on top
            _add_line(fig, line, row, axis.places, steps)
        if np.isfinite(stays):
            mark = float(axis.places[np.searchsorted(steps, stays)])
            fig.add_vline(x=mark, row=row, col=1, layer="below", line=DOTTED)
        dress_y(fig, panel, row)
        panel_title(fig, text, y=fig.get_subplot(row, 1).yaxis.domain[1])
    names = add_legend(fig, [panel for panel, _ in panels], Legend((), bare=MEAN, band=plain(BAND)))
    if any(np.isfinite(stays) for _, stays in panels):
        go, style = require("plotly.graph_objects", extra="plots"), {"mode": "lines", "line": DOTTED}
        fig.add_trace(go.Scatter(x=[None], y=[None], name=MARK, showlegend=True, **style), row=1, col=1)
        names.append(MARK)
    frame(fig, title=title, subtitle=subtitle, inner=inner, above=room - 24, legend=names, dark=dark)
    fig.update_layout(hovermode="x")
    low, high = float(axis.places.min()), float(axis.places.max())
    margin = 0.03 * (high - low) or 0.5
    fig.update_xaxes(range=[low - margin, high + margin], showticklabels=True, nticks=8, tickformat="~s")
    if axis.log:
        fig.update_xaxes(tickvals=axis.ticks, ticktext=axis.labels)
    fig.update_xaxes(title={"text": f"training step{' (log)' if axis.log else ''}"}, row=len(panels), col=1)
    return fig


def _add_line(fig: Any, line: Line, row: int, places: np.ndarray, steps: np.ndarray) -> None:
    """A line with its band; what is averaged over layers is dashed and has none."""
    go = require("plotly.graph_objects", extra="plots")
    banded = bool(np.isfinite(line.low).any())
    if banded:
        edge = {"x": places, "mode": "lines", "line_width": 0, "showlegend": False, "hoverinfo": "skip",
                "legendgroup": "band"}  # fmt: skip
        fill = faded(line.color, 0.1 if line.bare else 0.22)
        fig.add_trace(go.Scatter(y=line.low, **edge), row=row, col=1)
        fig.add_trace(go.Scatter(y=line.high, fill="tonexty", fillcolor=fill, **edge), row=row, col=1)
    between = " (%{customdata[1]:.4~g} to %{customdata[2]:.4~g})" if banded else ""
    note = f", {MEAN}" if line.bare else ""
    fig.add_trace(
        go.Scatter(
            x=places, y=line.mean, mode="lines+markers" if len(steps) <= MARKED else "lines",
            marker_size=4 if line.bare else 6, showlegend=False, legendgroup="bare" if line.bare else "mean",
            line={"color": line.color, "width": 1.5 if line.bare else 2,
                  "dash": "dash" if line.bare else "solid"},
            customdata=np.stack([steps, line.low, line.high], 1),
            hovertemplate=f"step %{{customdata[0]:,d}}{note}: <b>%{{y:.4~g}}</b>{between}<extra></extra>",
        ),
        row=row, col=1,
    )  # fmt: skip
