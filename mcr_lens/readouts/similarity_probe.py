"""At which depth are texts that mean the same close to each other? Cosines beside given scores."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float

from mcr_lens._checks import as_shown, check_seed, is_iterable
from mcr_lens.ranks import correlate
from mcr_lens.readouts.layout import Variable, about, check_task, readout, with_interval
from mcr_lens.readouts.representations import POOLINGS, check_poolings, has_bos, pooled, read_rows
from mcr_lens.served import hooked

SOURCE = "Cer et al. 2017, arXiv 1708.00055 (semantic textual similarity); by depth: this library"

SAMPLED = {"samples": "cosine", "statistic": "spearman", "against": "similarity"}
"""How to compute it anew from other pairs."""

FEWEST = 5
"""Pairs below which a rank correlation says nothing: of four, one order in twelve is ±1 by chance."""


def similarity_probe(
    model: Any,
    pairs: Any,
    scores: Any,
    *,
    pooling: str = "mean",
    center: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    task: str = "text similarity",
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    tokenizer: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Spearman's ρ, at every depth, of the cosines of pairs of texts and of the similarity they were given.

    With a and b the vectors of the two texts (see `representations`), `cosine` is ⟨a, b⟩ / (‖a‖ ‖b‖), and
    `spearman` the correlation of the ranks of cosines and of scores over pairs, ties by their mean rank. No
    training: what is found is what the geometry shows as it is. Both are pure numbers in −1..1.

    Intervals of 95 % are those of `bootstrap` over pairs, each depth by itself. Pairs that share a text are
    not independent, and the interval takes them for that.

    Args:
        model: as for `measure`.
        pairs: two texts each, strings or token ids.
        scores: one number for each pair, larger for more similar; only their order counts.
        pooling: "mean", "last" or "bos".
        center: subtract the mean vector of all texts, by depth, before cosines are taken: where all vectors
            point one way, cosines near 1 differ by rounding only.
        resamples: of the pairs, for intervals.
        seed: of the resamples.
        task: what was scored, for figures.
        max_length: cut longer texts to so many tokens; by default to the model's context, with a warning.
        prepend_bos: as for `measure`.
        batch_size: how many texts run together, at most, or "auto".
        tokenizer: that of a plain Hugging Face model, which has none of its own.

    Returns:
        By depth 0..L: `spearman` beside `_low` and `_high`, NaN where all cosines are the same. By pair and
        depth: `cosine`, NaN where a vector is zero. The scores are the coordinate `similarity`, by pair.

    Raises:
        TypeError, ValueError: what came, what is allowed, what to do; before the model runs.
        NonFiniteActivationError, HookDidNotFireError: after a batch.

    Source: Cer et al. 2017, arXiv 1708.00055 (semantic textual similarity); Spearman 1904; by depth: this
    library.
    """
    check_task(task)
    if not isinstance(pooling, str):
        raise ValueError(f"pooling={as_shown(pooling)}: pass one of {', '.join(map(repr, POOLINGS))}")
    check_poolings(pooling)
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 100:
        raise ValueError(
            f"resamples={as_shown(resamples)}: pass a whole number of at least 100, such as 2000"
        )
    check_seed(seed)
    firsts, seconds = _both(pairs)
    wanted = _numbers(scores, len(firsts))
    known = hooked(model, tokenizer)
    rows = read_rows(known, [*firsts, *seconds], prepend_bos=prepend_bos, max_length=max_length)
    vectors = pooled(known, rows, [pooling], batch_size=batch_size, progress=progress)[pooling]
    cosines = _cosines(vectors, center=center)
    settings = {
        "pooling": pooling,
        "pooling_meaning": POOLINGS[pooling],
        "texts_with_bos": float(np.mean([has_bos(known, row) for row in rows])),
        "texts_cut": sum(row.truncated for row in rows),
        "centered": int(bool(center)),
        "resamples": resamples,
        "resampling_seed": seed,
    }
    coords = {
        "pair": np.arange(len(firsts)),
        "similarity": ("pair", wanted, {"units": "1", "long_name": "Given similarity"}),
    }
    variables = _variables(wanted, cosines, resamples, seed)
    return readout(known, variables, task=task, score="spearman", coords=coords, **settings)


def _both(pairs: Any) -> tuple[list[Any], list[Any]]:
    """The first and the second text of every pair."""
    if isinstance(pairs, str | Mapping) or not is_iterable(pairs):
        raise TypeError(f"pairs came as {type(pairs).__name__}; pass a list of pairs of texts")
    found = list(pairs)
    for number, pair in enumerate(found):
        long = len(pair) if is_iterable(pair) and hasattr(pair, "__len__") else 0
        if isinstance(pair, str) or long != 2:
            size = f" of {long}" if long else ""
            raise ValueError(
                f"pairs: entry {number} is a {type(pair).__name__}{size}; pass two texts for each"
            )
    if len(found) < FEWEST:
        raise ValueError(f"pairs: got {len(found)}, and a rank correlation needs {FEWEST} or more; pass more")
    return [pair[0] for pair in found], [pair[1] for pair in found]


def _numbers(scores: Any, n: int) -> Float[np.ndarray, " pair"]:
    try:
        values = np.asarray(scores)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"scores came as {type(scores).__name__}; pass a list of numbers") from None
    if values.dtype.kind not in "fiub" or values.shape != (n,):
        raise ValueError(
            f"scores hold {values.dtype} of shape {values.shape}; pass one number for each of the {n} pairs"
        )
    values = values.astype(float)
    if not np.isfinite(values).all():
        wrong = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"scores: that of pair {wrong} is {values[wrong]}; leave such pairs out")
    if np.ptp(values) == 0:
        raise ValueError(f"scores: all pairs have {values[0]:g}, so nothing can go with them; pass others")
    return values


def _cosines(
    vectors: Float[np.ndarray, "text depth d_model"], *, center: bool
) -> Float[np.ndarray, "pair depth"]:
    """Of the first half of the texts with the second, one depth at a time."""
    half = len(vectors) // 2
    found = np.empty((half, vectors.shape[1]))
    for depth in range(vectors.shape[1]):
        rows = vectors[:, depth].astype(np.float64)
        rows -= rows.mean(0) if center else 0
        lengths = np.linalg.norm(rows, axis=1)
        scale = lengths[:half] * lengths[half:]
        products = (rows[:half] * rows[half:]).sum(1)
        found[:, depth] = np.divide(products, scale, out=np.full(half, np.nan), where=scale > 0)
    return np.clip(found, -1, 1)


def _variables(scores: np.ndarray, cosines: np.ndarray, resamples: int, seed: int) -> dict[str, Variable]:
    found = [correlate(scores, column, resamples=resamples, seed=seed) for column in cosines.T]
    value, low, high = (np.array(part) for part in zip(*found, strict=True))
    attrs = about("1", "Spearman's ρ of cosines and given similarity", SOURCE, better="higher")
    label = {"units": "1", "long_name": "Cosine of the two texts", "source": SOURCE, "group": "repeat"}
    return {
        **with_interval("spearman", value, low, high, attrs, over="pairs", sampled=SAMPLED),
        "cosine": (("pair", "depth"), cosines, label),
    }
