"""Where does the attention of each block go: to BOS, to the token itself, to the one before, elsewhere?"""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._optional import require
from mcr_lens.plots.panels import Legend, add_line, dress_depth
from mcr_lens.plots.profile import shades
from mcr_lens.plots.series import line_of, mean_and_interval, read_series
from mcr_lens.plots.theme import PALETTE, PHASES, frame, panel_title, wrapped
from mcr_lens.reading import subject
from mcr_lens.schema import require_single

if TYPE_CHECKING:
    import plotly.graph_objects as go

NEEDED = (
    "sink_identity_index", "sink_identity_mass", "identity_score", "previous_token_score", "sink_score",
    "sink_queries", "row_mass",
)  # fmt: skip
"""What the split is computed from."""

COLORS = {
    "sink": PALETTE[0],
    "self": PALETTE[1],
    "previous": PALETTE[5],
    "other": "#999999",
    "nowhere": PALETTE[3],
}
"""Colour of each share; what is left has none of its own."""

LOST = 0.01
"""A row sum that lacks less than this in every block is rounding: a softmax."""

LABELS = {
    "sink": "Attention to BOS",
    "self": "Attention of a token to itself",
    "previous": "Attention to the token before",
    "other": "Attention to other tokens",
    "nowhere": "Attention to no token (learned sink logit)",
    "overlap": "How much of the attention to the token before may be attention to BOS",
}

HEIGHT, MIXING = 300, 130
"""Pixels of the inside of the two panels."""

STRIP = 0.07
"""Height of the strip of phases above the shares, which hide what is behind them."""


def attention_shares(ds: xr.Dataset) -> xr.Dataset:
    """How the attention of the queries t ≥ 1 splits, by prompt, layer and head; the shares sum to 1.

    `sink`: (1/(T − 1)) Σ_{t ≥ 1} A_t0, which is SVI (S + I) (n − 1)/(T − 1), n the queries that see BOS (T
    without a window). `self`: mean A_tt, the identity score. `previous`: mean A_{t,t−1}. `other`: what is
    left of the row sums, and `nowhere` what the row sums lack to 1 (learned sink logits; 0 for a softmax).
    The row of the first query is taken out of the row sums exactly: it holds A_00 = n s − (n − 1) S, with s
    the sink score.

    Query 1 has BOS for its previous token, and A_10 belongs to `sink`. The result does not hold that number
    by itself, so `previous` still contains it, except for what the row sums forbid, and `other` lacks it:
    `overlap`, at most 1/(T − 1), says by how much at most. A measured position p other than 0 stands for BOS
    in the same way, with query p + 1; `nowhere` is then exact to 1/(T − 1) where it is not 0.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or one of the scores was not
            measured.

    Source: this library, after arXiv 2510.06477 (sink, identity and previous-token heads).
    """
    require_single(ds, *NEEDED)
    part = {name: ds[name].astype(float) for name in NEEDED}
    tokens = ds.n_tokens.drop_vars([c for c in ds.n_tokens.coords if c != "prompt"]).astype(float)
    later = (tokens - 1).where(tokens > 1)  # a prompt of one token has no query but BOS itself
    mass, seen = part["sink_identity_mass"], part["sink_queries"]
    to_bos = (part["sink_identity_index"] * mass).where(mass > 0, mass * 0)
    sink = to_bos * (seen - 1) / later
    own, before = part["identity_score"], part["previous_token_score"]
    whole = part["row_mass"]
    if float((1 - whole).max()) > LOST:
        if not int(ds.attrs.get("position", 0)):
            whole = (tokens * whole - (seen * part["sink_score"] - (seen - 1) * to_bos)) / later
        whole = whole.clip(0, 1)
    else:
        whole = xr.ones_like(whole).where(whole.notnull())
    left = (whole - sink - own).clip(0)
    found = {
        "sink": sink, "self": own, "previous": np.minimum(before, left),
        "other": (left - before).clip(0), "nowhere": 1 - whole,
    }  # fmt: skip
    most = np.minimum(np.minimum(sink, before), 1 / later)
    found["overlap"] = most - (before - left).clip(0)
    known = np.isfinite(sum(found.values()))
    return xr.Dataset(
        {
            name: array.where(known)
            .rename(name)
            .transpose("prompt", "layer", "head")
            .assign_attrs(long_name=LABELS[name], units="1", source="this library, after arXiv 2510.06477")
            for name, array in found.items()
        },
        attrs=ds.attrs,
    )


