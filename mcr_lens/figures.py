"""How is a profile drawn with plotly, so that nothing overlaps on a telephone or a wide screen?

Knows lines and panels, not results. plotly is imported when a figure is drawn.
"""

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mcr_lens._optional import require

if TYPE_CHECKING:
    import plotly.graph_objects as go

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that stay apart for colour-blind readers (Okabe and Ito), without black and yellow."""

GREY = "#808080"
CLEAR = "rgba(0, 0, 0, 0)"
GRID = "rgba(128, 128, 128, 0.2)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

PANEL, TOP, BOTTOM, LEFT = 165, 58, 128, 66
"""Pixels: the inside of a panel; what stands above all (title), below all (axis title, legend), and left."""

TITLE_WIDTH = 40
"""Characters in a line of a panel's title, so that it fits a telephone."""


@dataclass(frozen=True)
class Line:
    """One line with its band; `by_block` puts entry l at l + 0.5, between the depths it connects."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    by_block: bool
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel: title, units, lines, and values that its axis shows in any case."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    log: bool = False
    least: tuple[float, float] | None = None


def draw(
    panels: Sequence[Panel], *, title: str, subtitle: str, without: str, n_layers: int, relative: bool
) -> "go.Figure":
    """Stack panels on a shared axis of depth; `without` says what the dashed lines leave out."""
    subplots = require("plotly.subplots", extra="plots")
    titles = [_wrapped(panel.title) for panel in panels]
    room = 44 + 17 * max(text.count("<br>") + 1 for text in titles)
    inner = len(panels) * (PANEL + room) - room
    fig = subplots.make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True,
        vertical_spacing=room / inner if len(panels) > 1 else 0,
    )  # fmt: skip
    for row, (panel, text) in enumerate(zip(panels, titles, strict=True), start=1):
        color = PALETTE[(row - 1) % len(PALETTE)]
        for line in panel.lines:
            _add_line(fig, line, row, color, without, scale=1 / n_layers if relative else 1.0)
        _dress_y(fig, panel, row)
        fig.add_annotation(
            text=f"<b>{text}</b>", x=0, y=fig.get_subplot(row, 1).yaxis.domain[1], xref="paper",
            yref="paper", xanchor="left", yanchor="bottom", xshift=16 - LEFT, yshift=4, showarrow=False,
            align="left", font_size=13,
        )  # fmt: skip
    _add_legend(fig, without if any(line.dashed for panel in panels for line in panel.lines) else None)
    _dress(fig, title, subtitle, top=TOP + room - 24, inner=inner)
    _dress_x(fig, len(panels), n_layers=n_layers, relative=relative)
    return fig


def _add_line(fig: Any, line: Line, row: int, color: str, without: str, *, scale: float) -> None:
    go = require("plotly.graph_objects", extra="plots")
    number = np.arange(len(line.mean))
    x = (number + (0.5 if line.by_block else 0)) * scale
    place = "block" if line.by_block else "depth"
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    fill = f"rgba({red}, {green}, {blue}, {0.1 if line.dashed else 0.22})"
    edge = {"x": x, "mode": "lines", "line_width": 0, "showlegend": False, "hoverinfo": "skip"}
    fig.add_trace(go.Scatter(y=line.low, legendgroup="band", **edge), row=row, col=1)
    band = go.Scatter(y=line.high, legendgroup="band", fill="tonexty", fillcolor=fill, **edge)
    fig.add_trace(band, row=row, col=1)
    note = f" {without}" if line.dashed else ""
    mean = go.Scatter(
        x=x, y=line.mean, mode="lines+markers" if len(x) <= 40 else "lines", showlegend=False,
        legendgroup="without" if line.dashed else "mean", marker_size=4 if line.dashed else 5,
        line={"color": color, "width": 2, "dash": "dash" if line.dashed else "solid"},
        customdata=np.stack([number, line.low, line.high], 1),
        hovertemplate=f"{place} %{{customdata[0]:d}}{note}: <b>%{{y:.4~g}}</b> "
        "(%{customdata[1]:.4~g} to %{customdata[2]:.4~g})<extra></extra>",
    )  # fmt: skip
    fig.add_trace(mean, row=row, col=1)


def _add_legend(fig: Any, without: str | None) -> None:
    """What line and band mean, in grey because it holds for every panel."""
    go = require("plotly.graph_objects", extra="plots")
    entries = [("mean over prompts", "mean", {"mode": "lines", "line": {"color": GREY, "width": 2}})]
    if without:
        style = {"mode": "lines", "line": {"color": GREY, "width": 2, "dash": "dash"}}
        entries.append((f"the same {without}", "without", style))
    square = {"symbol": "square", "size": 14, "color": "rgba(128, 128, 128, 0.4)"}
    entries.append(("10–90 % of prompts", "band", {"mode": "markers", "marker": square}))
    for name, group, style in entries:
        fig.add_trace(go.Scatter(x=[None], y=[None], name=name, legendgroup=group, **style), row=1, col=1)


def _dress(fig: Any, title: str, subtitle: str, *, top: int, inner: int) -> None:
    name = _plain(textwrap.shorten(title, 60, placeholder=" …"))
    height = top + inner + BOTTOM
    fig.update_layout(
        template="plotly_white", autosize=True, height=height, hovermode="x",
        margin={"l": LEFT, "r": 16, "t": top, "b": BOTTOM}, font={"family": FONT, "size": 13},
        title={"text": f"{name}<br><sup>{_plain(subtitle)}</sup>", "x": 0, "xref": "container",
               "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top",
               "pad": {"l": 16, "t": 24}, "font_size": 17},
        legend={"orientation": "h", "x": 0, "xref": "container", "xanchor": "left", "yref": "container",
                "y": (BOTTOM - 58) / height, "yanchor": "top", "tracegroupgap": 0, "font_size": 12.5},
        paper_bgcolor=CLEAR, plot_bgcolor=CLEAR,
        modebar={"bgcolor": CLEAR, "color": GREY, "activecolor": PALETTE[1],
                 "remove": ["select2d", "lasso2d"]},
    )  # fmt: skip


def _dress_x(fig: Any, rows: int, *, n_layers: int, relative: bool) -> None:
    span = 1.0 if relative else float(n_layers)
    steps = (1, 2, 4, 5, 8, 10, 20, 25, 50, 100, n_layers)
    fig.update_xaxes(
        range=[-0.02 * span, 1.02 * span], tick0=0, zeroline=False, gridcolor=GRID, ticks="outside",
        ticklen=4, tickcolor=GREY, showticklabels=True,
        dtick=0.2 if relative else next(s for s in steps if n_layers / s <= 10),
    )  # fmt: skip
    text = "depth / number of layers" if relative else f"depth (0: before the blocks, {n_layers}: after)"
    fig.update_xaxes(title={"text": text, "standoff": 8, "font_size": 13}, row=rows, col=1)


def _dress_y(fig: Any, panel: Panel, row: int) -> None:
    title = {"text": _plain(panel.unit), "font_size": 12.5, "standoff": 6}
    fig.update_yaxes(title=title, gridcolor=GRID, zeroline=False, row=row, col=1)
    values = np.concatenate([part for line in panel.lines for part in (line.mean, line.low, line.high)])
    values = values[np.isfinite(values)]
    if panel.log:
        ends = [*values[values > 0], *(panel.least or ())] or [1.0, 10.0]
        low, high = math.log10(min(ends)) - 0.04, math.log10(max(ends)) + 0.04
        ticks = _log_ticks(low, high)
        labels = [f"{t:,.0f}" if 1 <= t < 1e5 else f"{t:g}" for t in ticks]
        fig.update_yaxes(type="log", range=[low, high], tickvals=ticks, ticktext=labels, row=row, col=1)
    elif panel.least is not None:
        ends = [*values, *panel.least]
        room = 0.04 * (max(ends) - min(ends))
        fig.update_yaxes(range=[min(ends) - room, max(ends) + room], dtick=0.25, row=row, col=1)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside the range, with 2 and 5 between them where it is short."""
    steps = (1, 2, 5) if high - low < 1.7 else (1,)
    stride = max(1, math.ceil((high - low) / 7))
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [m * 10.0**p for p in powers if p % stride == 0 for m in steps]
    return [t for t in found if low <= math.log10(t) <= high]


def _wrapped(title: str) -> str:
    """A title on at most three lines, safe for plotly, which reads some HTML in texts."""
    lines = textwrap.wrap(title, TITLE_WIDTH, max_lines=3, placeholder=" …") or [""]
    return "<br>".join(_plain(line) for line in lines)


def _plain(text: str) -> str:
    return html.escape(text, quote=False)
