"""What does one prompt look like inside: the norm of every token at every depth, the pattern of a head?"""

import html
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens._optional import require
from mcr_lens.plots.panels import log_ticks
from mcr_lens.plots.theme import AXIS, RIGHT, SEQUENTIAL, depth_ticks, frame, plain, shortened
from mcr_lens.schema import require_closeup

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROW, LONGEST = 17, 12
"""Pixels of a token in a list, and its characters."""

LARGEST, LABEL = 420, 11
"""Pixels of the side of an attention pattern, at most, and of a token beside it."""

PHONE = 284
"""Pixels of the side of a pattern on a telephone."""

BAR = 62
"""Pixels of a colour bar with its labels."""

MARKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\xa0": "⍽"}
"""What stands for what cannot be seen."""


def visible(token: str) -> str:
    r"""A token with its white space and control characters made visible; "∅" for no characters at all.

    >>> visible(" the"), visible("\n\n"), visible("\u200b"), visible("")
    ('␣the', '↵↵', '\\u200b', '∅')
    """
    shown = (MARKS.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in token)
    return "".join(shown) or "∅"


def plot_token_norms(closeup: xr.Dataset, condition: str = "clean", *, dark: bool = False) -> "go.Figure":
    """Draw ‖xᵢ‖ of every token at every depth as a heat map: tokens from top to bottom, depth to the right.

    Colours are logarithmic. Hover over a cell for the token, its position, the norm, and how many times the
    median norm of its depth it is. White space is drawn as ␣, ↵, ⇥. A norm of 0 has no logarithm and is a
    gap, as is one that is not finite.

    Args:
        closeup: what `close_up` returns.
        condition: one of those it was taken under.
        dark: light on dark.

    Raises:
        ResultSchemaError: not what `close_up` returns.
        ValueError: a condition that it does not hold.
        ImportError: plotly is not installed.

    Source: this library, after arXiv 2402.17762, Fig. 1.
    """
    go = require("plotly.graph_objects", extra="plots")
    norms = _one(closeup, "token_norm", condition, "position", "depth")
    values = norms.values.astype(float)
    finite = np.where(np.isfinite(values), values, np.nan)
    positive = np.where(finite > 0, finite, np.nan)
    tokens, places = _tokens(closeup), closeup.position.values
    hover = np.empty((*values.shape, 4), object)
    hover[..., 0] = np.array([plain(token) for token in tokens], object)[:, None]
    hover[..., 1] = values
    hover[..., 2] = finite / [_median(column) for column in finite.T]
    hover[..., 3] = places[:, None]  # %{y} would be the label of the row, not its number
    fig = go.Figure(
        go.Heatmap(
            x=norms.depth.values, y=places, z=np.log10(positive), customdata=hover, hoverongaps=False,
            colorscale=SEQUENTIAL, colorbar=_norm_bar(positive),
            hovertemplate="<b>%{customdata[0]}</b> at position %{customdata[3]}, depth %{x}<br>norm "
            "%{customdata[1]:.4~g}: %{customdata[2]:.4~g} × the median of its depth<extra></extra>",
        )
    )  # fmt: skip
    labels = [shortened(token, LONGEST) for token in tokens]
    _frame(
        fig, title=str(closeup.attrs.get("model", "model")),
        subtitle=f"{condition}: {_prompt(closeup)}", colors="norm of the token (log)",
        inner=ROW * len(labels), labels=labels, above=AXIS, dark=dark,
    )  # fmt: skip
    n_layers = int(closeup.attrs.get("n_layers", closeup.depth.values[-1]))
    fig.update_yaxes(
        tickvals=places, ticktext=labels, range=[len(labels) - 0.5, -0.5], showgrid=False,
        tickfont_size=LABEL,
    )  # fmt: skip
    fig.update_xaxes(
        title_text=f"depth (0: before the blocks, {n_layers}: after)", tick0=0, dtick=depth_ticks(n_layers),
        showgrid=False, side="top",
    )  # fmt: skip
    return fig


