"""How does each head spread its attention: over many keys, one key, itself, the token before?

`visible_keys` says how many keys each query can see; left out, it is a causal mask without a window.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mcr_lens.metrics._registry import derived, metric
from mcr_lens.metrics.norms import _at_least_float32


def mean_over(
    x: Float[Tensor, "batch head query"], chosen: Bool[Tensor, "query"]
) -> Float[Tensor, "batch head"]:
    """Mean over some queries, NaN over none; by weights, since a device cannot index by a mask unasked."""
    return torch.where(chosen, x, 0.0).sum(-1) / chosen.sum()


@derived
def visible_keys(visible: Bool[Tensor, "query key"]) -> Int[Tensor, "query"]:
    """Number of keys that each query can see."""
    return visible.sum(1)


@derived
def visible_queries(visible: Bool[Tensor, "query key"]) -> Int[Tensor, "key"]:
    """Number of queries that can see each key."""
    return visible.sum(0)


@derived
def seeing_queries(visible: Bool[Tensor, "query key"], position: int = 0) -> Bool[Tensor, "query"]:
    """Which queries can see the key at `position` (BOS)."""
    return visible[:, position]


@derived
def column_sums(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head key"]:
    """Attention every key receives from all queries, c_j = Σᵢ A_ij.

    >>> column_sums(torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]))
    tensor([[[1.5000, 0.5000]]])
    """
    dtype = torch.float64 if pattern.dtype == torch.float64 else torch.float32
    return pattern.sum(2, dtype=dtype)


@derived
def row_entropy(
    pattern: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query"]:
    """Entropy of every attention row, −Σⱼ A_ij ln A_ij, in nats.

    >>> row_entropy(torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]))
    tensor([[[0.0000, 0.6931]]])
    """
    return torch.special.entr(_at_least_float32(pattern)).sum(-1).clamp_min(0)


@derived
def diagonal(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query"]:
    """What every query gives to itself."""
    return _at_least_float32(pattern.diagonal(dim1=-2, dim2=-1))


@derived
def previous_diagonal(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head later"]:
    """What every query but the first gives to the token before it, A_{t,t−1}."""
    return _at_least_float32(pattern.diagonal(offset=-1, dim1=-2, dim2=-1))


@derived
def sink_column(
    pattern: Float[Tensor, "batch head query key"], position: int = 0
) -> Float[Tensor, "batch head query"]:
    """What every query gives to the key at `position` (BOS)."""
    return _at_least_float32(pattern[..., position])


@metric(units="1", source="arXiv 2510.06477, Mixing Score (reconstruction: normalisation)")
def mixing_score(
    row_entropy: Float[Tensor, "batch head query"],
    visible_keys: Int[Tensor, "query"] | None = None,
) -> Float[Tensor, "batch head"]:
    """Mixing score: mean row entropy over its maximum, mean over i of H(A_i) / ln nᵢ.

    nᵢ is the number of keys that query i can see (i + 1 when `visible_keys` is left out: causal, no
    window); rows that see one key are left out. 1 for a uniform head, 0 for a head that looks at one key.
    NaN for a prompt of one token. Reconstruction: the source does not give the normalisation.
    Source: arXiv 2510.06477; formula as in arXiv 2604.11791.

    Misleads when a head has a sink: entropy then says how much attention is left for the others, not how
    these are mixed.

    >>> mixing_score(row_entropy(torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])))
    tensor([[1.]])
    """
    if visible_keys is None:
        visible_keys = torch.arange(1, row_entropy.shape[-1] + 1, device=row_entropy.device)
    choice = visible_keys >= 2
    most = visible_keys.clamp_min(2).to(row_entropy.dtype).log()
    return mean_over(row_entropy / most, choice)


@metric(units="nats", source="arXiv 2510.06477, Mixing Score; arXiv 2604.11791")
def mixing_score_raw(
    row_entropy: Float[Tensor, "batch head query"],
) -> Float[Tensor, "batch head"]:
    """Mixing score as printed: mean row entropy (1/T) Σᵢ H(A_i), in nats, all rows included.

    Source: arXiv 2510.06477 as restated in arXiv 2604.11791.

    Misleads when prompts or windows differ in length: its largest value grows with the number of keys
    that are seen.

    >>> mixing_score_raw(row_entropy(torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])))
    tensor([[0.3466]])
    """
    return row_entropy.mean(-1)


@metric(units="1", source="arXiv 2604.11791, Sec. 2.2, attributed to arXiv 2510.06477")
def colsum_concentration(
    column_sums: Float[Tensor, "batch head key"],
) -> Float[Tensor, "batch head"]:
    """Column-sum concentration, C = 1 + (1/ln T) Σⱼ ĉⱼ ln ĉⱼ with ĉⱼ = cⱼ / Σ c.

    1 when all attention falls on one key, wherever it stands; 0 when every key receives the same. Mass
    lost to sink logits is divided out (see `row_mass`). Defined as 1 for a prompt of one token.
    Source: arXiv 2604.11791, Sec. 2.2.

    Misleads when heads are uniform and causal: early keys are seen by more queries, so it is above 0
    without any sink.

    >>> colsum_concentration(torch.tensor([[[2.0, 0.0]], [[1.0, 1.0]]]))
    tensor([[1.],
            [0.]])
    """
    length = column_sums.shape[-1]
    if length == 1:
        return torch.ones_like(column_sums[..., 0])
    share = column_sums / column_sums.sum(-1, keepdim=True)
    return 1 - torch.special.entr(share).sum(-1) / torch.tensor(length, dtype=share.dtype).log()


@metric(units="1", source="arXiv 2510.06477 (identity heads)")
def identity_score(diagonal: Float[Tensor, "batch head query"]) -> Float[Tensor, "batch head"]:
    """Mean attention of a query to itself, mean over t ≥ 1 of A_tt.

    The first query is left out: it sees nothing but itself. NaN for a prompt of one token.
    Source: arXiv 2510.06477.

    Misleads when the window or the prompt is short: a query that sees two keys gives itself a half
    without being an identity head.

    >>> identity_score(diagonal(torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])))
    tensor([[0.7500]])
    """
    return diagonal[..., 1:].mean(-1)


@metric(units="1", source="arXiv 2510.06477 (previous-token heads)")
def previous_token_score(
    previous_diagonal: Float[Tensor, "batch head later"],
) -> Float[Tensor, "batch head"]:
    """Mean attention of a query to the token before it, mean over t ≥ 1 of A_{t,t−1}.

    For t = 1 that token is BOS. NaN for a prompt of one token. Source: arXiv 2510.06477.

    Misleads when prompts are short: at t = 1 the token before is BOS, so a sink counts as a previous
    token there.

    >>> previous_token_score(previous_diagonal(torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])))
    tensor([[0.2500]])
    """
    return previous_diagonal.mean(-1)


@metric(units="1", source="this library (sink logits, arXiv 2510.06477 on GPT-OSS)")
def row_mass(column_sums: Float[Tensor, "batch head key"]) -> Float[Tensor, "batch head"]:
    """Mean sum of an attention row: 1 for a softmax, below 1 where a learned sink logit takes mass.

    Source: this library.

    Misleads when an implementation renormalises the rows after dropping the sink logit: it is 1 then,
    whatever the logit took.

    >>> row_mass(torch.tensor([[[1.5, 0.5]]]))
    tensor([[1.]])
    """
    return column_sums.sum(-1) / column_sums.shape[-1]
