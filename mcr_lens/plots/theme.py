"""How does every figure look: colours, type, titles, legends, sizes, in light and in dark?

Whatever depends on light or dark stands in the template, so that a figure changes with its template alone.
plotly is imported when a figure is drawn.
"""

import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mcr_lens._optional import require

if TYPE_CHECKING:
    import plotly.graph_objects as go

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that stay apart for colour-blind readers (Okabe and Ito), without black and yellow."""

DASHES = ("solid", "dash", "dot", "dashdot")
"""Tell lines apart once the colours are used up."""

SEQUENTIAL = "Cividis"
"""Scale of heat maps from low to high, even for colour-blind readers and in grey."""

DIVERGING = "RdBu"
"""Scale of heat maps with two ends and a middle."""

BY_BLOCK = ((0.0, "#0072B2"), (0.5, "#CC79A7"), (1.0, "#E69F00"))
"""Scale of thin lines from the first block to the last, visible on light and on dark."""

PHASES = {
    "mix": "rgba(86, 180, 233, 0.16)",
    "compress": "rgba(230, 159, 0, 0.18)",
    "refine": "rgba(0, 158, 115, 0.16)",
}
"""Shades of the three phases, behind the lines."""

GREY = "#808080"
CLEAR = "rgba(0, 0, 0, 0)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

TITLE_WIDTH, SUBTITLE_WIDTH, NARROWEST = 42, 52, 308
"""Characters in a line of a title and of a subtitle, and pixels of a legend, that fit a telephone.

A legend is never wider than the plotting area."""

LEFT, RIGHT, AXIS = 66, 16, 56
"""Pixels: left of the axes, right of them, and below them for tick labels and the axis title."""

BAR = 82
"""Pixels right of the axes for a vertical colour bar with ticks and a title."""

AWAY = ("sendChartToCloud", "sendDataToCloud")
"""Buttons that would send a figure, with its numbers, to somebody's server."""

LIGHT_COLORS = {
    "text": "#1d2129",
    "paper": "#ffffff",
    "grid": "rgba(128, 128, 128, 0.22)",
    "hover": "#ffffff",
}
DARK_COLORS = {"text": "#e6e9ee", "paper": "#1c2027", "grid": "rgba(128, 128, 128, 0.32)", "hover": "#2a303a"}


def template(dark: bool = False) -> "go.layout.Template":
    """The plotly template of all figures."""
    go = require("plotly.graph_objects", extra="plots")
    color = DARK_COLORS if dark else LIGHT_COLORS
    axis = {
        "gridcolor": color["grid"], "linecolor": GREY, "zeroline": False, "ticks": "outside", "ticklen": 4,
        "tickcolor": GREY, "title": {"standoff": 8, "font": {"size": 13}},
    }  # fmt: skip
    bar = {"outlinewidth": 0, "ticks": "outside", "ticklen": 3, "tickcolor": GREY}
    layout = {
        "font": {"family": FONT, "size": 13, "color": color["text"]},
        "paper_bgcolor": color["paper"], "plot_bgcolor": color["paper"], "colorway": list(PALETTE),
        "xaxis": axis, "yaxis": axis, "hovermode": "closest", "autosize": True,
        "hoverlabel": {"bgcolor": color["hover"], "bordercolor": GREY, "align": "left",
                       "font": {"family": FONT, "size": 13, "color": color["text"]}},
        "coloraxis": {"colorbar": bar},
        "modebar": {"bgcolor": CLEAR, "color": GREY, "activecolor": PALETTE[1],
                    "remove": ["select2d", "lasso2d", *AWAY]},
    }  # fmt: skip
    return go.layout.Template(layout=layout, data={"heatmap": [{"colorbar": bar}]})


def frame(
    fig: Any, *, title: str, subtitle: str = "", inner: float | int, dark: bool,
    legend: Sequence[str] = (), above: float | int = 0, left: float | int = LEFT, right: float | int = RIGHT,
    below: float | int = AXIS,
) -> None:  # fmt: skip
    """Give a figure template, title, legend and height, so that nothing overlaps at any width.

    `layout.meta` keeps title and subtitle as they came, and the pixels that they take.

    Args:
        fig: the figure.
        title, subtitle: what is drawn, and of what; escaped, wrapped and cut here.
        inner: pixels of the plotting area, from the top of its first axes to the bottom of its last.
        dark: light on dark.
        legend: the names in the legend, as drawn, to make room for as many lines as a telephone needs.
        above: pixels between title and plotting area, for titles of panels.
        left, right, below: pixels beside and below the plotting area, for ticks, axis titles, colour bars.
    """
    lines = wrapped(title, TITLE_WIDTH, 2)
    small = wrapped(subtitle, SUBTITLE_WIDTH, 2) if subtitle else ""
    text = f"<b>{lines}</b>" + (f'<br><span style="font-size:12px">{small}</span>' if small else "")
    title_height = 10 + 20 * (lines.count("<br>") + 1) + 17 * (small.count("<br>") + 1 if small else 0)
    top = title_height + 14 + above
    legend_height = 20 * legend_rows(legend) + 12 if legend else 6
    height = top + inner + below + legend_height
    fig.update_layout(
        template=template(dark), autosize=True, height=height,
        margin={"l": left, "r": right, "t": top, "b": below + legend_height, "autoexpand": False},
        title={"text": text, "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container",
               "yanchor": "top", "pad": {"l": 16, "t": 24}, "font": {"size": 15}},
        showlegend=bool(legend), meta={"title": title, "subtitle": subtitle, "title_height": title_height},
        legend={"orientation": "h", "x": 0, "xref": "container", "xanchor": "left", "yref": "container",
                "y": legend_height / height, "yanchor": "top", "tracegroupgap": 0, "font": {"size": 12.5},
                "bgcolor": CLEAR, "title": {"text": ""}},
    )  # fmt: skip


