"""Which heads sink, mix or look at themselves, block by block?"""

import difflib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, is_iterable
from mcr_lens._optional import require
from mcr_lens.plots.series import RANKED
from mcr_lens.plots.theme import (
    AXIS,
    BAR,
    DIVERGING,
    GREY,
    SEQUENTIAL,
    color_bar,
    depth_ticks,
    faded,
    frame,
    panel_title,
    plain,
    wrapped,
)
from mcr_lens.reading import number, subject
from mcr_lens.schema import require_single
from mcr_lens.statistics import confidence_interval
from mcr_lens.summaries import sink_identity

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHARES = (
    "sink_score", "strongest_sink_score", "early_sink_score", "top_sink_score", "sink_identity_mass",
    "identity_score", "previous_token_score", "mixing_score", "colsum_concentration", "row_mass",
    "sink_output_share",
)  # fmt: skip
"""Variables drawn from 0 to 1 whatever their values, so that the maps of two models compare."""

INDEX = ("sink_identity", "sink_identity_index")
"""Variables between two ends, 0 and 1, with a middle at 0.5."""

RATIOS = ("value_drain",)
"""Ratios drawn on a logarithmic scale around 1, up to `TIMES` in both directions."""

TIMES = 10.0

ROUNDING = 1e-6
"""So far above 1 a score is 1."""

SUPPORT = 0.05
"""Heads that give BOS and themselves less than this have no sink-versus-identity index."""

READINGS: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
    "sink_identity": lambda ds: sink_identity(ds, min_mass=SUPPORT)
}
"""Names that a map takes besides the variables of the result."""

TITLES = {
    "sink_score": "Sink score: mean attention to {subject}",
    "strongest_sink_score": "Mean attention to the most attended key",
    "early_sink_score": "Mean attention to the most attended key of the first half",
    "identity_score": "Mean attention of a token to itself",
    "previous_token_score": "Mean attention to the token before",
    "mixing_score": "Mixing score: row entropy / its maximum",
    "sink_identity": "Sink (1) or identity (0): S / (S + I)",
    "sink_identity_index": "Sink (1) or identity (0): S / (S + I)",
    "sink_identity_mass": "Attention to {subject} or to oneself: S + I",
    "value_drain": "Value norm at {subject} / median of the others",
    "sink_output_share": "Share of the head's output from {subject}",
}
"""What stands above a map, where the label of the variable is long."""

WORDED, GAPPED = 8, 32
"""Up to so many heads there is room on a telephone for the number in every cell, and for gaps between."""

LINE = 14
"""Pixels of a cell that holds a line of text."""

EMPTY = faded(GREY, 0.4)
"""Colour of heads without a number."""


@dataclass(frozen=True)
class Scale:
    """How numbers become colours: where the scale ends and what its colour bar says.

    `digits` are those of the numbers in the cells, as `number` takes them.
    """

    colors: str
    low: float
    high: float
    unit: str
    ticks: tuple[tuple[float, str], ...] = ()
    log: bool = False
    digits: int = 2

    def colored(self, values: np.ndarray) -> np.ndarray:
        """The numbers that are coloured: logarithms where the scale is one, held within its ends."""
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log10(values)
        return np.clip(values, self.low, self.high)


