"""How large are the rows and the single activations of the residual stream, and who writes them?"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mcr_lens.metrics._registry import derived, metric
from mcr_lens.metrics.medians import median

TOP = 3
"""How many activations, rows and keys a result keeps (as in the figures of arXiv 2402.17762)."""


class TopRows(NamedTuple):
    """The rows of one residual matrix with the largest norms, and their place."""

    norm: Float[Tensor, "batch top"]
    position: Int[Tensor, "batch top"]


class Largest(NamedTuple):
    """The largest activations of one residual matrix by magnitude, with their place."""

    magnitude: Float[Tensor, "batch top"]
    token: Int[Tensor, "batch top"]
    dimension: Int[Tensor, "batch top"]


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _without(x: Float[Tensor, "batch pos"], position: int) -> Float[Tensor, "batch other"]:
    return torch.cat([x[:, :position], x[:, position + 1 :]], 1)


def _top(x: Float[Tensor, "*batch item"]) -> tuple[Tensor, Tensor]:
    """The largest numbers of the last axis and their places, the first of equals first; NaN and −1 beyond."""
    left, found = x.clone(), []
    for _ in range(min(TOP, x.shape[-1])):  # sooner than sorting them all; of equals, `max` takes the first
        found.append(left.max(dim=-1, keepdim=True))
        left.scatter_(-1, found[-1].indices, -torch.inf)
    nothing = x.new_full((*x.shape[:-1], TOP - len(found)), torch.nan)
    values = torch.cat([*(each.values for each in found), nothing], -1)
    return values, torch.cat([*(each.indices for each in found), torch.full_like(nothing, -1).long()], -1)


@derived
def token_norms(resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
    """L2 norm of every row of the residual stream, in float32 or better.

    >>> token_norms(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]))
    tensor([[5., 1.]])
    """
    return _at_least_float32(resid).norm(dim=-1)


@derived
def top_rows(token_norms: Float[Tensor, "batch pos"]) -> TopRows:
    """The three rows with the largest norms; NaN and −1 where the prompt has fewer."""
    return TopRows(*_top(token_norms))


@derived
def largest_activations(resid: Float[Tensor, "batch pos d_model"]) -> Largest:
    """The three largest activations by magnitude, with token and dimension; of equals, the first."""
    wide = _at_least_float32(resid)
    # The largest three stand in the three rows whose largest is largest.
    by_row = torch.maximum(wide.amax(-1), -wide.amin(-1))
    rows = _top(by_row)[1][:, : wide.shape[1]].sort(dim=1).values
    candidates = wide.gather(1, rows[..., None].expand(-1, -1, wide.shape[-1])).abs()
    magnitude, flat = _top(candidates.flatten(1))
    d_model = resid.shape[-1]
    return Largest(magnitude, rows.gather(1, flat // d_model), flat % d_model)


@derived
def activation_median(resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
    """Median magnitude |x| over all activations of one residual matrix, in float32 or better."""
    return median(_at_least_float32(resid).abs().flatten(1))


@metric(units="1", source="arXiv 2510.06477, BOS norm")
def bos_norm(token_norms: Float[Tensor, "batch pos"], position: int = 0) -> Float[Tensor, "batch"]:
    """L2 norm of the residual stream at BOS, ‖x₀‖.

    In the units of the residual stream. Source: arXiv 2510.06477, Fig. 1.

    Misleads when it is compared between models or depths by itself: every row grows with depth, so look
    at `massive_activation_ratio`.

    >>> bos_norm(torch.tensor([[5.0, 1.0]]))
    tensor([5.])
    """
    return token_norms[:, position]


@metric(units="1", source="arXiv 2510.06477, BOS norm against the other tokens")
def other_norm_median(token_norms: Float[Tensor, "batch pos"], position: int = 0) -> Float[Tensor, "batch"]:
    """Median L2 norm of the other tokens, median over i ≠ 0 of ‖xᵢ‖.

    NaN for a prompt of one token. Source: arXiv 2510.06477.

    Misleads when half of the other rows are massive too, since the median is then one of them.

    >>> other_norm_median(torch.tensor([[8.0, 1.0, 2.0, 9.0]]))
    tensor([2.])
    """
    return median(_without(token_norms, position))


@metric(units="1", source="arXiv 2510.06477, BOS norm against the other tokens")
def other_norm_mean(token_norms: Float[Tensor, "batch pos"], position: int = 0) -> Float[Tensor, "batch"]:
    """Mean L2 norm of the other tokens, mean over i ≠ 0 of ‖xᵢ‖.

    NaN for a prompt of one token. Source: arXiv 2510.06477.

    Misleads when a second token is massive: one long row pulls the mean up, and BOS looks ordinary beside
    it.

    >>> other_norm_mean(torch.tensor([[8.0, 1.0, 2.0, 9.0]]))
    tensor([4.])
    """
    return _without(token_norms, position).mean(-1)


@metric(units="1", source="this library")
def other_norm_max(token_norms: Float[Tensor, "batch pos"], position: int = 0) -> Float[Tensor, "batch"]:
    """Largest L2 norm among the other tokens: is BOS the only massive row?

    NaN for a prompt of one token. Source: this library.

    Misleads when it is read as a typical token: it grows with the length of the prompt, as every maximum
    does.

    >>> other_norm_max(torch.tensor([[8.0, 1.0, 2.0, 9.0]]))
    tensor([9.])
    """
    others = _without(token_norms, position)
    nothing = others.new_full((others.shape[0],), torch.nan)
    return others.amax(-1) if others.shape[1] else nothing


@metric(units="1", source="arXiv 2510.06477; arXiv 2402.17762")
def massive_activation_ratio(
    token_norms: Float[Tensor, "batch pos"], position: int = 0
) -> Float[Tensor, "batch"]:
    """BOS norm over the median norm of the other tokens, ‖x₀‖ / median ‖xᵢ‖.

    A pure number, 1 where BOS is a token like the others; NaN for a prompt of one token.
    Source: arXiv 2510.06477.

    Misleads when the other rows are short: the ratio is large though no row is long.

    >>> massive_activation_ratio(torch.tensor([[8.0, 1.0, 2.0, 9.0]]))
    tensor([4.])
    """
    return token_norms[:, position] / median(_without(token_norms, position))


@metric(units="token", source="this library")
def strongest_token(token_norms: Float[Tensor, "batch pos"]) -> Int[Tensor, "batch"]:
    """Position of the row with the largest norm: which token is massive, if one is?

    Counted from the first real token. Source: this library.

    Misleads when no row stands out: some row is always the longest, so look at `top_norm` for by how
    much.

    >>> strongest_token(torch.tensor([[5.0, 1.0, 7.0]]))
    tensor([2])
    """
    return token_norms.argmax(-1)


@metric(units="1", source="this library; arXiv 2402.17762 (massive activations at delimiters)")
def top_norm(top_rows: TopRows) -> Float[Tensor, "batch top"]:
    """The three largest row norms ‖xᵢ‖, wherever they stand: is more than one row massive?

    In the units of the residual stream; NaN where the prompt has fewer tokens. Source: this library.

    Misleads when it is read without the median: three long rows in a stream of long rows are not massive.

    >>> top_norm(top_rows(torch.tensor([[5.0, 1.0, 7.0, 2.0]])))
    tensor([[7., 5., 2.]])
    """
    return top_rows.norm


@metric(units="token", source="this library; arXiv 2402.17762 (massive activations at delimiters)")
def top_norm_token(top_rows: TopRows) -> Int[Tensor, "batch top"]:
    """Positions of the three largest row norms.

    Counted from the first real token; −1 where the prompt has fewer tokens. Source: this library.

    Misleads when no row stands out: the three longest rows have positions whether they are massive or
    not.

    >>> top_norm_token(top_rows(torch.tensor([[5.0, 1.0, 7.0, 2.0]])))
    tensor([[2, 0, 3]])
    """
    return top_rows.position


@metric(units="1", source="arXiv 2510.06477 (‖X‖_F² = M + R)")
def frobenius_norm(token_norms: Float[Tensor, "batch pos"]) -> Float[Tensor, "batch"]:
    """Frobenius norm of the residual matrix, ‖X‖_F = (Σᵢ ‖xᵢ‖²)^½.

    In the units of the residual stream: ‖xᵢ‖²/‖X‖_F² is the share of one row. Source: arXiv 2510.06477.

    Misleads when prompts differ in length: it grows with the number of tokens, also where no row is
    massive.

    >>> frobenius_norm(torch.tensor([[3.0, 4.0]]))
    tensor([5.])
    """
    return token_norms.norm(dim=-1)


@metric(units="1", source="arXiv 2402.17762")
def top_activation(largest_activations: Largest) -> Float[Tensor, "batch top"]:
    """Magnitude of the three largest single activations |x| of the residual stream.

    Source: arXiv 2402.17762 (massive: above 100 and about 1,000 times the median magnitude).

    Misleads when the absolute criterion (above 100) is applied to a small model, whose whole stream is
    small: compare with `median_activation`.

    >>> top_activation(largest_activations(torch.tensor([[[1.0, -7.0], [3.0, 5.0]]])))
    tensor([[7., 5., 3.]])
    """
    return largest_activations.magnitude


@metric(units="token", source="arXiv 2402.17762")
def top_activation_token(largest_activations: Largest) -> Int[Tensor, "batch top"]:
    """Position of the tokens that hold the three largest activations.

    Source: arXiv 2402.17762.

    Misleads when the largest activations are ordinary: three of them always have a place.

    >>> top_activation_token(largest_activations(torch.tensor([[[1.0, -7.0], [3.0, 5.0]]])))
    tensor([[0, 1, 1]])
    """
    return largest_activations.token


@metric(units="dimension", source="arXiv 2402.17762")
def top_activation_dimension(largest_activations: Largest) -> Int[Tensor, "batch top"]:
    """Dimension (coordinate of the residual stream) of the three largest activations.

    Source: arXiv 2402.17762.

    Misleads when dimensions of different models, or of a model after a rotation of its basis, are
    compared: the numbers are names of coordinates.

    >>> top_activation_dimension(largest_activations(torch.tensor([[[1.0, -7.0], [3.0, 5.0]]])))
    tensor([[1, 1, 0]])
    """
    return largest_activations.dimension


@metric(units="1", source="arXiv 2402.17762")
def median_activation(activation_median: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Median magnitude |x| over all activations of the residual stream at this depth.

    Source: arXiv 2402.17762.

    Misleads when it is taken for a norm: it is a magnitude per coordinate, and a row of the same norm has
    a smaller one in a wider model.

    >>> median_activation(activation_median(torch.tensor([[[1.0, -2.0], [3.0, -10.0]]])))
    tensor([2.5000])
    """
    return activation_median


@metric(units="1", source="arXiv 2510.06477 (the MLPs write the massive activation)")
def mlp_bos_norm(mlp_out: Float[Tensor, "batch pos d_model"], position: int = 0) -> Float[Tensor, "batch"]:
    """L2 norm of what the block's MLP writes at BOS, ‖MLP(x)₀‖.

    Source: arXiv 2510.06477.

    Misleads when the write opposes what is there: a long write can shorten the row, so `norm_sources`
    weighs it with its sign.

    >>> mlp_bos_norm(torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]))
    tensor([5.])
    """
    return _at_least_float32(mlp_out[:, position]).norm(dim=-1)


@metric(units="1", source="arXiv 2510.06477 (the MLPs write the massive activation)")
def attn_bos_norm(attn_out: Float[Tensor, "batch pos d_model"], position: int = 0) -> Float[Tensor, "batch"]:
    """L2 norm of what the block's attention writes at BOS, ‖Attn(x)₀‖.

    Source: arXiv 2510.06477.

    Misleads when the write opposes what is there: a long write can shorten the row, so `norm_sources`
    weighs it with its sign.

    >>> attn_bos_norm(torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]))
    tensor([5.])
    """
    return _at_least_float32(attn_out[:, position]).norm(dim=-1)
