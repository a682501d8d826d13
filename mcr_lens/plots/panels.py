"""How are panels stacked on one axis of depth, with bands, phases and a legend?

Knows lines and panels, not results. plotly is imported when a figure is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mcr_lens._optional import require
from mcr_lens.plots.theme import (
    GREY,
    PHASES,
    depth_ticks,
    faded,
    frame,
    panel_title,
    plain,
    shortened,
    wrapped,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

HEIGHT = 165
"""Pixels of the inside of a panel."""

MARKED = 40
"""Lines with more points than this are drawn without markers."""


@dataclass(frozen=True)
class Line:
    """One line with its band; `by_block` puts entry l at l + 0.5, between the depths it connects.

    `name` is that of the result it belongs to; a `bare` line is the same quantity without the row of BOS;
    `at` are its depths or blocks, if not all from 0 on.
    """

    name: str
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    by_block: bool
    n_layers: int
    color: str
    dash: str = "solid"
    bare: bool = False
    at: np.ndarray | None = None


@dataclass(frozen=True)
class Panel:
    """One panel: title, units, lines, and values that its axis shows in any case."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    log: bool = False
    least: tuple[float, float] | None = None


@dataclass(frozen=True)
class Legend:
    """What stands below the panels: what a line is, what a bare line leaves out, what the band holds.

    `series` are names with colour and dash where there are several; empty: one result, whose lines are the
    mean over prompts.
    """

    series: tuple[tuple[str, str, str], ...]
    bare: str
    band: str


def draw(
    panels: Sequence[Panel],
    legend: Legend,
    *,
    title: str,
    subtitle: str,
    relative: bool,
    phases: Sequence[tuple[str, float, float]] = (),
    dark: bool = False,
) -> "go.Figure":
    """Stack panels on a shared axis of depth; `phases` are shaded: name, first and last depth."""
    subplots = require("plotly.subplots", extra="plots")
    titles = [wrapped(panel.title) for panel in panels]
    room = 44 + 17 * max(text.count("<br>") + 1 for text in titles)
    inner = len(panels) * (HEIGHT + room) - room
    n_layers = max(line.n_layers for panel in panels for line in panel.lines)
    fig = subplots.make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True,
        vertical_spacing=room / inner if len(panels) > 1 else 0,
    )  # fmt: skip
    for row, (panel, text) in enumerate(zip(panels, titles, strict=True), start=1):
        # Of several, the first is drawn last, on top: it is what the others are held against.
        for line in reversed(panel.lines) if legend.series else panel.lines:
            add_line(fig, line, row, legend, relative=relative)
        for name, start, end in phases:  # after the lines: an empty panel takes no shapes
            _shade(fig, name, (start, end), row, scale=1 / n_layers if relative else 1.0)
        dress_y(fig, panel, row)
        panel_title(fig, text, y=fig.get_subplot(row, 1).yaxis.domain[1])
    names = add_legend(fig, panels, legend)
    names += [name for name, _, _ in phases]
    frame(fig, title=title, subtitle=subtitle, inner=inner, above=room - 24, legend=names, dark=dark)
    fig.update_layout(hovermode="x unified" if legend.series else "x")
    dress_depth(fig, len(panels), n_layers=n_layers, relative=relative)
    return fig


def _shade(fig: Any, name: str, span: tuple[float, float], row: int, *, scale: float) -> None:
    fig.add_vrect(
        x0=span[0] * scale, x1=span[1] * scale, row=row, col=1, layer="below", line_width=0,
        fillcolor=PHASES[name], name=name, legendgroup=f"phase {name}", showlegend=row == 1,
    )  # fmt: skip


