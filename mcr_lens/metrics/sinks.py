"""Which key do the other queries attend to, BOS or another, and does it matter?

A key can only be attended to by the queries that see it: later ones in a causal model, those within the
window of a sliding layer. Scores are means over those queries. `visible_queries` says how many they are,
`seeing_queries` which ones see BOS; left out, it is a causal mask without a window.
"""

from typing import NamedTuple

import einops
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mcr_lens.metrics._registry import derived, metric
from mcr_lens.metrics.attention import mean_over
from mcr_lens.metrics.medians import median
from mcr_lens.metrics.norms import _at_least_float32, _top

SOME = 2**19
"""Numbers that are gone through together where several passes over them follow each other."""


class TopKeys(NamedTuple):
    """The keys that get most attention, and how much."""

    score: Float[Tensor, "batch head top"]
    position: Int[Tensor, "batch head top"]


def _queries(visible_queries: Tensor | None, length: int, like: Tensor) -> Int[Tensor, "key"]:
    if visible_queries is not None:
        return visible_queries
    return torch.arange(length, 0, -1, device=like.device)


@derived
def top_keys(
    column_sums: Float[Tensor, "batch head key"],
    diagonal: Float[Tensor, "batch head query"],
    visible_queries: Int[Tensor, "key"] | None = None,
) -> TopKeys:
    """The three keys k with the largest mean attention from the *other* queries that see them.

    (c_k − A_kk) / (n_k − 1), with n_k the number of queries that see k, among the keys that at least half
    as many queries see as the best seen one: in a causal model the first half. Further places are NaN and
    −1. Source: this library, after arXiv 2603.05498, App. A (the first half).
    """
    seen = _queries(visible_queries, column_sums.shape[-1], column_sums)
    counted = (2 * seen >= seen.max()) & (seen > 1)
    score = (column_sums - diagonal) / (seen - 1)
    found, place = _top(score.masked_fill(~counted, -torch.inf))
    absent = ~found.isfinite()
    return TopKeys(found.masked_fill(absent, torch.nan), place.masked_fill(absent, -1))


@metric(units="1", source="arXiv 2604.11791, eq. 16; arXiv 2410.10781")
def sink_score(
    sink_column: Float[Tensor, "batch head query"],
    visible_queries: Int[Tensor, "key"] | None = None,
    position: int = 0,
) -> Float[Tensor, "batch head"]:
    """Mean attention to BOS, (1/n) Σ_t A_t0, over the n queries that see it, the first and itself included.

    n = T for BOS in a causal model, so this is (1/T) Σ_t A_t0; in a sliding layer n is the window
    (`sink_queries` says it). Between 0 and 1; the floor is 1/n because A_00 = 1. A uniform causal head scores
    H_n/n, with H_n the harmonic number. Source: arXiv 2510.06477 as restated in arXiv 2604.11791, eq. 16;
    over visible queries as arXiv 2410.10781 does.

    Misleads when prompts are short: the first query has only BOS to see, so the floor is 1/n, and even a
    uniform head scores H_n/n.

    >>> from mcr_lens.metrics import sink_column
    >>> pattern = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    >>> sink_score(sink_column(pattern))
    tensor([[0.7500]])
    """
    seen = _queries(visible_queries, sink_column.shape[-1], sink_column)[position]
    return sink_column.sum(-1) / seen


@metric(units="query", source="this library")
def sink_queries(
    sink_column: Float[Tensor, "batch head query"],
    visible_queries: Int[Tensor, "key"] | None = None,
    position: int = 0,
) -> Int[Tensor, "batch"]:
    """Number of queries that can see BOS in this layer: over how many the sink score is a mean.

    T in a causal model, the window in a sliding layer. Source: this library.

    Misleads when it is taken for the number of tokens: in a sliding layer only the first window of
    queries sees BOS.

    >>> sink_queries(torch.zeros(1, 2, 5))
    tensor([5])
    """
    seen = _queries(visible_queries, sink_column.shape[-1], sink_column)[position]
    return seen.expand(sink_column.shape[0])


@metric(units="1", source="arXiv 2604.11791, eq. 16, any key")
def strongest_sink_score(
    column_sums: Float[Tensor, "batch head key"],
    visible_queries: Int[Tensor, "key"] | None = None,
) -> Float[Tensor, "batch head"]:
    """Mean attention to the most attended key at any position, max_k (1/n) Σ_t A_tk.

    n is the largest number of queries that see one key (T, or the window), so late keys, seen by fewer,
    count for less. Source: arXiv 2604.11791, eq. 16.

    Misleads when prompts are short, where early keys are seen by most queries and score high in any head.

    >>> strongest_sink_score(torch.tensor([[[1.5, 2.0, 0.5]]]))
    tensor([[0.6667]])
    """
    seen = _queries(visible_queries, column_sums.shape[-1], column_sums).max()
    return column_sums.amax(-1) / seen