def plot_heads(
    ds: xr.Dataset, variable: str | Sequence[str] = "sink_score", *, dark: bool = False
) -> "go.Figure":
    """Draw one number per head, block by head: mean over prompts, first block on top.

    Attention scores are coloured from 0 to 1 whatever their values, so that two models compare; value norm
    ratios on a logarithmic scale around 1 that ends at 1/10 and 10; other variables from their smallest to
    their largest mean. Colours end where the scale ends, hover gives the number itself, with its 95 %
    interval over prompts. Heads without a number are grey: for "sink_identity" those that give BOS and
    themselves less than 0.05 of their attention.

    Args:
        ds: what `measure`, `load` or `condition` returns.
        variable: a variable with the axes layer and head, or the reading "sink_identity"; several names are
            drawn one below the other.
        dark: light on dark.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or what a reading needs was not
            measured.
        ValueError: an unknown name (the nearest is suggested), no name, or a variable that is not one number
            per head.
        ImportError: plotly is not installed.

    Source: this library; the variables say theirs.
    """
    require_single(ds)
    if not is_iterable(variable):
        raise TypeError(f"variable came as {type(variable).__name__}; name one or more of the result")
    names = [variable] if isinstance(variable, str) else list(variable)
    if not names:
        raise ValueError("variable is empty; name at least one, for example 'sink_score'")
    subplots = require("plotly.subplots", extra="plots")
    arrays = [_read(ds, name) for name in names]
    titles = [wrapped(_title(name, array, ds)) for name, array in zip(names, arrays, strict=True)]
    rows = arrays[0].sizes["layer"]
    tall = _height(rows)
    room = 30 + AXIS + 17 * max(text.count("<br>") + 1 for text in titles)
    inner = len(names) * (tall + room) - room
    fig = subplots.make_subplots(
        rows=len(names), cols=1, vertical_spacing=room / inner if len(names) > 1 else 0
    )
    reasons: set[str] = set()
    for row, (name, array, text) in enumerate(zip(names, arrays, titles, strict=True), start=1):
        mean, low, high, n = _numbers(array)
        missing = np.isnan(mean)
        if missing.any():
            reasons.add(reason := _reason(ds, name, missing))
            _add_empty(fig, missing, reason, row)
        _add_map(fig, _scale(name, array, mean), (mean, low, high, n), ds.sizes["prompt"], row)
        _dress(fig, array, row)
        panel_title(fig, text, y=fig.get_subplot(row, 1).yaxis.domain[1])
    legend = [_explain_empty(fig, reasons)] if reasons else []
    many = ds.sizes["prompt"]
    frame(
        fig, title=str(ds.attrs.get("model", "model")),
        subtitle=f"heads by block, mean over {many} prompt{'' if many == 1 else 's'}",
        inner=inner, above=room - AXIS, right=BAR, legend=legend, dark=dark,
    )  # fmt: skip
    return fig


def _read(ds: xr.Dataset, name: str) -> xr.DataArray:
    """The variable as numbers over prompt, layer and head."""
    if str(name) not in ds.data_vars and str(name) not in READINGS:
        drawable = [str(v) for v in ds.data_vars if {"layer", "head"} <= set(ds[v].dims)]
        near = difflib.get_close_matches(str(name), [*drawable, *READINGS], n=1, cutoff=0.5)
        listed = ", ".join(drawable) or "no map of heads"
        hint = f"did you mean {near[0]!r}?" if near else f"it holds {listed}"
        raise ValueError(f"the result has no variable {as_shown(name)}: {hint}")
    array = READINGS[name](ds) if name in READINGS else ds[name]
    if not {"layer", "head"} <= set(array.dims):
        raise ValueError(
            f"{as_shown(name)} has the axes {', '.join(map(str, array.dims))} and not layer and head; draw "
            "it with plot_profile"
        )
    for extra in [str(d) for d in array.dims if d not in ("prompt", "layer", "head")]:
        if extra not in RANKED:
            raise ValueError(
                f"{as_shown(name)} has the axis {as_shown(extra)}, which a map of heads cannot draw; select "
                f"one entry first, for example ds.isel({extra}=0)"
            )
        array = array.isel({extra: 0})
    if array.attrs.get("units") == "token id":
        raise ValueError(f"{as_shown(name)} holds token ids, whose mean says nothing; draw a score")
    return array


def _title(name: str, array: xr.DataArray, ds: xr.Dataset) -> str:
    label = TITLES.get(name, str(array.attrs.get("long_name", name)).replace("BOS", "{subject}"))
    return label.replace("{subject}", subject(ds))


def _height(rows: int) -> int:
    """Pixels of a map with so many blocks: cells as high as a line of text, down to 9 pixels."""
    return max(90, round(rows * min(24, max(9, 480 / rows))))


