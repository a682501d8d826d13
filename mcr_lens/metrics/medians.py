"""What is the median of a few numbers in many rows, and of very many numbers in one?"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mcr_lens.workers import SCRATCH

MANY, SAMPLE, PART = 2**15, 2**12, 2**18
"""From so many numbers on, a median is found by way of a sample of so many, in parts that fit the cache."""

WORD, ALL = 8, np.uint64(0x0101010101010101)
"""Truth values that are looked at together, and all of them true."""


def median(x: Float[Tensor, "*batch item"]) -> Float[Tensor, "*batch"]:
    """Median over the last axis, the mean of the middle two for an even count; NaN over nothing."""
    count = x.shape[-1]
    if count == 0:
        return x.new_full(x.shape[:-1], torch.nan)
    lower = x.median(-1, keepdim=True).values  # torch takes the lower of the two
    if count % 2:
        return lower.squeeze(-1)
    above = torch.where(x > lower, x, torch.full_like(x, torch.inf)).amin(-1, keepdim=True)
    tied = (x <= lower).sum(-1, keepdim=True) > count // 2
    return ((lower + torch.where(tied, lower, above)) / 2).squeeze(-1)


def median_of(x: np.ndarray) -> np.floating[Any]:
    """The exact median of many numbers, from those between two that lie around it.

    Whether they do is counted, not believed; if not, everything is looked through. NaN where there is one.
    """
    ranks = np.array([(len(x) - 1) // 2, len(x) // 2])
    inside, below = x, 0
    if len(x) > MANY:
        inside, below = _between(x, *_around_median(x))
        if below > ranks[0] or ranks[1] >= below + len(inside):
            inside, below = x, 0
    if np.isnan(inside).any():
        return x.dtype.type(np.nan)
    values = np.partition(inside, ranks - below)[ranks - below]
    return (values[0] + values[1]) / 2


def _around_median(x: np.ndarray) -> tuple[np.floating[Any], np.floating[Any]]:
    """Two numbers that the median most likely lies between, with few of the others.

    A sample gives two that it lies between by four standard deviations of a rank. How many of all numbers are
    below each of these is counted, and between them ranks grow evenly enough to say where the median is.
    """
    sample = np.sort(x[_sampled(len(x))])
    middle, ends = SAMPLE // 2, 2 * math.isqrt(SAMPLE)
    low, high = sample[middle - ends], sample[middle + ends]
    under, over = (_count_below(x, end) for end in (low, high))
    inside = over - under
    if not under <= len(x) // 2 < over or not low < high:
        return low, high
    share, margin = (len(x) / 2 - under) / inside, 4 * math.isqrt(inside) / inside
    # In the dtype of the numbers: comparing with a wider one takes five times as long.
    start, stop = x.dtype.type(max(0, share - margin)), x.dtype.type(min(1, share + margin))
    return low + start * (high - low), low + stop * (high - low)


def _count_below(x: np.ndarray, end: np.floating[Any]) -> int:
    return sum(int(np.count_nonzero(_compared(np.less, part, end, "under"))) for part in _parts(x))


def _between(x: np.ndarray, low: np.floating[Any], high: np.floating[Any]) -> tuple[np.ndarray, int]:
    """The numbers from one to another, NaN with them, and how many are below."""
    parts, below = [], 0
    for part in _parts(x):
        under, over = _compared(np.less, part, low, "under"), _compared(np.greater, part, high, "over")
        below += int(np.count_nonzero(under))
        outside = np.logical_or(under, over, out=over)  # NaN compares with nothing
        # Eight at once: few words are not all outside, and looking for single ones takes ten times as long.
        words = np.flatnonzero(outside[: len(part) // WORD * WORD].view(np.uint64) != ALL)
        rest = slice(len(part) // WORD * WORD, None)
        some = [part[: rest.start].reshape(-1, WORD).take(words, 0).ravel(), part[rest]]
        left = [outside[: rest.start].reshape(-1, WORD).take(words, 0).ravel(), outside[rest]]
        parts += [each[~gone] for each, gone in zip(some, left, strict=True)]
    return np.concatenate(parts), below


def _parts(x: np.ndarray) -> Iterator[np.ndarray]:
    """Parts that stay in the cache from one pass to the next."""
    return (x[start : start + PART] for start in range(0, len(x), PART))


def _compared(how: np.ufunc, part: np.ndarray, end: np.floating[Any], name: str) -> np.ndarray:
    return how(part, end, out=SCRATCH.array(name, part.shape, np.bool_))


@lru_cache(maxsize=64)
def _sampled(count: int) -> np.ndarray:
    """Places of a sample of so many numbers, at random: even steps would meet the same dimensions again."""
    return np.sort(np.random.default_rng(0).integers(0, count, SAMPLE))
