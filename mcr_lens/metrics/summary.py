"""How is everything that the metrics need taken from an attention pattern in one pass over it?

A pattern is the largest tensor that a metric reads, [batch head query key]. It is walked through in tiles
that stay in the cache, so that each number comes from memory once; in a causal model the tiles above the
diagonal are left out. Nothing of its size is made.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mcr_lens import gpu
from mcr_lens.metrics._registry import joint
from mcr_lens.metrics.attention import diagonal, previous_diagonal, sink_column

TILE = {"cpu": 2**19}
"""Numbers in a tile: measured; with fewer the calls cost too much, with more they leave the cache."""

TILE_ELSEWHERE = 2**26
"""On a GPU, where starting an operation costs more than a pass over memory."""

ROWS = 32
"""Queries in a tile at most: so many are computed for nothing, at the diagonal."""


class PatternSummary(NamedTuple):
    """What the metrics read of one attention pattern; None for what nobody asked for."""

    column_sums: Float[Tensor, "batch head key"] | None
    row_entropy: Float[Tensor, "batch head query"] | None
    diagonal: Float[Tensor, "batch head query"] | None
    previous_diagonal: Float[Tensor, "batch head later"] | None
    sink_column: Float[Tensor, "batch head query"] | None


@joint(PatternSummary)
def pattern_summary(
    pattern: Float[Tensor, "batch head query key"],
    visibility: Any = None,
    position: int = 0,
    wanted: frozenset[str] = frozenset(PatternSummary._fields),
) -> PatternSummary:
    """Column sums, row entropies, two diagonals and the column of BOS, in one pass.

    The same numbers as the functions of these names, up to the order of additions.
    Source: this library.
    """
    causal = getattr(visibility, "causal", False)
    if gpu.can_summarize(pattern) and wanted & {"column_sums", "row_entropy"}:
        sums, entropy = gpu.summarize_pattern(pattern, causal=causal)
    else:
        sums, entropy = _walk(pattern, causal, "column_sums" in wanted, "row_entropy" in wanted)
    # Copies: a view would keep the whole pattern alive.
    return PatternSummary(
        column_sums=sums,
        row_entropy=entropy,
        diagonal=diagonal(pattern).clone() if "diagonal" in wanted else None,
        previous_diagonal=previous_diagonal(pattern).clone() if "previous_diagonal" in wanted else None,
        sink_column=sink_column(pattern, position).clone() if "sink_column" in wanted else None,
    )


@joint(PatternSummary)
def attention_summary(
    attention: Any, position: int = 0, wanted: frozenset[str] = frozenset(PatternSummary._fields)
) -> PatternSummary:
    """The same from queries and keys, for models that never build a pattern (see `mcr_lens.serve`).

    Source: this library.
    """
    return attention.summary(position)


def _walk(pattern: Tensor, causal: bool, sums: bool, entropy: bool) -> tuple[Tensor | None, Tensor | None]:
    batch, heads, queries, keys = pattern.shape
    kind = torch.float64 if pattern.dtype == torch.float64 else torch.float32
    found_sums = pattern.new_zeros((batch, heads, keys), dtype=kind) if sums else None
    found = pattern.new_empty((batch, heads, queries), dtype=kind) if entropy else None
    if found_sums is None and found is None:
        return None, None
    size = TILE.get(pattern.device.type, TILE_ELSEWHERE)
    rows = min(queries, max(1, min(ROWS, size // keys)))
    some_heads = max(1, min(heads, size // (rows * keys)))
    prompts = max(1, size // (heads * rows * keys)) if some_heads == heads else 1
    buffer = pattern.new_empty(min(prompts, batch) * some_heads * rows * keys, dtype=kind)
    smallest = torch.finfo(kind).tiny
    for b in range(0, batch, prompts):
        for h in range(0, heads, some_heads):
            for i in range(0, queries, rows):
                end = min(i + rows, queries)
                part = (slice(b, b + prompts), slice(h, h + some_heads))
                tile = pattern[(*part, slice(i, end), slice(0, end if causal else keys))]
                if found_sums is not None:
                    found_sums[(*part, slice(0, tile.shape[-1]))] += tile.sum(2, dtype=kind)
                if found is not None:
                    logs = buffer[: math.prod(tile.shape)].view(tile.shape)
                    # 0 ln 0 is 0: the smallest number has a logarithm, and times 0 it is 0.
                    torch.clamp(tile, min=smallest, out=logs) if tile.dtype == kind else logs.copy_(
                        tile
                    ).clamp_(min=smallest)
                    logs.log_().mul_(tile)
                    torch.sum(logs, -1, out=found[(*part, slice(i, end))])
    if found is not None:
        found.neg_().clamp_(min=0)
    return found_sums, found
