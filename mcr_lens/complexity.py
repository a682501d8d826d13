"""Do heads sink more, or less, on prompts that are harder, and which heads sleep on some prompts only?"""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, check_seed, check_threshold
from mcr_lens.ranks import correlate, partial_spearman, spearman
from mcr_lens.resampling import check_level
from mcr_lens.schema import SCHEMA, require_axes, require_single

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 5
"""Prompts below which a rank correlation says nothing: of four, one order in twelve is ±1 by chance."""

SOURCE = (
    "arXiv 2510.06477, Fig. 5 (reconstruction: complexity, averaging, matching and correlation are this "
    "library's)"
)


def complexity_response(
    ds: xr.Dataset,
    complexity: Any = None,
    *,
    matched: bool = True,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Spearman's ρ between the complexity of the prompts and how much each layer sinks, and mixes, on them.

    ρ is Pearson's correlation of the ranks, ties by their mean rank, over prompts; scores are averaged over
    heads first. Sink scores fall with the number of queries and losses with the context, so prompts of
    different lengths correlate by their lengths alone. With `matched`, and z = n_tokens,

        ρ = (ρ_xy − ρ_xz ρ_yz) / √((1 − ρ_xz²)(1 − ρ_yz²)),

    the partial Spearman correlation, which asks what is left at equal length; 0 where length explains x or y
    wholly, since then nothing is left. It takes out what is linear in the ranks of the lengths. Where all
    lengths are equal it is ρ_xy, to the last bit. Better than any formula are prompts of one length:
    `measure(model, prompts, ["default", "next_token_loss"], max_length=n)` with prompts of n tokens and more.

    Args:
        ds: what `measure`, `load` or `condition` returns, of five prompts or more.
        complexity: one number per prompt: the name of a variable or coordinate, an array (a difficulty of
            your own), or None for `next_token_loss`, the model's own loss in nats per token.
        matched: take the length of the prompts out where it differs.
        level, resamples, seed: of the intervals, as `bootstrap` (BCa, over prompts, each layer by itself).

    Returns:
        Variables `correlation` [layer] of the sink score with `correlation_low`, `correlation_high`; where
        `mixing_score` was measured the same of it: `mixing_correlation`, `mixing_correlation_low`,
        `mixing_correlation_high`; and `head_correlation` [layer, head] of each head's own sink score. NaN
        where a score is not finite or the same on every prompt. Attributes `complexity`, `method` (what was
        done about length) and `n_prompts`.

    Raises:
        ResultSchemaError: not a result, several conditions, or no `sink_score`.
        ValueError: fewer than five prompts, no complexity, one that is not a finite number for every prompt
            or is the same for all of them, a level outside 0..1, fewer than 100 resamples.

    Source: arXiv 2510.06477, Fig. 5 (reconstruction: protocol not found; complexity, averaging, matching and
    correlation are this library's).
    """
    check_level(level, resamples)
    check_seed(seed)
    values, label, _ = read_complexity(ds, complexity)
    lengths = np.asarray(ds.n_tokens.values, float)
    uneven = bool(np.ptp(lengths) > 0)
    given = lengths if matched and uneven else None
    options = {"level": level, "resamples": resamples, "seed": seed}
    found = xr.Dataset(coords={"layer": ds.layer.values})
    for variable, name in (("sink_score", "correlation"), ("mixing_score", "mixing_correlation")):
        if variable in ds:
            columns = layer_scores(ds, variable).T
            parts = np.array([correlate(values, column, given, **options) for column in columns])
            what = f"Spearman's ρ of complexity and {ds[variable].attrs.get('long_name', variable)}"
            for ending, part, end in zip(("", "_low", "_high"), parts.T, ("", "lower", "upper"), strict=True):
                text = f"{what}: {end} end of the {level:.4g} interval" if end else what
                found[f"{name}{ending}"] = ("layer", part, _about(text))
    scores = ds.sink_score.astype(float).transpose("layer", "head", "prompt")
    heads = [[_rho(values, head, given) for head in layer] for layer in scores.values]
    found["head_correlation"] = (
        ("layer", "head"), np.array(heads).reshape(scores.shape[:2]),
        _about("Spearman's ρ of complexity and the head's sink score"),
    )  # fmt: skip
    found = found.assign_coords(head=ds["head"].values)
    method = "partial Spearman given n_tokens" if given is not None else "Spearman, lengths differ"
    return found.assign_attrs(
        schema=SCHEMA,
        kind="complexity response",
        model=str(ds.attrs.get("model", "model")),
        complexity=label,
        method=method if uneven else f"Spearman, all prompts have {int(lengths[0])} tokens",
        n_prompts=ds.sizes["prompt"],
        **options,
    )


def dormant_heads(ds: xr.Dataset, *, threshold: float = 0.3, top: int = 3) -> "pd.DataFrame":
    """Heads that sleep on some prompts and wake on others: their sink score depends on the input.

    A head is dormant on a prompt where its `sink_score`, the mean attention of the queries to BOS, is at
    least `threshold`, and awake where it is below. Heads that are both, on different prompts, are listed,
    the widest spread first. Prompts where the score is NaN do not count.

    Prompts of different lengths: the score is a mean over queries, and the first of them can look at nothing
    but BOS, so a head falls below the threshold on long prompts that sinks on short ones. A head whose
    `length_correlation` is near −1 may be listed for that alone; `measure(..., max_length=n)` cuts prompts
    to one length.

    Args:
        ds: what `measure`, `load` or `condition` returns.
        threshold: mean attention to BOS, above 0 and at most 1, from which on a head is dormant.
        top: how many of the prompts that wake the head most (lowest score first) are named.

    Returns:
        One line per head: `layer`, `head`, `share` of the prompts on which it is dormant, `spread` (the
        standard deviation of the score over prompts), `low` and `high` (5 and 95 % of the scores),
        `length_correlation` (Spearman's ρ of score and n_tokens, NaN for prompts of one length), `waking`
        (numbers of the prompts, a list of up to `top`) and `texts` (their texts; "" for token ids).

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or no `sink_score`.
        ValueError: a threshold outside 0..1, or a `top` that is not a positive integer.

    Source: arXiv 2410.13835 (active and dormant heads); arXiv 2510.06477 (dormant heads; reconstruction:
    score, threshold and spread are this library's).
    """
    import pandas as pd

    require_single(ds, "sink_score")
    check_threshold(threshold, zero=False)
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise ValueError(f"top={as_shown(top)}: pass how many prompts to name, a positive integer")
    scores = ds.sink_score.astype(float).transpose("layer", "head", "prompt").values
    lines = [
        {"layer": int(layer), "head": int(head), **_sleep(ds, scores[i, j], threshold, top)}
        for i, layer in enumerate(ds.layer.values)
        for j, head in enumerate(ds["head"].values)
    ]
    columns = ["layer", "head", "share", "spread", "low", "high", "length_correlation", "waking", "texts"]
    found = [line for line in lines if 0 < line["share"] < 1]
    found.sort(key=lambda line: (-line["spread"], line["layer"], line["head"]))
    return pd.DataFrame(found, columns=columns)  # type: ignore[call-overload]


def _sleep(ds: xr.Dataset, scores: np.ndarray, threshold: float, top: int) -> dict[str, Any]:
    """What one head does over the prompts."""
    known = np.flatnonzero(np.isfinite(scores))
    held, ordered = scores[known], np.sort(scores[known])  # in order: the same bits in any order of prompts
    if not len(held):
        return {"share": np.nan}
    awake = known[held < threshold]
    waking = awake[np.argsort(scores[awake], kind="stable")][:top]
    texts = [str(text) for text in ds.text.values[waking]] if "text" in ds.coords else [""] * len(waking)
    low, high = np.quantile(held, [0.05, 0.95])
    return {
        "share": float((held >= threshold).mean()),
        "spread": float(ordered.std(ddof=1)) if len(held) > 1 else np.nan,
        "low": float(low),
        "high": float(high),
        "length_correlation": spearman(np.asarray(ds.n_tokens.values, float)[known], held),
        "waking": [int(number) for number in ds.prompt.values[waking]],
        "texts": texts,
    }


def read_complexity(ds: xr.Dataset, given: Any = None) -> tuple[np.ndarray, str, str]:
    """One finite number per prompt, not the same for all of them, with label and units.

    Raises:
        ResultSchemaError: not a result, several conditions, or no `sink_score`.
        TypeError: a complexity that is no array of numbers.
        ValueError: too few prompts, no complexity, or one that cannot be correlated with.

    Source: this library.
    """
    require_single(ds, "sink_score")
    if ds.sizes["prompt"] < FEWEST:
        raise ValueError(
            f"the result holds {ds.sizes['prompt']} prompts, and a correlation over prompts needs at least "
            f"{FEWEST}; measure more"
        )
    array, name, what = _named(ds, given)
    about = getattr(array, "attrs", {})
    label = {"next_token_loss": "next-token loss"}.get(name, name) if name is not None else None
    label = label or about.get("long_name", getattr(array, "name", None) or "complexity")
    hashes = getattr(array, "coords", {}).get("prompt_hash")
    if hashes is not None and not np.array_equal(hashes.values, ds.prompt_hash.values):
        raise ValueError(
            f"{what} is of other prompts than the result, or of these in another order; pass numbers of the "
            "same prompts"
        )
    try:  # a Dataset, rows of different length and tensors without numbers cannot become one
        plain = np.asarray(array)
    except (TypeError, ValueError, RuntimeError):
        kind = type(array).__name__
        raise TypeError(
            f"{what} came as {kind}; pass the name of a variable, or one number per prompt"
        ) from None
    values = _finite(plain, what, ds.sizes["prompt"])
    if np.ptp(values) == 0:
        raise ValueError(
            f"the complexity is {values[0]:#.3g} for every prompt, so nothing can go with it; pass one that "
            "differs"
        )
    return values, str(label), str(about.get("units", "1"))


def _named(ds: xr.Dataset, given: Any) -> tuple[Any, str | None, str]:
    """The array that is meant, its name in the result, and what messages call it."""
    if given is None:
        if "next_token_loss" not in ds:
            raise ValueError(
                "the result has no next_token_loss to take for complexity; measure with "
                'metrics=["default", "next_token_loss"], or pass complexity= (one number per prompt)'
            )
        given = "next_token_loss"
    if not isinstance(given, str):
        return given, None, "complexity"
    what = f"complexity={as_shown(given)}"
    names = [str(n) for n in [*ds.data_vars, *ds.coords]
             if ds[n].dims == ("prompt",) and ds[n].dtype.kind in "fiub" and n != "prompt"]  # fmt: skip
    if given not in names:
        raise ValueError(f"{what} is not a number per prompt of this result; it has {', '.join(names)}")
    return ds[given], given, what


def _finite(values: np.ndarray, what: str, prompts: int) -> np.ndarray:
    if values.dtype.kind not in "fiub" or values.shape != (prompts,):
        raise ValueError(
            f"{what} holds {values.dtype} of shape {values.shape}; pass one number for each of the "
            f"{prompts} prompts"
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
    return values


def layer_scores(ds: xr.Dataset, variable: str = "sink_score") -> np.ndarray:
    """A score averaged over heads, as [prompt, layer].

    Raises:
        ResultSchemaError: an axis that is lost.

    Source: this library.
    """
    require_axes(ds, "prompt", "layer", "head", of=variable)
    return ds[variable].astype(float).mean("head").transpose("prompt", "layer").values


def _rho(x: np.ndarray, y: np.ndarray, given: np.ndarray | None) -> float:
    if not np.isfinite(y).all():
        return np.nan
    return spearman(x, y) if given is None else partial_spearman(x, y, given)


def _about(text: str) -> dict[str, str]:
    return {"long_name": text, "units": "1", "source": SOURCE}
