"""What would be read off an attention pattern, without ever having the pattern?

Column sums, row entropies, the diagonals and one column follow from queries and keys. They are computed row
block by row block: a block of queries against all the keys it sees, so that one softmax is exact, in buffers
that are used again and stay in the cache. Memory grows with the length of the prompt, not with its square.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mcr_lens.metrics.summary import PatternSummary

ELEMENTS = 2**20
"""Scores in a block on a CPU: measured, between 2^16 (calls cost too much) and 2^22 (out of cache)."""

ELEMENTS_ON_GPU = 2**26
"""The same on an accelerator, where starting a kernel costs more than memory."""

ROWS = 32
"""Queries of a head in a block at the least, where several heads would share it."""

MODERATE = 64.0
"""Logarithms of row sums up to this size are known to 1e-5, and so are entropies that they are taken from."""

TRIED, AGREE = 8, 1e-4
"""How many rows are summed to find out whether row sums belong to these scores, and how well they must."""

HIDDEN = -1e30
"""The score of a key that a query does not see: finite, because 0 · ∞ is not 0."""


@dataclass(frozen=True)
class _Seen:
    """Which keys a query sees: earlier ones, so many of them, those of its chunk."""

    length: int
    causal: bool
    window: int | None
    chunk: int | None
    _last: dict[Any, Tensor] = field(default_factory=dict)  # blocks away from the edges share a mask

    def keys_of(self, first: int, stop: int) -> tuple[int, int]:
        """The range of keys that some query of first … stop − 1 sees."""
        low, high = 0, stop if self.causal else self.length
        if self.window:
            low = max(low, first - self.window + 1)
        if self.chunk:
            low = max(low, first // self.chunk * self.chunk)
            high = min(high, -(-stop // self.chunk) * self.chunk)
        return low, high

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether these queries see these keys."""
        seen = key <= query if self.causal else torch.ones_like(key <= query)
        if self.window:
            seen = seen & (key > query - self.window)
        return seen & (key // self.chunk == query // self.chunk) if self.chunk else seen

    def hide(self, scores: Tensor, first: int, low: int) -> None:
        """Lower the scores of keys that a query does not see; first query and key of the block are given."""
        rows, width = scores.shape[-2:]
        if self.window or self.chunk:
            scores += self._hidden(first, rows, low, width, scores)
        elif self.causal and rows > 1:
            scores[..., first - low :] += self._hidden(first, rows, first, rows, scores)

    def _hidden(self, first: int, rows: int, low: int, width: int, like: Tensor) -> Tensor:
        """What must be added to the scores: 0 where a key is seen."""
        offset = 0 if self.chunk is None else first % self.chunk
        shape = (rows, width, low - first, offset)
        if shape not in self._last:
            query = torch.arange(first, first + rows, device=like.device)[:, None]
            key = torch.arange(low, low + width, device=like.device)
            self._last.clear()
            self._last[shape] = torch.where(self.sees(query, key), 0.0, HIDDEN).to(like.dtype)
        return self._last[shape]


class _Buffers:
    """Two blocks of memory that every block of scores uses again."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._held = like.new_empty(2, 0)

    def views(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Two contiguous tensors of this shape."""
        size = int(torch.Size(shape).numel())
        if self._held.shape[1] < size:
            self._held = self._like.new_empty(0)  # let go first
            self._held = self._like.new_empty(2, size)
        return self._held[0, :size].view(shape), self._held[1, :size].view(shape)


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
            saves three passes. One that is not that of these scores is found out and left aside.

    Raises:
        ValueError: shapes that do not fit, a position that is no key, or a window, chunk or cap below 1 or 0.

    Source: this library.

    >>> found = summarize(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), scale=1.0)
    >>> found.column_sums, found.row_entropy
    (tensor([[[1.5000, 0.5000]]]), tensor([[[0.0000, 0.6931]]]))
    """
    _check(query, key, window, chunk, softcap, sink_logits, position)
    if row_lse is not None and (softcap or sink_logits is not None or not _usable(row_lse, query)):
        row_lse = None
    batch, heads, length, width = query.shape
    group = heads // key.shape[1]
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    factor = scale / softcap if softcap else scale
    # One row of `units` is one key-value head of one prompt, with the query heads that share it.
    queries = (query.to(exact) * factor).reshape(-1, group, length, width)
    keys = key.to(exact).reshape(-1, length, width)
    seen = _Seen(length, causal, window, chunk)
    if row_lse is not None:
        found = _from_row_sums(queries, keys, row_lse.reshape(queries.shape[:3]), seen, position)
        if found is not None:
            return PatternSummary(*(tensor.view(batch, heads, -1) for tensor in found))
    sinks = None
    if sink_logits is not None:
        sinks = sink_logits.detach().to(queries).reshape(-1, group, 1).repeat(batch, 1, 1)
    shape = queries.shape[:3]
    columns, entropy = queries.new_zeros(shape), queries.new_empty(shape)
    diagonal, column = queries.new_empty(shape), queries.new_zeros(shape)
    previous = queries.new_zeros(*shape[:2], max(0, length - 1))
    buffers, units = _Buffers(queries), _units(queries, group, seen)
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


def _from_row_sums(
    queries: Tensor, keys: Tensor, row_lse: Tensor, seen: _Seen, position: int
) -> tuple[Tensor, ...] | None:
    """The five tensors by [unit, head of it, t], from row sums that are known; None if those are others'.

    The product gives ln A = s − lse itself, and a softmax of it sums to one whatever lse was rounded to.
    """
    at = torch.arange(seen.length)
    logs = torch.cat([queries, -row_lse[..., None]], -1)
    ones = torch.cat([keys, torch.ones_like(keys[..., :1])], -1)
    tried = torch.linspace(0, seen.length - 1, min(TRIED, seen.length)).long()
    totals = (logs[:, :, tried] @ ones[:, None].mT).masked_fill(~seen.sees(tried[:, None], at), -torch.inf)
    if not bool((totals.logsumexp(-1).abs() <= AGREE).all()):
        return None
    columns, entropy = (
        torch.zeros_like(row_lse),
        torch.empty_like(row_lse, memory_format=torch.contiguous_format),
    )
    group, width = logs.shape[1], logs.shape[-1]
    buffers, units = _Buffers(queries), _units(queries, group, seen)
    for start in range(0, logs.shape[0], units):
        some = slice(start, start + units)
        count, first = logs[some].shape[0], 0
        while first < seen.length:
            stop = _stop(first, count * group, seen, queries)
            low, high = seen.keys_of(first, stop)
            scores, pattern = buffers.views((count, group, stop - first, high - low))
            block = logs[some, :, first:stop].reshape(count, -1, width)
            torch.bmm(block, ones[some, low:high].mT, out=scores.view(count, -1, high - low))
            seen.hide(scores, first, low)
            torch.softmax(scores, -1, out=pattern)
            columns[some, :, low:high] += pattern.sum(2)
            entropy[some, :, first:stop] = scores.mul_(pattern).sum(-1)
            first = stop
    shared = ones[:, None]
    diagonal = (logs * shared).sum(-1).exp_()
    previous = (logs[:, :, 1:] * shared[:, :, :-1]).sum(-1).exp_().mul_(seen.sees(at[1:], at[:-1]))
    column = (logs * shared[:, :, position, None]).sum(-1).exp_().mul_(seen.sees(at, at[position]))
    return columns, entropy.neg_().clamp_(min=0), diagonal, previous, column


def _usable(row_lse: Tensor, query: Tensor) -> bool:
    """Whether row sums from elsewhere keep entropies exact: in float32, on a CPU, of moderate scores."""
    same = row_lse.shape == query.shape[:3] and row_lse.dtype == query.dtype == torch.float32
    return same and row_lse.device.type == "cpu" and bool((row_lse.abs() <= MODERATE).all())


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


def _units(queries: Tensor, group: int, seen: _Seen) -> int:
    """How many key-value heads share a block: as many as leave each `ROWS` queries, or one for each core."""
    low, high = seen.keys_of(0, min(ROWS, seen.length))
    widest = seen.keys_of(max(0, seen.length - ROWS), seen.length)
    width = max(high - low, widest[1] - widest[0])
    fitting = _most(queries) // max(1, group * min(ROWS, seen.length) * width)
    least = torch.get_num_threads() if queries.device.type == "cpu" else 1
    return max(1, min(queries.shape[0], max(fitting, least)))


def _stop(first: int, heads: int, seen: _Seen, like: Tensor) -> int:
    """Where the block that begins at this query ends: as many queries as fit, eight at the least."""
    rows, most = 8, _most(like)
    for more in (128, 64, 32, 16, 8):
        low, high = seen.keys_of(first, min(first + rows + more, seen.length))
        if heads * (rows + more) * (high - low) <= most:
            rows += more
    return min(first + rows, seen.length)
