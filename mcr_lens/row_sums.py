"""What of an attention pattern follows sooner where the sums of its rows are known already?

Fast attention knows the logarithm of the sum of every row's exponentials. With it, each number of the pattern
is the exponential of a product of query and key, so the pattern can be walked through in tiles of some
queries and some keys, which stay in the cache of one core; without it, a row must be whole for a softmax.
"""

import math

import torch
from torch import Tensor

from mcr_lens.seen_keys import SeenKeys

LN2 = math.log(2)

MODERATE = 64.0
"""Logarithms of row sums up to this size are known to 1e-5, and so are entropies that they are taken from."""

TRIED, AGREE = 8, 1e-4
"""How many rows are summed to find out whether row sums belong to these scores, and how well they must."""

KEYS, MOST, LEAST = 512, 512, 16
"""Keys in a tile, and queries at the most and at the least."""

VIEWS = 32
"""How many views of the memory are kept: tiles have few shapes, rows of growing length have many."""

NUMBERS = 2**17
"""In a tile, for each core: half a MiB, twice, which fits in a core's own cache. Measured."""


def usable(row_lse: Tensor, query: Tensor, key: Tensor) -> bool:
    """Whether row sums from elsewhere keep entropies exact: in float32, on a CPU, of moderate scores."""
    same = row_lse.shape == query.shape[:3] and {t.dtype for t in (row_lse, query, key)} == {torch.float32}
    return same and row_lse.device.type == "cpu" and bool((row_lse.abs() <= MODERATE).all())


def from_row_sums(
    query: Tensor, key: Tensor, scale: float, row_lse: Tensor, seen: SeenKeys, position: int
) -> tuple[Tensor, ...] | None:
    """Column sums, row entropies, both diagonals and one column; None if the row sums are of other scores.

    Everything by [unit, head of it, t], where a unit is a key-value head of one prompt. Logarithms of row
    sums are one more coordinate of the queries, so that the product is log A = s − lse itself. What rounding
    leaves each row to sum to is taken off its entropy again: it would count as often as the row has nats.
    """
    at = torch.arange(seen.length)
    kv = key.shape[1]
    keys = torch.cat([key, torch.ones_like(key[..., :1])], -1).flatten(0, 1)
    logs = query.new_empty(len(query), kv, query.shape[1] // kv, seen.length, keys.shape[-1])
    torch.mul(query.unflatten(1, (kv, -1)), scale / LN2, out=logs[..., :-1])
    torch.mul(row_lse.unflatten(1, (kv, -1)), -1 / LN2, out=logs[..., -1])
    logs = logs.flatten(0, 1)
    tried = torch.linspace(0, seen.length - 1, min(TRIED, seen.length)).long()
    totals = _products(logs[:, :, tried], keys).mul_(LN2)
    hidden = ~seen.sees(tried[:, None], at)
    if not bool((totals.masked_fill_(hidden, -torch.inf).logsumexp(-1).abs() <= AGREE).all()):
        return None
    columns, entropy, sums = _walk(logs, keys, seen)
    if not bool(((sums - 1).abs() <= AGREE).all()):  # of the rows not tried
        return None
    entropy = (entropy / sums).add_(sums.log()).clamp_(min=0)
    shared, scratch = keys[:, None], torch.empty_like(logs)
    diagonal = torch.mul(logs, shared, out=scratch).sum(-1).exp2_()
    previous = torch.mul(logs[:, :, 1:], shared[:, :, :-1], out=scratch[:, :, 1:]).sum(-1).exp2_()
    column = _products(logs, keys[:, position, None])[..., 0].exp2_().mul_(seen.sees(at, at[position]))
    return columns, entropy, diagonal, previous.mul_(seen.sees(at[1:], at[:-1])), column


def _products(logs: Tensor, keys: Tensor) -> Tensor:
    """All queries of a unit with these keys of it: [unit, head of it, query, key]."""
    return (logs.flatten(1, 2) @ keys.mT).unflatten(1, logs.shape[1:3])


def _walk(logs: Tensor, keys: Tensor, seen: SeenKeys) -> tuple[Tensor, Tensor, Tensor]:
    """Σ A down the columns, −Σ A ln A and Σ A along the rows, tile by tile, from logarithms to base 2.

    To base 2 because torch takes up to a hundred times longer over `exp` where it comes to nothing, and not
    over `exp2`.
    """
    count, group, length, width = logs.shape
    columns, entropy, ones = (logs.new_empty(count, group, length) for _ in range(3))
    rows, units = _tile(count, group, length)
    tiles = Buffers(logs, units * group * min(rows, length) * min(KEYS, length))
    for start in range(0, count, units):
        some = slice(start, start + units)
        parts = [part.mT.contiguous() for part in keys[some].split(KEYS, 1)]
        heads = len(parts[0]) * group
        sums = [part.new_zeros(heads, 1, part.shape[-1]) for part in parts]
        for first in range(0, length, rows):
            block = logs[some, :, first : first + rows].reshape(len(parts[0]), -1, width)
            weights = logs.new_ones(heads, 1, block.shape[1] // group)
            low, high = seen.keys_of(first, min(first + rows, length))
            total, whole = logs.new_zeros(2, *block.shape[:2])
            for number in range(low // KEYS, -(-high // KEYS)):
                left = number * KEYS
                part, added = (each[number][..., : high - left] for each in (parts, sums))
                scores, pattern = tiles.views((*block.shape[:2], part.shape[-1]))
                torch.bmm(block, part, out=scores)
                seen.hide(scores.view(len(part), group, -1, part.shape[-1]), first, left)
                torch.exp2(scores, out=pattern)
                # A product with ones adds up the rows faster than a sum does.
                added.baddbmm_(weights, pattern.view(heads, -1, part.shape[-1]))
                whole += pattern.sum(-1)
                total += scores.mul_(pattern).sum(-1)
            entropy[some, :, first : first + rows] = total.view(len(parts[0]), group, -1)
            ones[some, :, first : first + rows] = whole.view(len(parts[0]), group, -1)
        columns[some] = torch.cat(sums, -1).view(-1, group, length)
    return columns, entropy.mul_(-LN2), ones


class Buffers:
    """Two blocks of memory that every block of scores uses again, with the views of them that were made."""

    def __init__(self, like: Tensor, numbers: int = 0) -> None:
        self._like, self._held = like, like.new_empty(2, numbers)
        self._made: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def views(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Two contiguous tensors of this shape; making them anew takes as long as some of the work."""
        if shape not in self._made:
            size = math.prod(shape)
            if size > self._held.shape[1] or len(self._made) >= VIEWS:
                self._made.clear()
            if size > self._held.shape[1]:
                self._held = self._like.new_empty(0)  # let go first
                self._held = self._like.new_empty(2, size)
            self._made[shape] = self._held[0, :size].view(shape), self._held[1, :size].view(shape)
        return self._made[shape]


def _tile(count: int, group: int, length: int) -> tuple[int, int]:
    """Queries of a head and units in a tile: one unit for each core at the least, more of short ones."""
    # A power of two, so that all tiles at the diagonal are alike.
    rows = 2 ** (max(LEAST, min(MOST, NUMBERS // (group * min(KEYS, length)))).bit_length() - 1)
    cores = torch.get_num_threads()
    one = group * min(rows, length) * min(KEYS, length)
    return rows, max(1, min(count, max(cores, cores * NUMBERS // one)))
