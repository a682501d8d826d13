"""Where does each head look: at one key, at itself, or everywhere, and does it matter?"""

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mcr_lens.metrics._registry import derived, metric
from mcr_lens.metrics.norms import _at_least_float32, _median


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
def sink_column(
    pattern: Float[Tensor, "batch head query key"], position: int = 0
) -> Float[Tensor, "batch head query"]:
    """What every query gives to the key at `position` (BOS)."""
    return _at_least_float32(pattern[..., position])


@derived
def diagonal(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query"]:
    """What every query gives to itself."""
    return _at_least_float32(pattern.diagonal(dim1=-2, dim2=-1))


@metric(units="1", source="arXiv 2604.11791, eq. 16; arXiv 2410.10781")
def sink_score(sink_column: Float[Tensor, "batch head query"]) -> Float[Tensor, "batch head"]:
    """Mean attention to BOS, (1/T) Σ_t A_t0, over all queries, the first and the diagonal included.

    Between 0 and 1; the floor is 1/T because A_00 = 1. A uniform causal head scores H_T/T, with H_T the
    harmonic number. Source: arXiv 2510.06477 as restated in arXiv 2604.11791, eq. 16.

    >>> pattern = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    >>> sink_score(sink_column(pattern))
    tensor([[0.7500]])
    """
    return sink_column.mean(-1)


@metric(units="1", source="arXiv 2604.11791, eq. 16, any key")
def strongest_sink_score(
    column_sums: Float[Tensor, "batch head key"],
) -> Float[Tensor, "batch head"]:
    """Mean attention to the most attended key at any position, max_k (1/T) Σ_t A_tk.

    Late keys are seen by fewer queries and count for less. Source: arXiv 2604.11791, eq. 16.

    >>> strongest_sink_score(torch.tensor([[[1.5, 2.0, 0.5]]]))
    tensor([[0.6667]])
    """
    return column_sums.amax(-1) / column_sums.shape[-1]


@metric(units="token", source="this library")
def strongest_sink_token(column_sums: Float[Tensor, "batch head key"]) -> Int[Tensor, "batch head"]:
    """Position of the most attended key: is it BOS?

    Counted from the first real token. Source: this library.

    >>> strongest_sink_token(torch.tensor([[[1.5, 2.0, 0.5]]]))
    tensor([[1]])
    """
    return column_sums.argmax(-1)


@metric(units="1", source="arXiv 2603.05498, eq. 27-28")
def early_sink_score(column_sums: Float[Tensor, "batch head key"]) -> Float[Tensor, "batch head"]:
    """Mean attention to the most attended key of the first half, max over k ≤ T/2 of (1/T) Σ_t A_tk.

    Source: arXiv 2603.05498, App. A, eq. 27-28.

    >>> early_sink_score(torch.tensor([[[1.5, 2.0, 0.25, 0.25]]]))
    tensor([[0.5000]])
    """
    length = column_sums.shape[-1]
    return column_sums[..., : max(1, length // 2)].amax(-1) / length


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

    >>> mixing_score(row_entropy(torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])))
    tensor([[1.]])
    """
    if visible_keys is None:
        visible_keys = torch.arange(1, row_entropy.shape[-1] + 1, device=row_entropy.device)
    choice = visible_keys >= 2
    most = visible_keys[choice].to(row_entropy.dtype).log()
    return (row_entropy[..., choice] / most).mean(-1)


@metric(units="nats", source="arXiv 2510.06477, Mixing Score; arXiv 2604.11791")
def mixing_score_raw(
    row_entropy: Float[Tensor, "batch head query"],
) -> Float[Tensor, "batch head"]:
    """Mixing score as printed: mean row entropy (1/T) Σᵢ H(A_i), in nats, all rows included.

    Source: arXiv 2510.06477 as restated in arXiv 2604.11791.

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

    >>> identity_score(diagonal(torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])))
    tensor([[0.7500]])
    """
    return diagonal[..., 1:].mean(-1)


@metric(units="1", source="arXiv 2510.06477 (previous-token heads)")
def previous_token_score(
    pattern: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head"]:
    """Mean attention of a query to the token before it, mean over t ≥ 1 of A_{t,t−1}.

    For t = 1 that token is BOS. NaN for a prompt of one token. Source: arXiv 2510.06477.

    >>> previous_token_score(torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]]))
    tensor([[0.2500]])
    """
    return _at_least_float32(pattern.diagonal(offset=-1, dim1=-2, dim2=-1)).mean(-1)


def _sink_and_identity(
    sink_column: Float[Tensor, "batch head query"],
    diagonal: Float[Tensor, "batch head query"],
    position: int,
) -> tuple[Float[Tensor, "batch head"], Float[Tensor, "batch head"]]:
    later = slice(position + 1, None)  # at the sink itself, sink and diagonal coincide
    return sink_column[..., later].mean(-1), diagonal[..., later].mean(-1)


@metric(units="1", source="arXiv 2510.06477, SVI (reconstruction: formula)")
def sink_identity_index(
    sink_column: Float[Tensor, "batch head query"],
    diagonal: Float[Tensor, "batch head query"],
    position: int = 0,
) -> Float[Tensor, "batch head"]:
    """Sink-versus-identity index, S / (S + I), S = mean A_t0 and I = mean A_tt over t ≥ 1.

    1 for a sink head, 0 for an identity head, 0.5 for a uniform one; NaN when S + I = 0. It says little
    where the support `sink_identity_mass` is small: see `sink_identity`. Reconstruction: only the name
    is in the sources. Source: arXiv 2510.06477.

    >>> pattern = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])
    >>> sink_identity_index(sink_column(pattern), diagonal(pattern))
    tensor([[0.2500]])
    """
    sink, identity = _sink_and_identity(sink_column, diagonal, position)
    return sink / (sink + identity)


@metric(units="1", source="arXiv 2510.06477, SVI (reconstruction: formula)")
def sink_identity_mass(
    sink_column: Float[Tensor, "batch head query"],
    diagonal: Float[Tensor, "batch head query"],
    position: int = 0,
) -> Float[Tensor, "batch head"]:
    """Support of the sink-versus-identity index, S + I: attention that goes to BOS or to oneself.

    NaN for a prompt of one token. Reconstruction. Source: arXiv 2510.06477.

    >>> pattern = torch.tensor([[[[1.0, 0.0], [0.25, 0.5]]]])
    >>> sink_identity_mass(sink_column(pattern), diagonal(pattern))
    tensor([[0.7500]])
    """
    sink, identity = _sink_and_identity(sink_column, diagonal, position)
    return sink + identity


@metric(units="1", source="this library (sink logits, arXiv 2510.06477 on GPT-OSS)")
def row_mass(column_sums: Float[Tensor, "batch head key"]) -> Float[Tensor, "batch head"]:
    """Mean sum of an attention row: 1 for a softmax, below 1 where a learned sink logit takes mass.

    Source: this library.

    >>> row_mass(torch.tensor([[[1.5, 0.5]]]))
    tensor([[1.]])
    """
    return column_sums.sum(-1) / column_sums.shape[-1]


@metric(units="1", source="arXiv 2510.06477 (value norms of BOS); arXiv 2410.13835")
def value_drain(
    value: Float[Tensor, "batch pos head d_head"], position: int = 0
) -> Float[Tensor, "batch head"]:
    """Value norm at BOS over the median of the others, ‖v₀‖ / median ‖vᵢ‖.

    Near 0, attending to BOS moves nothing. Heads that share a key-value head share the number. NaN for a
    prompt of one token. Source: arXiv 2510.06477; arXiv 2410.13835.

    >>> value_drain(torch.tensor([[[[1.0]], [[4.0]], [[4.0]]]]))
    tensor([[0.2500]])
    """
    norms = einops.rearrange(_at_least_float32(value).norm(dim=-1), "batch pos head -> batch head pos")
    others = torch.cat([norms[..., :position], norms[..., position + 1 :]], -1)
    return norms[..., position] / _median(others)


@metric(units="1", source="this library (is attending to the sink a no-op?)")
def sink_output_share(
    sink_column: Float[Tensor, "batch head query"],
    value: Float[Tensor, "batch pos head d_head"],
    z: Float[Tensor, "batch pos head d_head"],
    output_gram: Float[Tensor, "head d_head d_head"],
    position: int = 0,
) -> Float[Tensor, "batch head"]:
    """Share of the head's output that comes from BOS, mean over t ≥ 1 of ‖A_t0 v₀ W_O‖ / ‖z_t W_O‖.

    Near 0, attending to BOS is a no-op. It can exceed 1 where the other tokens' contribution cancels
    part of it. `output_gram` is W_O W_Oᵀ, so that ‖u W_O‖² = u W_O W_Oᵀ uᵀ. Queries whose head output is
    zero are left out. NaN for a prompt of one token. Source: this library, after arXiv 2510.06477.
    """
    through = output_gram.to(torch.float32)
    heads = einops.rearrange(_at_least_float32(z), "batch pos head d_head -> batch head pos d_head")
    sink = _at_least_float32(value[:, position])
    whole = einops.einsum(heads @ through.to(heads.dtype), heads, "b h q d, b h q d -> b h q")
    part = einops.einsum(sink, through.to(sink.dtype), sink, "b h d, h d e, b h e -> b h")
    share = sink_column * (part.clamp_min(0).sqrt()[..., None] / whole.clamp_min(0).sqrt())
    return torch.where(whole > 0, share, torch.nan)[..., position + 1 :].nanmean(-1)