def plot_pattern(
    closeup: xr.Dataset, shown: int = 0, condition: str = "clean", *, dark: bool = False
) -> "go.Figure":
    """Draw the attention pattern of one head: queries from top to bottom, the keys they attend to across.

    Colours run from 0 to the largest attention of this head under any condition, so that conditions can be
    laid side by side. Keys that a causal model hides are gaps, not zeros. Where there are many tokens, only
    every second (third, ...) is spelled; all of them when hovering.

    Args:
        closeup: what `close_up` returns with `heads`.
        shown: which of its heads, counted from 0 in the order in which they were asked for.
        condition: one of those it was taken under.
        dark: light on dark.

    Raises:
        ResultSchemaError: not what `close_up` returns, or no patterns.
        ValueError: a condition or a head that it does not hold.
        ImportError: plotly is not installed.

    Source: arXiv 2510.06477 (attention maps).
    """
    go = require("plotly.graph_objects", extra="plots")
    patterns = _one(closeup, "pattern", condition, "shown", "query", "key")
    many = patterns.sizes["shown"]
    if not isinstance(shown, int) or isinstance(shown, bool) or not 0 <= shown < many:
        heads = ", ".join(f"{i}: {_head(closeup, i)}" for i in range(many))
        raise ValueError(f"shown={as_shown(shown)} is not a head of this close-up; it holds {heads}")
    values = patterns.values[shown].astype(float)
    if closeup.attrs.get("attention") == "causal":
        values = np.where(np.tri(len(values), dtype=bool), values, np.nan)
    every = closeup.pattern.isel(shown=shown).values
    largest = float(every[np.isfinite(every)].max(initial=0)) or 1.0
    tokens, n = _tokens(closeup), len(values)
    spelled, places = np.array([plain(token) for token in tokens], object), np.arange(n)
    both = np.broadcast_arrays(spelled[:, None], spelled, places[:, None], places)
    hover = np.stack([part.astype(object) for part in both], -1)
    fig = go.Figure(
        go.Heatmap(
            x=places, y=places, z=values, zmin=0, zmax=largest, customdata=hover,
            hoverongaps=False, colorscale=SEQUENTIAL, colorbar={"nticks": 6},
            hovertemplate="<b>%{customdata[0]}</b> at %{customdata[2]} attends to <b>%{customdata[1]}</b> at "
            "%{customdata[3]}<br>%{z:.4~g}<extra></extra>",
        )
    )  # fmt: skip
    step = math.ceil(1.1 * LABEL * n / PHONE)
    labels = [shortened(token, LONGEST) for token in tokens[::step]]
    _frame(
        fig, title=f"{_head(closeup, shown)} of {closeup.attrs.get('model', 'model')}",
        subtitle=f"{condition}: {_prompt(closeup)}", colors="attention",
        inner=min(max(PHONE, ROW * n), LARGEST), labels=labels, above=_width(labels) + 34, dark=dark,
    )  # fmt: skip
    axis = {"tickvals": places[::step], "ticktext": labels, "tickfont_size": LABEL, "showgrid": False,
            "constrain": "domain"}  # fmt: skip
    fig.update_yaxes(title_text="query", range=[n - 0.5, -0.5], constraintoward="top", **axis)
    fig.update_xaxes(
        title_text="key", range=[-0.5, n - 0.5], constraintoward="left", scaleanchor="y", side="top",
        tickangle=-90, **axis,
    )  # fmt: skip
    return fig


def _one(closeup: Any, variable: str, condition: str, *axes: str) -> xr.DataArray:
    """One variable of a close-up under one condition, over these axes."""
    require_closeup(closeup, variable, "condition", *axes)
    names = [str(name) for name in closeup.condition.values]
    if not isinstance(condition, str) or condition not in names:
        raise ValueError(
            f"condition {as_shown(condition)} is not in the close-up; it holds {', '.join(names)}"
        )
    return closeup[variable].isel(condition=names.index(condition)).transpose(*axes)


def _tokens(closeup: xr.Dataset) -> list[str]:
    return [visible(str(token)) for token in closeup.token.values]


def _median(norms: np.ndarray) -> float:
    """The median of what is finite, NaN where there is none or it is zero."""
    known = norms[np.isfinite(norms)]
    return float(np.median(known)) or np.nan if known.size else np.nan


def _head(closeup: xr.Dataset, shown: int) -> str:
    return f"block {int(closeup.layer.values[shown])}, head {int(closeup['head'].values[shown])}"


def _prompt(closeup: xr.Dataset) -> str:
    """The beginning of the prompt, and how much of it was left out."""
    tokens = closeup.sizes["position"]
    whole = int(closeup.attrs.get("n_tokens", tokens))
    text = visible(" ".join(str(closeup.attrs.get("prompt", "")).split())).replace("␣", " ")
    cut = f"first {tokens} of {whole} tokens of " if whole > tokens else ""
    return f"{cut}“{text}”"


def _norm_bar(norms: np.ndarray) -> dict[str, Any]:
    """Ticks of a colour bar of logarithms, labelled with the norms."""
    known = np.log10(norms[np.isfinite(norms)])
    if not known.size:
        return {}
    ticks = log_ticks(float(known.min()), float(known.max())) or [10 ** float(known.mean())]
    return {"tickvals": np.log10(ticks), "ticktext": [f"{t:,.0f}" if t >= 1 else f"{t:g}" for t in ticks]}


def _width(labels: list[str]) -> int:
    """Pixels of the longest label."""
    return 10 + math.ceil(0.62 * LABEL * max((len(html.unescape(label)) for label in labels), default=1))


def _frame(
    fig: Any, *, title: str, subtitle: str, colors: str, inner: float | int, labels: list[str],
    above: float | int, dark: bool,
) -> None:  # fmt: skip
    """Frame a heat map of tokens, the colour bar above it: it stays in sight however long the list is."""
    left = _width(labels) + 34
    frame(
        fig, title=title, subtitle=subtitle, inner=inner, above=BAR + above, left=left, right=RIGHT, below=8,
        dark=dark,
    )  # fmt: skip
    fig.add_annotation(
        text=f"<b>{colors}</b>", x=0, xref="paper", xanchor="left", xshift=16 - left, y=1, yref="paper",
        yanchor="bottom", yshift=above + BAR - 22, showarrow=False, font={"size": 13},
    )  # fmt: skip
    top = fig.layout.margin.t - above - BAR + 20
    fig.update_traces(
        colorbar={
            "orientation": "h", "x": 0, "xanchor": "left", "xref": "paper", "lenmode": "pixels", "len": 240,
            "thickness": 10, "y": 1 - top / fig.layout.height, "yref": "container", "yanchor": "top",
            "ypad": 4, "xpad": 0, "tickfont_size": LABEL,
        }
    )  # fmt: skip
