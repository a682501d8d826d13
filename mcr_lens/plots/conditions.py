"""What does an ablation change, depth by depth, and what does it cost?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens._optional import require
from mcr_lens.conditions import condition, condition_names
from mcr_lens.plots.panels import Line, Panel, draw
from mcr_lens.plots.profile import usual_panels
from mcr_lens.plots.series import Series, heading, legend_of, read_series
from mcr_lens.plots.theme import (
    AXIS,
    GREY,
    LEFT,
    faded,
    make_room,
    panel_title,
    series_color,
    series_dash,
    shortened,
    wrapped,
)
from mcr_lens.reading import number, subject
from mcr_lens.statistics import paired_difference

if TYPE_CHECKING:
    import plotly.graph_objects as go

ALIKE = 0.02
"""Two lines that never differ by more than this share of their panel's axis are one line to the eye."""

GAPS = ("dash", "dot", "dashdot", "longdash", "longdashdot")
"""Dashes of the lines that lie on another one, which shows through."""

BAR = 40
"""Pixels of a bar and of the words above it."""


def plot_comparison(ds: xr.Dataset, *, baseline: str = "clean", dark: bool = False) -> "go.Figure":
    """Draw norm ratio, normalised entropy and sink rate under every condition, and what each costs.

    Means over prompts with 95 % intervals by depth, as in `plot_profile`. The last panel holds the rise of
    the next-token loss above the baseline, in nats per token, paired by prompt (`paired_difference`); it is
    left out where the loss was not measured, as for an encoder.

    The baseline is the wide grey line, so that a condition that changes nothing is seen on top of it. The
    legend says "≈" of a condition that lies on another one everywhere, within 2 % of every axis.

    Args:
        ds: what `compare` returns, with two conditions or more.
        baseline: the condition against which the others are held.
        dark: light on dark.

    Raises:
        ResultSchemaError: not a result of `compare`, or no prompts.
        ValueError: a baseline that is not in the result, no other condition, or nothing to draw.
        ImportError: plotly is not installed.

    Source: arXiv 2510.06477, Fig. 4; the loss beside it: this library.
    """
    names = condition_names(ds)
    if not isinstance(baseline, str) or baseline not in names:
        raise ValueError(
            f"baseline={as_shown(baseline)} is not a condition of the result; it holds {', '.join(names)}"
        )
    others = [name for name in names if name != baseline]
    if not others:
        raise ValueError(
            f"the result holds {as_shown(baseline)} alone; compare at least one other condition with it"
        )
    read = {s.name: s for s in read_series(ds)}
    series = [replace(read[baseline], color=GREY, dash="solid")]
    series += [replace(read[name], color=series_color(i)) for i, name in enumerate(others)]
    panels = usual_panels(series)
    labels, dashes = _coincidences(panels, [s.name for s in series])
    series = [replace(s, name=labels[s.name], dash=dashes[s.name]) for s in series]
    title, subtitle = heading(series)
    fig = draw(
        [_over_baseline(panel, labels, dashes) for panel in panels],
        legend_of(series, subject(ds)),
        title=title,
        subtitle=f"{subtitle}, the same under every condition",
        relative=False,
        dark=dark,
    )
    _widen(fig, labels[baseline])
    if "next_token_loss" in ds:
        _add_costs(fig, ds, baseline, {name: read[name] for name in others}, [s.color for s in series[1:]])
    return fig