@metric(units="token", source="this library")
def strongest_sink_token(column_sums: Float[Tensor, "batch head key"]) -> Int[Tensor, "batch head"]:
    """Position of the most attended key: is it BOS?

    Counted from the first real token. Source: this library.

    Misleads when no key stands out: some key is always the most attended, so read it with
    `strongest_sink_score`.

    >>> strongest_sink_token(torch.tensor([[[1.5, 2.0, 0.5]]]))
    tensor([[1]])
    """
    return column_sums.argmax(-1)


@metric(units="1", source="arXiv 2603.05498, eq. 27-28")
def early_sink_score(
    column_sums: Float[Tensor, "batch head key"],
    visible_queries: Int[Tensor, "key"] | None = None,
) -> Float[Tensor, "batch head"]:
    """Mean attention to the most attended key of the first half, max over k ≤ T/2 of (1/n) Σ_t A_tk.

    n as in `strongest_sink_score`. Source: arXiv 2603.05498, App. A, eq. 27-28.

    Misleads when the sink stands in the second half of the prompt: it is not looked at.

    >>> early_sink_score(torch.tensor([[[1.5, 2.0, 0.25, 0.25]]]))
    tensor([[0.5000]])
    """
    length = column_sums.shape[-1]
    seen = _queries(visible_queries, length, column_sums).max()
    return column_sums[..., : max(1, length // 2)].amax(-1) / seen


@metric(units="1", source="this library, after arXiv 2410.10781 and arXiv 2603.05498")
def top_sink_score(top_keys: TopKeys) -> Float[Tensor, "batch head top"]:
    """The three keys that get most attention from the other queries that see them: how much?

    Mean over those queries, so a key in the middle counts like BOS; only keys that at least half as many
    queries see as the best seen one. NaN where there are fewer such keys. Source: this library.

    Misleads when prompts are short: few queries are averaged, and a key can score high by chance.

    >>> from mcr_lens.metrics import sink_column
    >>> pattern = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    >>> top_sink_score(top_keys(pattern.sum(2), pattern.diagonal(dim1=2, dim2=3)))[..., 0]
    tensor([[0.5000]])
    """
    return top_keys.score


@metric(units="token", source="this library, after arXiv 2410.10781 and arXiv 2603.05498")
def top_sink_token(top_keys: TopKeys) -> Int[Tensor, "batch head top"]:
    """The three keys that get most attention from the other queries that see them: where?

    Positions counted from the first real token; −1 where `top_sink_score` is NaN. Source: this library.

    Misleads when no key stands out: the first keys have positions whether they are sinks or not (read it
    with `top_sink_score`).

    >>> pattern = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    >>> top_sink_token(top_keys(pattern.sum(2), pattern.diagonal(dim1=2, dim2=3)))[..., 0]
    tensor([[0]])
    """
    return top_keys.position


def _seeing(
    column: Float[Tensor, "batch head query"], seeing_queries: Tensor | None, position: int
) -> Bool[Tensor, "query"]:
    """The queries that see `position`, without itself: there, sink and diagonal coincide."""
    at = torch.arange(column.shape[-1], device=column.device)
    return (at > position) if seeing_queries is None else seeing_queries & (at != position)


@metric(units="1", source="arXiv 2510.06477, SVI (reconstruction: formula)")
def sink_identity_index(
    sink_column: Float[Tensor, "batch head query"],
    diagonal: Float[Tensor, "batch head query"],
    seeing_queries: Bool[Tensor, "query"] | None = None,
    position: int = 0,
) -> Float[Tensor, "batch head"]:
    """Sink-versus-identity index, S / (S + I), S = mean A_t0 and I = mean A_tt over t ≥ 1.

    Means over the queries that see BOS. 1 for a sink head, 0 for an identity head, 0.5 for a uniform one;
    NaN when S + I = 0. It says little where the support `sink_identity_mass` is small: see `sink_identity`.
    Reconstruction: only the name is in the sources. Source: arXiv 2510.06477.

    Misleads when the head does neither: a quotient of two small numbers says nothing, so `sink_identity`
    drops it there.

    >>> from mcr_lens.metrics import sink_column
    >>> pattern = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])
    >>> sink_identity_index(sink_column(pattern), pattern.diagonal(dim1=2, dim2=3))
    tensor([[0.2500]])
    """
    seeing = _seeing(sink_column, seeing_queries, position)
    sink, identity = mean_over(sink_column, seeing), mean_over(diagonal, seeing)
    return sink / (sink + identity)


@metric(units="1", source="arXiv 2510.06477, SVI (reconstruction: formula)")
def sink_identity_mass(
    sink_column: Float[Tensor, "batch head query"],
    diagonal: Float[Tensor, "batch head query"],
    seeing_queries: Bool[Tensor, "query"] | None = None,
    position: int = 0,
) -> Float[Tensor, "batch head"]:
    """Support of the sink-versus-identity index, S + I: attention that goes to BOS or to oneself.

    NaN for a prompt of one token. Reconstruction. Source: arXiv 2510.06477.

    Misleads when it is read as a sink: it is as high for a head that only looks at itself.

    >>> from mcr_lens.metrics import sink_column
    >>> pattern = torch.tensor([[[[1.0, 0.0], [0.25, 0.5]]]])
    >>> sink_identity_mass(sink_column(pattern), pattern.diagonal(dim1=2, dim2=3))
    tensor([[0.7500]])
    """
    return mean_over(sink_column + diagonal, _seeing(sink_column, seeing_queries, position))


@metric(units="1", source="arXiv 2510.06477 (value norms of BOS); arXiv 2410.13835")
def value_drain(
    value: Float[Tensor, "batch pos head d_head"], position: int = 0
) -> Float[Tensor, "batch head"]:
    """Value norm at BOS over the median of the others, ‖v₀‖ / median ‖vᵢ‖.

    Near 0, attending to BOS moves nothing. Heads that share a key-value head share the number. NaN for a
    prompt of one token. Source: arXiv 2510.06477; arXiv 2410.13835.

    Misleads when the output projection stretches or drops the value: a small v₀ may still be written
    large, which `sink_output_share` sees.

    >>> value_drain(torch.tensor([[[[1.0]], [[4.0]], [[4.0]]]]))
    tensor([[0.2500]])
    """
    norms = einops.rearrange(_at_least_float32(value).norm(dim=-1), "batch pos head -> batch head pos")
    others = torch.cat([norms[..., :position], norms[..., position + 1 :]], -1)
    return norms[..., position] / median(others)


@metric(units="1", source="this library (is attending to the sink a no-op?)")
def sink_output_share(
    sink_column: Float[Tensor, "batch head query"],
    value: Float[Tensor, "batch pos head d_head"],
    z: Float[Tensor, "batch pos head d_head"],
    output_gram: Float[Tensor, "head d_head d_head"],
    seeing_queries: Bool[Tensor, "query"] | None = None,
    position: int = 0,
) -> Float[Tensor, "batch head"]:
    """Share of the head's output that comes from BOS, mean over t ≥ 1 of ‖A_t0 v₀ W_O‖ / ‖z_t W_O‖.

    Near 0, attending to BOS is a no-op. It can exceed 1 where the other tokens' contribution cancels
    part of it. `output_gram` is W_O W_Oᵀ, so that ‖u W_O‖² = u W_O W_Oᵀ uᵀ. Queries that do not see BOS or
    whose head output is zero are left out. NaN for a prompt of one token. Source: this library, after
    arXiv 2510.06477.

    Misleads when head output is small: the share is large though the head writes next to nothing.

    >>> column = torch.tensor([[[1.0, 0.5]]])  # what each of two queries gives to BOS
    >>> value = torch.tensor([[[[1.0]], [[3.0]]]])
    >>> z = torch.tensor([[[[1.0]], [[2.0]]]])  # 0.5 · 1 + 0.5 · 3 at the second
    >>> sink_output_share(column, value, z, torch.ones(1, 1, 1))  # 0.5 of 2
    tensor([[0.2500]])
    """
    through = output_gram.to(torch.float32)
    sink = _at_least_float32(value[:, position])
    # A few prompts after the other: their heads stay in the cache.
    some = max(1, SOME // (z[0].numel() or 1))
    whole = torch.cat([_energies(_at_least_float32(part), through) for part in z.split(some)])
    part = einops.einsum(sink, through.to(sink.dtype), sink, "b h d, h d e, b h e -> b h")
    share = sink_column * (part.clamp_min(0).sqrt()[..., None] / whole.clamp_min(0).sqrt())
    counted = (whole > 0) & _seeing(sink_column, seeing_queries, position)
    return torch.where(counted, share, 0.0).sum(-1) / counted.sum(-1)


def _energies(
    heads: Float[Tensor, "batch pos head d_head"], gram: Float[Tensor, "head d_head d_head"]
) -> Float[Tensor, "batch head pos"]:
    """‖z_t W_O‖² of every head and token."""
    batch, length, _, _ = heads.shape
    by_head = heads.flatten(0, 1).transpose(0, 1)  # without a copy: the product takes it as it lies
    energies = torch.bmm(by_head, gram.to(by_head.dtype)).mul_(by_head).sum(-1)
    return energies.unflatten(1, (batch, length)).transpose(0, 1)