def _scale(name: str, array: xr.DataArray, means: np.ndarray) -> Scale:
    units = str(array.attrs.get("units", "1"))
    known = means[np.isfinite(means)]
    quarters = ((0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"))
    if name in INDEX:
        return Scale(DIVERGING, 0.0, 1.0, "index", (*quarters, (1.0, "1")), digits=-2)
    if name in SHARES:
        beyond = known.size > 0 and known.max() > 1 + ROUNDING
        return Scale(SEQUENTIAL, 0.0, 1.0, "score", (*quarters, (1.0, "≥ 1" if beyond else "1")), digits=-2)
    if name in RATIOS:
        end = math.log10(TIMES)
        middle = tuple((math.log10(value), f"{value:g}") for value in (0.3, 1, 3))
        ticks = ((-end, f"≤ {1 / TIMES:g}"), *middle, (end, f"≥ {TIMES:g}"))
        return Scale(DIVERGING, -end, end, "ratio (log)", ticks, log=True)
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    unit = "" if units == "1" else plain(units)
    return Scale(SEQUENTIAL, low, high if high > low else low + 1, unit)


def _numbers(array: xr.DataArray) -> tuple[np.ndarray, ...]:
    """Mean, interval and number of prompts by block and head; what is not finite is left out."""
    numbers = array.astype(float).transpose("prompt", "layer", "head")
    numbers = numbers.where(np.isfinite(numbers))
    with warnings.catch_warnings():  # NaN in all prompts gives NaN, which is drawn as such
        warnings.simplefilter("ignore", RuntimeWarning)
        found = confidence_interval(numbers)
    return tuple(found[part].values for part in ("mean", "low", "high", "n"))


def _reason(ds: xr.Dataset, name: str, missing: np.ndarray) -> str:
    """Why heads have no number, as far as it is known."""
    if name == "sink_identity":
        known = ds.sink_identity_mass.notnull().any("prompt").transpose("layer", "head").values
        if known[missing].all():
            return f"no number: S + I under {SUPPORT:g} in all prompts"
    return "no number"


def _add_empty(fig: Any, missing: np.ndarray, reason: str, row: int) -> None:
    go = require("plotly.graph_objects", extra="plots")
    fig.add_trace(
        go.Heatmap(
            z=np.where(missing, 0.0, np.nan), colorscale=[[0, EMPTY], [1, EMPTY]], showscale=False,
            hoverongaps=False, hovertemplate=f"block %{{y}}, head %{{x}}<br>{reason}<extra></extra>",
        ),
        row=row, col=1,
    )  # fmt: skip


def _add_map(fig: Any, scale: Scale, numbers: tuple[np.ndarray, ...], prompts: int, row: int) -> None:
    go = require("plotly.graph_objects", extra="plots")
    mean, low, high, n = numbers
    between = np.char.add(np.char.add(_texts(low), " to "), _texts(high))
    between[~np.isfinite(low)] = "none"
    bar = color_bar(fig.get_subplot(row, 1).yaxis.domain, scale.unit)
    if scale.ticks:
        bar |= {"tickvals": [t for t, _ in scale.ticks], "ticktext": [t for _, t in scale.ticks]}
    blocks, heads = mean.shape
    gap = 1 if heads <= GAPPED else 0
    worded = heads <= WORDED and _height(blocks) >= blocks * LINE
    fig.add_trace(
        go.Heatmap(
            z=scale.colored(mean), zmin=scale.low, zmax=scale.high, colorscale=scale.colors, colorbar=bar,
            xgap=gap, ygap=gap, hoverongaps=False,
            text=_texts(mean, scale.digits) if worded else None, texttemplate="%{text}" if worded else None,
            customdata=np.stack([_texts(mean), between, n.astype(str)], -1),
            hovertemplate="block %{y}, head %{x}: <b>%{customdata[0]}</b><br>95 % interval %{customdata[1]}"
            f"<br>%{{customdata[2]}} of {prompts} prompt{'' if prompts == 1 else 's'}<extra></extra>",
        ),
        row=row, col=1,
    )  # fmt: skip


def _texts(values: np.ndarray, digits: int = 3) -> np.ndarray:
    """Numbers in words: so many digits, or −`digits` decimals."""
    return np.array([[number(float(v), digits) for v in row] for row in values])


def _dress(fig: Any, array: xr.DataArray, row: int) -> None:
    """Axes that name blocks and heads as the result does, also where some were left out."""
    for axis, text, most, update in (
        ("head", "head", 10, fig.update_xaxes), ("layer", "block", 17, fig.update_yaxes),
    ):  # fmt: skip
        labels = [str(label) for label in array[axis].values]
        span, ticks = [-0.5, len(labels) - 0.5], labels[:: depth_ticks(len(labels), most)]
        update(
            type="category", categoryorder="array", categoryarray=labels, showgrid=False, tickvals=ticks,
            ticktext=ticks, range=span if axis == "head" else span[::-1], title={"text": text},
            row=row, col=1,
        )  # fmt: skip
        fig.update_traces({"x" if axis == "head" else "y": labels}, row=row, col=1)


def _explain_empty(fig: Any, reasons: set[str]) -> str:
    """A legend entry for cells without a number; returns its text."""
    go = require("plotly.graph_objects", extra="plots")
    text = reasons.pop() if len(reasons) == 1 else "no number"
    square = {"symbol": "square", "size": 14, "color": EMPTY}
    trace = go.Scatter(x=[None], y=[None], mode="markers", marker=square, name=text, showlegend=True)
    fig.add_trace(trace, row=1, col=1)
    return text