def _coincidences(panels: Sequence[Panel], names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the legend calls each condition and how its line is dashed: whether it lies on an earlier one."""
    lines = {name: [(line, panel) for panel in panels for line in panel.lines if line.name == name]
             for name in names}  # fmt: skip
    labels, dashes = {names[0]: names[0]}, {names[0]: "solid"}
    for place, name in enumerate(names[1:], start=1):
        pairs = ((other, zip(lines[name], lines[other], strict=True)) for other in names[:place])
        same = next((o for o, both in pairs if all(_alike(a[0], b[0], a[1]) for a, b in both)), None)
        labels[name] = name if same is None else f"{name} (≈ {same})"
        many = sum(dash != "solid" for dash in dashes.values())
        dashes[name] = series_dash(place - 1) if same is None else GAPS[many % len(GAPS)]
    return labels, dashes


def _alike(one: Line, other: Line, panel: Panel) -> bool:
    """Do two lines lie on each other, as far as the axis of their panel shows?"""
    if not np.array_equal(np.isnan(one.mean), np.isnan(other.mean)):
        return False
    ends = np.concatenate([line.mean for line in panel.lines] + [np.array(panel.least or ())])
    a, b, ends = (np.log10(x[x > 0]) if panel.log else x[~np.isnan(x)] for x in (one.mean, other.mean, ends))
    return a.shape == b.shape and bool((np.abs(a - b) <= ALIKE * np.ptp(ends)).all())


def _over_baseline(panel: Panel, labels: dict[str, str], dashes: dict[str, str]) -> Panel:
    """The panel with its lines renamed, dashed ones on top and the baseline, which is wide, below all."""
    first, *rest = (replace(line, name=labels[line.name], dash=dashes[line.name]) for line in panel.lines)
    rest.sort(key=lambda line: line.dash == "solid")
    return replace(panel, lines=(*rest, first))


def _widen(fig: Any, name: str) -> None:
    for trace in fig.select_traces({"legendgroup": f"series {name}"}):
        if trace.fill or trace.line.width == 0:
            continue
        trace.update(mode="lines", line={"width": 8, "color": faded(GREY, 0.5)})


def _add_costs(
    fig: Any, ds: xr.Dataset, baseline: str, conditions: dict[str, Series], colors: Sequence[str]
) -> None:
    """A panel of bars below the others; the words above a bar say all that it shows."""
    go = require("plotly.graph_objects", extra="plots")
    before = condition(ds, baseline).next_token_loss
    found = [paired_difference(s.ds.next_token_loss, before) for s in conditions.values()]
    mean, low, high = (np.array([float(d[part]) for d in found]) for part in ("mean", "low", "high"))
    axis = len(list(fig.select_yaxes())) + 1
    if not np.isfinite(mean).any():
        return
    title = wrapped(f"What it costs: next-token loss − {baseline}")
    lines = title.count("<br>") + 1
    inner = BAR * len(found)
    bottom, top = make_room(fig, AXIS + 10 + 17 * lines + inner)
    share = inner / (AXIS + 10 + 17 * lines + inner)
    ends = (bottom, bottom + share * (top - bottom))
    rows = np.arange(len(found))
    fig.add_trace(
        go.Bar(
            x=mean, y=rows + 0.24, orientation="h", width=0.34, xaxis=f"x{axis}", yaxis=f"y{axis}",
            marker_color=list(colors), hoverinfo="skip", showlegend=False,
            error_x={"type": "data", "symmetric": False, "array": high - mean, "arrayminus": mean - low,
                     "color": GREY, "thickness": 1.5, "width": 4},
        )
    )  # fmt: skip
    fig.add_trace(  # zero, without crossing the words
        go.Scatter(
            x=np.zeros(3 * len(rows)), y=np.stack([rows + 0.04, rows + 0.44, rows * np.nan], 1).ravel(),
            mode="lines", line={"color": GREY, "width": 1.5}, hoverinfo="skip", showlegend=False,
            xaxis=f"x{axis}", yaxis=f"y{axis}",
        )
    )  # fmt: skip
    for row, name in zip(rows, conditions, strict=True):
        text = f"{shortened(name, 24)}: <b>{_signed(mean[row])}</b>"
        if np.isfinite(low[row]):
            text += f" ({_signed(low[row])} to {_signed(high[row])})"
        fig.add_annotation(
            text=text, x=0, xref=f"x{axis} domain", xanchor="left", y=row - 0.2, yref=f"y{axis}",
            yanchor="middle", showarrow=False, font={"size": 12}, xshift=16 - LEFT,
        )  # fmt: skip
    fig.update_layout({
        f"yaxis{axis}": {
            "domain": ends, "anchor": f"x{axis}", "range": [len(found) - 0.5, -0.5], "showgrid": False,
            "showticklabels": False, "ticks": "", "fixedrange": True,
        },
        f"xaxis{axis}": {
            "domain": [0, 1], "anchor": f"y{axis}", "range": _span([*mean, *low, *high]), "nticks": 6,
            "title": {"text": "nats/token (above 0: it predicts worse)"},
        },
    })  # fmt: skip
    panel_title(fig, title, y=ends[1])


def _span(values: Sequence[float]) -> list[float]:
    known = [v for v in values if np.isfinite(v)]
    low, high = min(0.0, *known), max(0.0, *known)
    room = 0.04 * (high - low) or 1.0
    return [low - room if low < 0 else 0.0, high + room]


def _signed(value: float) -> str:
    """Three decimals and the sign; nothing that rounds to zero has one."""
    text = number(abs(value), -3)
    zero = np.isnan(value) or float(text) == 0
    return text if zero else f"{'+' if value > 0 else '−'}{text}"
