"""What would be read off an attention pattern, without ever having the pattern?

Column sums, row entropies, the diagonals and one column follow from queries and keys. They are computed row
block by row block: a block of queries against all the keys it sees, so that one softmax is exact, in buffers
that are used again and stay in the cache. Memory grows with the length of the prompt, not with its square.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mcr_lens.metrics.summary import PatternSummary
from mcr_lens.row_sums import Buffers, from_row_sums, usable
from mcr_lens.seen_keys import SeenKeys

ELEMENTS = 2**20
"""Scores in a block on a CPU: measured, between 2^16 (calls cost too much) and 2^22 (out of cache)."""

ELEMENTS_ON_GPU = 2**26
"""The same on an accelerator, where starting a kernel costs more than memory."""

ROWS = 32
"""Queries of a head in a block at the least, where several heads would share it."""


@torch.no_grad()
def summarize(
    query: Float[Tensor, "batch head t d_head"],
    key: Float[Tensor, "batch kv t d_head"],
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sink_logits: Float[Tensor, "head"] | None = None,
    position: int = 0,
    row_lse: Float[Tensor, "batch head t"] | None = None,
) -> PatternSummary:
    """Column sums, row entropies, both diagonals and one column of softmax(scale · Q Kᵀ), to rounding.

    Scores are capped as c · tanh(s / c), then masked; a sink logit is one more key that takes attention and
    gives nothing. In float32, or float64 for float64; half-precision queries and keys are multiplied in
    float32. A key-value head serves `head / kv` neighbouring query heads.

    Args:
        query: queries as they enter the softmax, rotated and normed.
        key: keys likewise.
        scale: factor of the scores.
        causal: whether queries see only earlier keys and themselves.
        window: how many keys a query sees at most, itself included.
        chunk: tokens of the chunks that attention does not look out of.
        softcap: c, where scores are capped.
        sink_logits: one logit for every query head.
        position: the key whose column is kept.
        row_lse: logarithm of the sum of every row's exponentials, if somebody has it (fast attention does):
            tiles then take the place of whole rows. One of other scores is found out and left aside.

    Raises:
        ValueError: shapes that do not fit, a position that is no key, or a window, chunk or cap below 1 or 0.

    Source: this library.

    >>> found = summarize(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), scale=1.0)
    >>> found.column_sums, found.row_entropy
    (tensor([[[1.5000, 0.5000]]]), tensor([[[0.0000, 0.6931]]]))
    """
    _check(query, key, window, chunk, softcap, sink_logits, position)
    if row_lse is not None and (softcap or sink_logits is not None or not usable(row_lse, query, key)):
        row_lse = None
    batch, heads, length, width = query.shape
    group = heads // key.shape[1]
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    factor = scale / softcap if softcap else scale
    seen = SeenKeys(length, causal, window, chunk)
    if row_lse is not None:
        found = from_row_sums(query, key, scale, row_lse, seen, position)
        if found is not None:
            return PatternSummary(*(tensor.view(batch, heads, -1) for tensor in found))
    # One row of `units` is one key-value head of one prompt, with the query heads that share it.
    queries = (query.to(exact) * factor).reshape(-1, group, length, width)
    keys = key.to(exact).reshape(-1, length, width)
    sinks = None
    if sink_logits is not None:
        sinks = sink_logits.detach().to(queries).reshape(-1, group, 1).repeat(batch, 1, 1)
    shape = queries.shape[:3]
    columns, entropy = queries.new_zeros(shape), queries.new_empty(shape)
    diagonal, column = queries.new_empty(shape), queries.new_zeros(shape)
    previous = queries.new_zeros(*shape[:2], max(0, length - 1))
    buffers, units = Buffers(queries), _units(queries, group, seen)
    for start in range(0, queries.shape[0], units):
        some = slice(start, start + units)
        first = 0
        while first < length:
            stop = _stop(first, queries[some].shape[0] * group, seen, queries)
            low, high = seen.keys_of(first, stop)
            scores, pattern = buffers.views((queries[some].shape[0], group, stop - first, high - low))
            flat = (scores.shape[0], -1, high - low)
            block = queries[some, :, first:stop].reshape(scores.shape[0], -1, queries.shape[-1])
            torch.bmm(block, keys[some, low:high].mT, out=scores.view(flat))
            if softcap:
                scores.tanh_().mul_(softcap)
            seen.hide(scores, first, low)
            largest = scores.amax(-1, keepdim=True)
            # Taken off before anything is summed: entropy must not be a difference of large numbers.
            scores.sub_(largest)
            torch.softmax(scores, -1, out=pattern)
            rest = 0 - pattern.amax(-1).log_()  # ln Σ exp(s − max)
            if sinks is not None:
                kept = -torch.nn.functional.softplus(sinks[some] - largest[..., 0] - rest)
                pattern.mul_(kept.exp()[..., None])
                rest = (rest - kept) * kept.exp()
            columns[some, :, low:high] += pattern.sum(2)
            diagonal[some, :, first:stop] = pattern.diagonal(first - low, -2, -1)
            before = pattern.diagonal(first - low - 1, -2, -1)
            previous[some, :, stop - 1 - before.shape[-1] : stop - 1] = before
            if low <= position < high:
                column[some, :, first:stop] = pattern[..., position - low]
            torch.sub(rest, scores.mul_(pattern).sum(-1), out=rest)
            entropy[some, :, first:stop] = rest.clamp_min_(0)
            first = stop
    found = (columns, entropy, diagonal, previous, column)
    return PatternSummary(*(tensor.view(batch, heads, -1) for tensor in found))


def _check(
    query: Tensor, key: Tensor, window: Any, chunk: Any, softcap: Any, sink_logits: Any, position: int
) -> None:
    same = query.shape[0] == key.shape[0] and query.shape[2:] == key.shape[2:]
    if not same or key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"queries {tuple(query.shape)} and keys {tuple(key.shape)} do not belong together; pass "
            "[batch, head, t, d_head] and [batch, kv, t, d_head] with head a multiple of kv"
        )
    if not 0 <= position < query.shape[2]:
        raise ValueError(f"position={position}: there are keys 0..{query.shape[2] - 1}; pass one of them")
    for name, value in (("window", window), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: pass a positive number of tokens, or None")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap}: pass a positive number, or None")
    if sink_logits is not None and tuple(sink_logits.shape) != (query.shape[1],):
        raise ValueError(
            f"sink_logits have shape {tuple(sink_logits.shape)}; pass one for each of {query.shape[1]} heads"
        )


def _most(like: Tensor) -> int:
    return ELEMENTS if like.device.type == "cpu" else ELEMENTS_ON_GPU


def _units(queries: Tensor, group: int, seen: SeenKeys) -> int:
    """How many key-value heads share a block: as many as leave each `ROWS` queries, or one for each core."""
    low, high = seen.keys_of(0, min(ROWS, seen.length))
    widest = seen.keys_of(max(0, seen.length - ROWS), seen.length)
    width = max(high - low, widest[1] - widest[0])
    fitting = _most(queries) // max(1, group * min(ROWS, seen.length) * width)
    least = torch.get_num_threads() if queries.device.type == "cpu" else 1
    return max(1, min(queries.shape[0], max(fitting, least)))


def _stop(first: int, heads: int, seen: SeenKeys, like: Tensor) -> int:
    """Where the block that begins at this query ends: as many queries as fit, eight at the least."""
    rows, most = 8, _most(like)
    for more in (128, 64, 32, 16, 8):
        low, high = seen.keys_of(first, min(first + rows + more, seen.length))
        if heads * (rows + more) * (high - low) <= most:
            rows += more
    return min(first + rows, seen.length)
