"""Which heads of a result are worth a look: the most sink-like and the most identity-like?"""

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.schema import require_single

REACH = 0.5
"""A head of another layer is within reach if it scores at least so many times what the best head scores."""


def notable_heads(ds: xr.Dataset, count: int = 4) -> list[tuple[int, int]]:
    """The most sink-like heads and behind them the most identity-like ones, as pairs (layer, head).

    `count` of each, best first: by the mean over prompts of `sink_score`, and by that of `identity_score`
    among the heads that are left, so no head comes twice. In a model with fewer than 2·count heads, half of
    its heads each. At most half of each kind (rounded up) come from one layer, as long as other layers have
    heads that score at least half of the best: a layer full of sinks would otherwise hide the others.
    Among equals the lower layer and head. Prompts with NaN (one token) are left out of the means, and heads
    with nothing else out of the choice.

    Args:
        ds: a result of `measure`, `load` or `condition`.
        count: how many of each kind, at least 1.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or a score that was not measured.
        ValueError: a count that is not a positive integer.

    Source: this library; sink and identity heads as in arXiv 2510.06477.

    >>> sink, identity = mcr.notable_heads(ds, 1)  # pairs (layer, head)
    >>> sink[0]
    1
    """
    require_single(ds, "sink_score", "identity_score")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count={as_shown(count)}: pass how many heads of each kind, a positive integer")
    count = min(count, max(1, ds.sizes["layer"] * ds.sizes["head"] // 2))
    sinks = _best(_scores(ds, "sink_score"), count)
    others = {pair: s for pair, s in _scores(ds, "identity_score").items() if pair not in sinks}
    return [*sinks, *_best(others, count)]


def _scores(ds: xr.Dataset, variable: str) -> dict[tuple[int, int], float]:
    """The mean over prompts by (layer, head), where it is a number."""
    mean = ds[variable].astype(float).mean("prompt").transpose("layer", "head").values
    layers, heads = ds.layer.values.tolist(), ds["head"].values.tolist()
    pairs = [(layer, head) for layer in layers for head in heads]
    return {pair: s for pair, s in zip(pairs, mean.ravel().tolist(), strict=True) if np.isfinite(s)}


def _best(scores: dict[tuple[int, int], float], count: int) -> list[tuple[int, int]]:
    """The best ones, at most half of them from one layer while others are within reach."""
    ranked = sorted(scores, key=lambda pair: (-scores[pair], pair))
    chosen: list[tuple[int, int]] = []
    for pair in ranked:
        mine = sum(layer == pair[0] for layer, _ in chosen)
        near = scores[pair] >= REACH * scores[ranked[0]]
        if len(chosen) < count and near and mine < (count + 1) // 2:
            chosen.append(pair)
    rest = [pair for pair in ranked if pair not in chosen]
    chosen += rest[: count - len(chosen)]
    return sorted(chosen, key=ranked.index)
