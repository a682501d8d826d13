"""How are the explorer's figures drawn, brought up to date in place, and emptied?"""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._optional import require
from mcr_lens.closeup import CLEAN
from mcr_lens.plots.theme import PALETTE, SEQUENTIAL, color_bar, frame, shortened

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDTH = 510
"""Pixels of every figure: inside a widget a figure cannot tell how much room it has."""

TICKS = 24
"""At most so many tokens are written along an axis of a pattern."""


def new_figure() -> Any:
    """An empty `FigureWidget`."""
    go: Any = require("plotly.graph_objects", extra="notebook")
    return go.FigureWidget(layout={"width": WIDTH, "height": 300})


def redraw(figure: Any, wanted: "go.Figure") -> None:
    """Give a `FigureWidget` the content of another figure, in place."""
    layout = wanted.layout.to_plotly_json() | {"width": WIDTH}
    gone = {part: None for part in figure.layout.to_plotly_json() if part not in layout}
    old = len(figure.data)
    if gone:
        figure.plotly_relayout(gone)
    figure.update_layout(layout, overwrite=True)
    figure.add_traces([_sendable(trace) for trace in wanted.data])
    figure.data = figure.data[old:]
    _keep(figure)


def empty(figure: Any) -> None:
    """Leave nothing of what a figure says; its axes and its size stay, so that nothing jumps."""
    figure.data = ()
    figure.update_layout(title=None, annotations=[], shapes=[])
    _keep(figure)


def _keep(figure: Any) -> None:
    """Write down what a figure shows, for whoever opens the notebook next.

    plotly sends changes to the views that are open. A view that is opened later, as after the page was
    loaded again, begins with these two, which plotly fills when it makes the figure and never again.
    """
    figure._widget_data = [trace.to_plotly_json() for trace in figure.data]
    figure._widget_layout = figure.layout.to_plotly_json()


def frame_head(figure: Any, layer: int, head: int) -> None:
    """Draw a frame around one head of a map of heads, and around no other."""
    cell = {
        "type": "rect", "x0": head - 0.5, "x1": head + 0.5, "y0": layer - 0.5, "y1": layer + 0.5,
        "line": {"color": PALETTE[0], "width": 3},
    }  # fmt: skip
    figure.layout.shapes = [cell]
    _keep(figure)


def plot_pattern(closeup: xr.Dataset, *, condition: str, position: int, dark: bool) -> "go.Figure":
    """Draw the first pattern of a close-up, queries down, keys across; the column of `position` is framed."""
    go: Any = require("plotly.graph_objects", extra="notebook")
    pattern = closeup.pattern.isel(shown=0).sel(condition=condition).values
    layer, head = int(closeup["layer"][0]), int(closeup["head"][0])
    tokens = [shortened(visible(str(token)), 12) for token in closeup.token.values]
    n, names = len(tokens), [f"{i} {token}" for i, token in enumerate(tokens)]
    places = range(0, n, -(-n // TICKS))
    axis = {"type": "category", "tickvals": [names[i] for i in places], "tickfont": {"size": 10},
            "ticktext": [tokens[i] for i in places], "showgrid": False}  # fmt: skip
    fig = go.Figure(
        go.Heatmap(
            z=pattern, x=names, y=names, zmin=0, zmax=1, colorscale=SEQUENTIAL,
            colorbar=color_bar((0, 1), "attention"),
            hovertemplate="query %{y}<br>key %{x}<br>attention <b>%{z:.3f}</b><extra></extra>",
        )
    )  # fmt: skip
    under = "" if condition == CLEAN else f", {condition}"
    frame(
        fig, title=f"Attention of head {head} in layer {layer}", subtitle=f"{closeup.attrs['model']}{under}",
        inner=330, left=84, right=84, below=96, dark=dark,
    )  # fmt: skip
    fig.update_xaxes(title={"text": "key"}, range=[-0.5, n - 0.5], tickangle=-90, **axis)
    fig.update_yaxes(title={"text": "query"}, range=[n - 0.5, -0.5], **axis)
    fig.add_vrect(x0=position - 0.5, x1=position + 0.5, line={"color": PALETTE[0], "width": 1})
    return fig


def visible(token: str) -> str:
    """A token whose blanks can be seen."""
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "(empty)"


def _sendable(trace: Any) -> Any:
    """The trace with None for NaN in its tables, which the messages of Jupyter do not take."""
    for name in ("customdata", "z"):
        table = getattr(trace, name, None)
        if isinstance(table, np.ndarray) and table.ndim > 1 and table.dtype.kind == "f":
            sent = table.astype(object)
            sent[np.isnan(table)] = None
            trace[name] = sent
    return trace
