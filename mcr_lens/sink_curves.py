"""How strong are the sinks at every threshold at once, and how strong would they be in uniform heads?

A sink rate depends on its threshold and, through the floor of the sink score, on the length of the prompt.
The curve over all thresholds, the area below it and what a uniform head would score depend on neither choice.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, check_threshold
from mcr_lens.schema import require_axes, require_single
from mcr_lens.summaries import _labelled

SCORES = ("sink_score", "strongest_sink_score", "early_sink_score")
"""Scores by head that lie between 0 and 1."""


def sink_curve(
    ds: xr.Dataset,
    thresholds: Sequence[float] | np.ndarray | None = None,
    *,
    variable: str = "sink_score",
    strict: bool = False,
) -> xr.DataArray:
    """Sink rate as a function of the threshold, by prompt, threshold and layer.

    (1/H) Σ_h 1[score ≥ τ] for every τ: at each threshold what `sink_rate` gives, without its warning about
    short prompts; `uniform_sink_score` is there for that. Falls from 1 at τ = 0 and never rises.

    Args:
        thresholds: numbers between 0 and 1; 0, 0.01, ..., 1 if left out.
        variable: "sink_score" (BOS), "strongest_sink_score" (any key) or "early_sink_score".
        strict: count only scores above τ.

    Raises:
        ResultSchemaError: not a result with prompts, several conditions, or the score was not measured.
        ValueError: another variable, no thresholds, or one outside 0..1.

    Source: this library, after arXiv 2510.06477 and arXiv 2604.11791, eq. 17.

    >>> mcr.sink_curve(ds, [0.0, 0.3]).mean(["prompt", "layer"]).values.round(2).tolist()
    [1.0, 0.34]
    """
    _check_score(variable)
    require_single(ds, variable)
    require_axes(ds, "prompt", "layer", "head", of=variable)
    try:
        taus = np.linspace(0, 1, 101) if thresholds is None else np.asarray(thresholds, dtype=float)
    except (TypeError, ValueError):
        taus = np.empty(0)  # no numbers at all
    if taus.ndim != 1 or not taus.size or not ((taus >= 0) & (taus <= 1)).all():
        raise ValueError("thresholds must be one or more numbers in a row, each between 0 and 1")
    scores = ds[variable].transpose("prompt", "layer", "head")
    values, known = scores.values, scores.notnull().sum("head").values
    rates = np.empty((len(values), len(taus), values.shape[1]))
    for i, tau in enumerate(taus.tolist()):  # a plain float is compared in the precision of the scores
        above = values > tau if strict else values >= tau
        rates[:, i] = above.sum(-1) / np.where(known, known, np.nan)
    axes = ("prompt", "threshold", "layer")
    curve = xr.DataArray(rates, dims=axes, coords=scores.isel(head=0, drop=True).coords)
    return _labelled(
        curve.assign_coords(threshold=taus), "sink_curve", "Sink rate", "1",
        "this library, after arXiv 2604.11791, eq. 17",
    )  # fmt: skip


def sink_area(ds: xr.Dataset, *, variable: str = "sink_score", above_uniform: bool = False) -> xr.DataArray:
    """Area under the sink curve, the integral of the sink rate over τ from 0 to 1, by prompt and layer.

    It equals the mean score of the heads, (1/H) Σ_h score_h, and is computed as such. With `above_uniform`
    what a uniform head scores is subtracted: 0 for heads that look evenly whatever the length of the prompt,
    negative for heads that look away from BOS. Heads that are NaN are left out.

    Args:
        variable: as `sink_curve`.
        above_uniform: subtract `uniform_sink_score`; only for "sink_score".

    Raises:
        ResultSchemaError: not a result with prompts, several conditions, or the score was not measured.
        ValueError: another variable, or `above_uniform` of a score whose baseline is not known.

    Source: this library.

    >>> int(mcr.sink_area(ds).mean("prompt").argmax("layer"))
    1
    """
    _check_score(variable)
    require_single(ds, variable)
    require_axes(ds, "prompt", "layer", "head", of=variable)
    area = ds[variable].astype(float).mean("head")
    if not above_uniform:
        return _labelled(area, "sink_area", "Area under the sink curve", "1", "this library")
    if variable != "sink_score":
        raise ValueError(
            f"above_uniform=True with variable={as_shown(variable)}: what a uniform head scores is known for "
            "'sink_score' only"
        )
    return _labelled(
        area - uniform_sink_score(ds), "sink_area_above_uniform",
        "Area under the sink curve above that of uniform heads", "1", "this library",
    )  # fmt: skip


def uniform_sink_score(ds: xr.Dataset) -> xr.DataArray:
    """Sink score of a head that attends to all keys it sees alike, by prompt and layer.

    H_n/n for BOS, with n the queries that see it (`sink_queries`: T, the window, or the chunk) and H_n the
    harmonic number: exact in all three cases, because those queries see 1, 2, ..., n keys. For a key at
    position p of T, (H_T − H_p)/(T − p), exact without a window; NaN where one hides the key from
    later queries. 1/T in an encoder, where every query sees every key (known by its architecture's
    name, *ForMaskedLM).

    Raises:
        ResultSchemaError: not a result with prompts, several conditions, or `sink_queries` was not measured.

    Source: this library, after arXiv 2510.06477; sink score as arXiv 2604.11791, eq. 16.

    >>> bool((mcr.uniform_sink_score(ds) < 0.1).all())
    True
    """
    require_single(ds, "sink_queries")
    seen = ds.sink_queries.transpose("prompt", "layer")
    tokens = ds.n_tokens.drop_vars([c for c in ds.n_tokens.coords if c != "prompt"])
    position = int(ds.attrs.get("position", 0))
    if str(ds.attrs.get("architecture", "")).endswith("ForMaskedLM"):
        score = 1 / seen
    else:
        longest = int(max(tokens.max(), seen.max()))
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, longest + 1))])
        last = (seen + position).values.astype(int)
        score = seen.copy(data=(harmonic[last] - harmonic[position]) / seen.values)
        if position:
            score = score.where(seen == tokens - position)
    return _labelled(score, "uniform_sink_score", "Sink score of a uniform head", "1", "this library")


def uniform_sink_rate(ds: xr.Dataset, threshold: float = 0.3, *, strict: bool = False) -> xr.DataArray:
    """Sink rate that uniform heads would have, by prompt and layer: 1 where they reach the threshold, else 0.

    Where it is 1, `sink_rate` at this threshold says nothing about sinks: the prompt is too short, or the
    window too small.

    Raises:
        ResultSchemaError: as `uniform_sink_score`.
        ValueError: a threshold outside 0..1.

    Source: this library.

    >>> float(mcr.uniform_sink_rate(ds).max())  # prompts are long enough for a threshold of 0.3
    0.0
    """
    check_threshold(threshold)
    score = uniform_sink_score(ds)
    above = score > threshold if strict else score >= threshold
    return _labelled(
        above.where(score.notnull()).astype(float), "uniform_sink_rate", "Sink rate of uniform heads", "1",
        "this library",
    )  # fmt: skip


def _check_score(variable: str) -> None:
    if str(variable) not in SCORES:
        raise ValueError(f"variable={as_shown(variable)}: pass one of {', '.join(map(repr, SCORES))}")