def without_title(fig: Any) -> dict[str, str]:
    """Take the title away, with the room it takes, for a page that sets it in its own type.

    Returns title and subtitle, as they came: not safe as HTML.
    """
    layout, about = fig.layout, fig.layout.meta
    height = layout.height - about["title_height"]
    placed = [layout.legend, layout.coloraxis.colorbar, *(getattr(t, "colorbar", None) for t in fig.data)]
    for part in placed:  # what is placed in the whole figure stays as far from its lower edge
        if part is not None and part.yref == "container" and part.y is not None:
            part.y = part.y * layout.height / height
    fig.update_layout(title=None, meta=None, height=height, margin_t=layout.margin.t - about["title_height"])
    return {"title": about["title"], "subtitle": about["subtitle"]}


def legend_rows(names: Sequence[str]) -> int:
    """How many lines a legend needs on a telephone, filled from left to right."""
    rows, used = 0, float("inf")
    for name in names:
        width = len(html.unescape(name)) * 7.5 + 43
        if used + width > NARROWEST:
            rows, used = rows + 1, 0
        used += width
    return rows


def panel_title(fig: Any, text: str, *, x: float | int = 0, y: float | int, left: float | int = LEFT) -> None:
    """A bold title above a panel whose upper left corner is (x, y) in the coordinates of the paper.

    `text` must be safe already: see `wrapped`.
    """
    fig.add_annotation(
        text=f"<b>{text}</b>", x=x, y=y, xref="paper", yref="paper", xanchor="left", yanchor="bottom",
        xshift=16 - left, yshift=4, showarrow=False, align="left", font={"size": 13},
    )  # fmt: skip


def color_bar(domain: Sequence[float | int], text: str, **more: Any) -> dict[str, Any]:
    """A vertical colour bar beside the panel that spans this part of the paper; leave `BAR` pixels for it.

    `text` must be safe already: see `plain`.
    """
    return {
        "x": 1, "xref": "paper", "xanchor": "left", "xpad": 8, "thickness": 12, "ypad": 0,
        "y": (domain[0] + domain[1]) / 2, "len": domain[1] - domain[0], "lenmode": "fraction",
        "title": {"text": text, "side": "right", "font": {"size": 12}}, "tickfont": {"size": 11}, **more,
    }  # fmt: skip


def depth_ticks(n: int, most: int = 10) -> int:
    """Step between the ticks of an axis of depths or layers, so that there are at most `most`."""
    return next(s for s in (1, 2, 4, 5, 8, 10, 20, 25, 50, 100, max(n, 1)) if n / s <= most)


def series_color(number: int) -> str:
    """Colour of the line with this number."""
    return PALETTE[number % len(PALETTE)]


def series_dash(number: int) -> str:
    """Dash of the line with this number: solid until the colours are used up."""
    return DASHES[number // len(PALETTE) % len(DASHES)]


def faded(color: str, alpha: float | int) -> str:
    """A colour of the palette with this opacity, from 0 to 1.

    >>> faded("#D55E00", 0.5)
    'rgba(213, 94, 0, 0.5)'
    """
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha:g})"


def wrapped(text: str, width: int = TITLE_WIDTH, lines: int = 3) -> str:
    """A text on at most so many lines, safe for plotly, which reads some HTML in texts.

    >>> wrapped("a <b>bold</b> text that is too long", 14, 2)
    'a &lt;b&gt;bold&lt;/b&gt;<br>text that is …'
    """
    parts = textwrap.wrap(" ".join(text.split()), width, max_lines=lines, placeholder=" …") or [""]
    return "<br>".join(plain(part) for part in parts)


def shortened(text: str, width: int) -> str:
    """A text cut to so many characters, safe for plotly.

    >>> shortened("meta-llama/Llama-3.1-8B", 12)
    'meta-llama/…'
    """
    one = " ".join(text.split())
    return plain(one if len(one) <= width else one[: width - 1] + "…")


def plain(text: str) -> str:
    """A text from outside as plotly should show it: as it is, whatever HTML it holds."""
    return html.escape(str(text), quote=False)


def make_room(fig: Any, pixels: float | int, *, above: bool = False) -> tuple[float, float]:
    """Make a framed figure so many pixels taller below its axes, or above them, and leave the rest as it is.

    Returns where the new room begins and ends, in the coordinates of the paper. Axes must have a domain.
    """
    layout = fig.layout
    before = layout.height - layout.margin.t - layout.margin.b
    after = before + pixels
    shift = 0.0 if above else pixels / after
    for axis in fig.select_yaxes():
        axis.domain = [shift + before / after * end for end in axis.domain]
    for note in layout.annotations:
        if note.yref == "paper":
            note.y = shift + before / after * note.y
    layout.legend.y = layout.legend.y * layout.height / (layout.height + pixels)
    layout.height += pixels
    return (before / after, 1.0) if above else (0.0, shift)