def add_line(fig: Any, line: Line, row: int, legend: Legend, *, relative: bool) -> None:
    """A line with its band in one panel; its names in the legend come with `draw`."""
    go = require("plotly.graph_objects", extra="plots")
    number = np.arange(len(line.mean)) if line.at is None else line.at
    x = (number + (0.5 if line.by_block else 0)) / (line.n_layers if relative else 1)
    place = "block" if line.by_block else "depth"
    several = bool(legend.series)
    group = f"series {line.name}" if several else "bare" if line.bare else "mean"
    banded = np.isfinite(line.low) & np.isfinite(line.high)
    if banded.any():
        fill = faded(line.color, 0.1 if line.bare or several else 0.22)
        edge = {"x": x, "mode": "lines", "line_width": 0, "showlegend": False, "hoverinfo": "skip",
                "legendgroup": group if several else "band"}  # fmt: skip
        fig.add_trace(go.Scatter(y=line.low, **edge), row=row, col=1)
        fig.add_trace(go.Scatter(y=line.high, fill="tonexty", fillcolor=fill, **edge), row=row, col=1)
    note = f", {legend.bare}" if line.bare else ""
    # Of several, the box has one heading, the depth, and names the lines.
    who = shortened(line.name, 30) if several else f"{place} %{{customdata[0]:d}}"
    what = f"{who}{note}: <b>%{{y:.4~g}}</b>"
    between = " (%{customdata[1]:.4~g} to %{customdata[2]:.4~g})" if banded.any() else ""
    dash = "dash" if line.bare and line.dash == "solid" else "dot" if line.bare else line.dash
    fig.add_trace(
        go.Scatter(
            x=x, y=line.mean, mode="lines+markers" if len(x) <= MARKED else "lines", showlegend=False,
            legendgroup=group, marker_size=4 if line.bare else 5,
            line={"color": line.color, "width": 1.5 if line.bare else 2, "dash": dash},
            customdata=np.stack([number, line.low, line.high], 1),
            hovertemplate=f"{what}{between}<extra></extra>",
        ),
        row=row, col=1,
    )  # fmt: skip


def add_legend(fig: Any, panels: Sequence[Panel], legend: Legend) -> list[str]:
    """What line and band mean; grey is what holds for every panel and every result. Returns the names."""
    go = require("plotly.graph_objects", extra="plots")
    lines = [line for panel in panels for line in panel.lines]
    entries: list[tuple[str, str, dict[str, Any]]] = [
        (plain(name), f"series {name}", _stroke(color, dash)) for name, color, dash in legend.series
    ]
    if not legend.series:
        entries.append(("mean over prompts", "mean", _stroke(GREY, "solid")))
    if any(line.bare for line in lines):
        entries.append((plain(f"the same {legend.bare}"), "bare", _stroke(GREY, "dash")))
    if any(np.isfinite(line.low).any() for line in lines):
        square = {"symbol": "square", "size": 14, "color": faded(GREY, 0.4)}
        entries.append((legend.band, "band", {"mode": "markers", "marker": square}))
    for name, group, style in entries:
        trace = go.Scatter(x=[None], y=[None], name=name, legendgroup=group, showlegend=True, **style)
        fig.add_trace(trace, row=1, col=1)
    return [name for name, _, _ in entries]


def _stroke(color: str, dash: str) -> dict[str, Any]:
    return {"mode": "lines", "line": {"color": color, "width": 2, "dash": dash}}


def dress_depth(fig: Any, rows: int, *, n_layers: int, relative: bool) -> None:
    """Ticks and range of the shared axis of depth, and its title below the last row."""
    span = 1.0 if relative else float(n_layers)
    fig.update_xaxes(
        range=[-0.02 * span, 1.02 * span], tick0=0, showticklabels=True,
        dtick=0.2 if relative else depth_ticks(n_layers),
    )  # fmt: skip
    text = "depth / number of layers" if relative else f"depth (0: before the blocks, {n_layers}: after)"
    fig.update_xaxes(title={"text": text}, row=rows, col=1)


def dress_y(fig: Any, panel: Panel, row: int) -> None:
    """Unit, range and ticks of a panel's own axis."""
    fig.update_yaxes(title={"text": plain(panel.unit), "font_size": 12.5, "standoff": 6}, row=row, col=1)
    values = np.concatenate([part for line in panel.lines for part in (line.mean, line.low, line.high)])
    values = values[np.isfinite(values)]
    if panel.log:
        ends = [*values[values > 0], *(panel.least or ())] or [1.0, 10.0]
        low, high = math.log10(min(ends)) - 0.04, math.log10(max(ends)) + 0.04
        ticks = log_ticks(low, high)
        labels = [f"{t:,.0f}" if 1 <= t < 1e5 else f"{t:g}" for t in ticks]
        fig.update_yaxes(type="log", range=[low, high], tickvals=ticks, ticktext=labels, row=row, col=1)
    elif panel.least is not None:
        ends = [*values, *panel.least]
        room = 0.04 * (max(ends) - min(ends))
        fig.update_yaxes(range=[min(ends) - room, max(ends) + room], dtick=0.25, row=row, col=1)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two powers, with 2 and 5 between them where the range is short.

    >>> log_ticks(-0.1, 1.1)
    [1.0, 2.0, 5.0, 10.0]
    """
    steps = (1, 2, 5) if high - low < 1.7 else (1,)
    stride = max(1, math.ceil((high - low) / 7))
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [m * 10.0**p for p in powers if p % stride == 0 for m in steps]
    return [t for t in found if low <= math.log10(t) <= high]
