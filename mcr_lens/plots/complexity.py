"""Do heads sink more, or less, on prompts that are harder?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._optional import require
from mcr_lens.plots.panels import HEIGHT, Legend, Line, Panel, draw
from mcr_lens.plots.theme import AXIS, GREY, faded, make_room, panel_title, plain, series_color, shortened
from mcr_lens.reading import number, subject
from mcr_lens.resampling import bootstrap
from mcr_lens.results import require_single

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEWEST = 5
"""Prompts below which a rank correlation says nothing: of four, one order in twelve is ±1 by chance."""

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
    lengths a correlation may be that of length, and the subtitle says so. Correlate with "n_tokens" to see.

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
    require_single(ds, "sink_score")
    if ds.sizes["prompt"] < FEWEST:
        raise ValueError(
            f"the result holds {ds.sizes['prompt']} prompts, and a correlation over prompts needs at least "
            f"{FEWEST}; measure more"
        )
    values, label, units = _complexity(ds, complexity)
    if np.ptp(values) == 0:
        raise ValueError(
            f"the complexity is {number(float(values[0]))} for every prompt, so nothing can go with it; pass "
            "one that differs"
        )
    means = ds.sink_score.astype(float).mean("head").transpose("prompt", "layer")
    scores = means.reindex(layer=np.arange(ds.attrs["n_layers"])).values  # a gap where a layer is left out
    found = [_correlation(values, column) for column in scores.T]
    rho, low, high = (np.array(part) for part in zip(*found, strict=True))
    return _draw(ds, values, scores, (rho, low, high), (label, units), dark=dark)


def _complexity(ds: xr.Dataset, given: Any) -> tuple[np.ndarray, str, str]:
    """One finite number per prompt, with label and units."""
    array, what = given, "complexity"
    if given is None:
        if "next_token_loss" not in ds:
            raise ValueError(
                "the result has no next_token_loss to take for complexity; measure with "
                'metrics=["default", "next_token_loss"], or pass complexity= (one number per prompt)'
            )
        given = "next_token_loss"
    if isinstance(given, str):
        what = f"complexity={given!r}"
        names = [str(n) for n in [*ds.data_vars, *ds.coords]
                 if ds[n].dims == ("prompt",) and ds[n].dtype.kind in "fiub" and n != "prompt"]  # fmt: skip
        if given not in names:
            raise ValueError(f"{what} is not a number per prompt of this result; it has {', '.join(names)}")
        array = ds[given]
    about = getattr(array, "attrs", {})
    named = {"next_token_loss": "next-token loss"}.get(given, given) if isinstance(given, str) else None
    label = named or about.get("long_name", getattr(array, "name", None) or "complexity")
    hashes = getattr(array, "coords", {}).get("prompt_hash")
    if hashes is not None and not np.array_equal(hashes.values, ds.prompt_hash.values):
        raise ValueError(
            f"{what} is of other prompts than the result, or of these in another order; pass numbers of the "
            "same prompts"
        )
    values = np.asarray(array)
    if values.dtype.kind not in "fiub" or values.shape != (ds.sizes["prompt"],):
        raise ValueError(
            f"{what} holds {values.dtype} of shape {values.shape}; pass one number for each of the "
            f"{ds.sizes['prompt']} prompts"
        )
    values = values.astype(float)
    if not np.isfinite(values).all():
        wrong = np.flatnonzero(~np.isfinite(values)).tolist()
        which, them = (f"prompt {wrong[0]}", "it") if len(wrong) == 1 else (
            f"prompts {', '.join(map(str, wrong[:5]))}{', ...' if len(wrong) > 5 else ''}", "them"
        )  # fmt: skip
        raise ValueError(
            f"{what} is not a finite number for {which}; leave {them} out first, for example with "
            "ds.isel(prompt=...)"
        )
    return values, str(label), str(about.get("units", "1"))


def _correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's ρ with its interval; NaN where a score is, or where all are the same."""
    if not np.isfinite(y).all():
        return np.nan, np.nan, np.nan
    # Places among the different values: as good as the values, and quick to rank again in every resample.
    places = (np.unique(values, return_inverse=True)[1] for values in (x, y))
    interval = bootstrap(_spearman_of_places, *places, resamples=RESAMPLES)
    return interval.value, interval.low, interval.high


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the ranks; NaN where one side is all the same.

    Source: Spearman 1904; ties by their mean rank.

    >>> _spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40]))
    0.8
    """
    return _spearman_of_places(*(np.unique(values, return_inverse=True)[1] for values in (x, y)))


def _spearman_of_places(x: np.ndarray, y: np.ndarray) -> float:
    a, b = _ranks(x), _ranks(y)
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip((a @ b) / scale, -1, 1)) if scale > 0 else np.nan


def _ranks(places: np.ndarray) -> np.ndarray:
    """Ranks around their mean; `places` are whole numbers from 0, equal ones get their mean rank."""
    counts = np.bincount(places)
    return (np.cumsum(counts) - (counts - 1) / 2)[places] - (len(places) + 1) / 2


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