def plot_attention_shares(ds: xr.Dataset, *, dark: bool = False) -> "go.Figure":
    """Draw how the attention of each block splits, and below it the mixing score, phases shaded.

    Shares as `attention_shares`, mean over heads and prompts: BOS, the token itself, the token before,
    others, and nowhere where learned sink logits take mass. Block l stands between depths l and l + 1. The
    first query is left out; where query 1 looks at BOS, which is also its previous token, is known only
    within bounds, so "the token before" may hold attention to BOS: the subtitle says how much at most. The
    mixing score is drawn where it was measured.

    Args:
        ds: what `measure`, `load` or `condition` returns.
        dark: light on dark.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or one of the scores was not
            measured.
        ValueError: prompts of one token only, or no finite score.
        ImportError: plotly is not installed.

    Source: this library, after arXiv 2510.06477 (phases; sink, identity and previous-token heads).
    """
    shares = attention_shares(ds)
    if not shares.sink.notnull().any():
        single = bool((ds.n_tokens < 2).all())
        why = "every prompt has a single token, which attends to itself" if single else "no score is finite"
        raise ValueError(f"{why}; measure longer prompts, in a precision that holds their activations")
    subplots = require("plotly.subplots", extra="plots")
    series = read_series(ds)
    mixing = "mixing_score" in ds
    missing = "" if mixing else " (mixing score: not measured)"
    titles = [
        wrapped(f"Where the attention of a block goes{missing}"),
        wrapped("Mixing score: row entropy / its maximum"),
    ]
    room = 44 + 17
    inner = HEIGHT + (room + MIXING if mixing else 0)
    share = [HEIGHT, MIXING] if mixing else [HEIGHT]
    fig = subplots.make_subplots(
        rows=len(share), cols=1, shared_xaxes=True, row_heights=share,
        vertical_spacing=room / inner if mixing else 0,
    )  # fmt: skip
    names = _add_shares(fig, shares, subject(ds))
    if mixing:
        line = line_of(ds.mixing_score, series[0], color=PALETTE[2])
        add_line(fig, line, 2, Legend((), bare="", band=""), relative=False)
        fig.update_yaxes(title={"text": "score"}, range=[-0.04, 1.04], dtick=0.5, row=2, col=1)
    names += _add_phases(fig, shades(series, "auto"), len(share))
    for row, text in enumerate(titles[: len(share)], start=1):
        panel_title(fig, text, y=fig.get_subplot(row, 1).yaxis.domain[1])
    frame(
        fig, title=str(ds.attrs.get("model", "model")), subtitle=_subtitle(ds, shares),
        inner=inner, above=room - 24, legend=names, dark=dark,
    )  # fmt: skip
    fig.update_layout(barmode="stack", bargap=0)
    fig.update_yaxes(title={"text": "share of attention"}, range=[0, 1 + STRIP], dtick=0.25, row=1, col=1)
    dress_depth(fig, len(share), n_layers=int(ds.attrs["n_layers"]), relative=False)
    return fig


def _subtitle(ds: xr.Dataset, shares: xr.Dataset) -> str:
    many = ds.sizes["prompt"]
    most = percent(float(shares.overlap.mean(["prompt", "head"]).max()))
    return (
        f"mean over heads and {many} prompt{'' if many == 1 else 's'}; up to {most} counted as the token "
        f"before may be {subject(ds)}"
    )


def percent(share: float) -> str:
    """A share in percent.

    >>> percent(0.0123), percent(0.5)
    ('1.2 %', '50.0 %')
    """
    return f"{100 * share:.1f} %"


def _add_shares(fig: Any, shares: xr.Dataset, name: str) -> list[str]:
    go = require("plotly.graph_objects", extra="plots")
    texts = {
        "sink": name, "self": "the token itself", "previous": "the token before", "other": "other tokens",
        "nowhere": "no token (learned sink)",
    }  # fmt: skip
    drawn = [part for part in texts if part != "nowhere" or float(shares.nowhere.max()) > 0]
    blocks = shares.layer.values
    overlap = mean_and_interval(shares.overlap)[0]
    for part in drawn:
        mean, low, high = mean_and_interval(shares[part])
        words = [f"<b>{percent(m)}</b>" for m in mean]
        if np.isfinite(low).any():
            words = [f"{w} ({percent(a)} to {percent(b)})" for w, a, b in zip(words, low, high, strict=True)]
        if part == "previous":
            words = [f"{w}<br>up to {percent(o)} may be {name}" for w, o in zip(words, overlap, strict=True)]
        fig.add_trace(
            go.Bar(
                x=blocks + 0.5, y=mean, width=1, name=texts[part], legendgroup=part,
                marker={"color": COLORS[part], "line_width": 0}, hoverinfo="text",
                hovertext=[f"block {b}, {texts[part]}<br>{w}" for b, w in zip(blocks, words, strict=True)],
            ),
            row=1, col=1,
        )  # fmt: skip
    return [texts[part] for part in drawn]


def _add_phases(fig: Any, spans: list[tuple[str, float, float]], rows: int) -> list[str]:
    """A strip above the shares and a shade behind the mixing score; the names for the legend."""
    for name, start, end in spans:
        strip = PHASES[name].rsplit(",", 1)[0] + ", 0.7)"
        fig.add_shape(
            type="rect", x0=start, x1=end, y0=1 + 0.2 * STRIP, y1=1 + 0.8 * STRIP, row=1, col=1, line_width=0,
            fillcolor=strip, name=name, legendgroup=f"phase {name}", showlegend=True,
        )  # fmt: skip
        if rows > 1:
            fig.add_vrect(
                x0=start, x1=end, row=2, col=1, layer="below", line_width=0, fillcolor=PHASES[name],
                legendgroup=f"phase {name}", showlegend=False,
            )  # fmt: skip
    return [name for name, _, _ in spans]
