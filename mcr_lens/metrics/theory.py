"""What does Theorem 1 need to know about the residual stream of one prompt?

The energy of the BOS row and of the rest, how much of the rest points the way of BOS, and the same for
whichever row, or whichever few rows, say most. Always in float64: next to a massive row, the rest may hold
10⁻⁸ of the energy. `mcr_lens.theorem` turns these numbers into bounds.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mcr_lens.metrics._registry import derived, metric
from mcr_lens.metrics.norms import TopRows

TIED = 1e-12
"""Shares that agree so far count as equal: repeated tokens have equal rows, which rounding tells apart."""

SAME_DIRECTION = 1e-10
"""A row of length one with less than this outside the rows before it points where they point."""


class Tightest(NamedTuple):
    """The row along which a residual matrix has most of its energy: that share, and the row's place."""

    share: Float64[Tensor, "batch"]
    position: Int[Tensor, "batch"]


class Span(NamedTuple):
    """What the span of the 1, 2, 3 largest rows holds of a residual matrix, and its dimension."""

    share: Float64[Tensor, "batch top"]
    dimension: Int[Tensor, "batch top"]


def _wide(rows: Float[Tensor, "batch pos d_model"]) -> Float64[Tensor, "batch pos d_model"]:
    # Apple's GPUs have no float64.
    return rows.cpu().double() if rows.device.type == "mps" else rows.double()


def _others(energies: Float64[Tensor, "batch pos"], position: int) -> Float64[Tensor, "batch other"]:
    return torch.cat([energies[:, :position], energies[:, position + 1 :]], 1)


def _unit(rows: Float64[Tensor, "batch d_model"]) -> Float64[Tensor, "batch d_model"]:
    """Rows of length one; a zero row stays zero, NaN stays NaN."""
    length = rows.norm(dim=-1, keepdim=True)
    return torch.where(length == 0, 0.0, rows / length)


def _along(
    rows: Float64[Tensor, "batch pos d_model"], direction: Float64[Tensor, "batch d_model"]
) -> Float64[Tensor, "batch pos"]:
    """(xᵢ · u)² of every row."""
    return (rows @ direction[:, :, None]).squeeze(-1).square()


@derived
def row_energies(resid: Float[Tensor, "batch pos d_model"]) -> Float64[Tensor, "batch pos"]:
    """Energy ‖xᵢ‖² of every row of the residual stream, in float64.

    >>> row_energies(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]))
    tensor([[25.,  1.]], dtype=torch.float64)
    """
    return _wide(resid).square().sum(-1)


@derived
def energies_along_bos(
    resid: Float[Tensor, "batch pos d_model"], position: int = 0
) -> Float64[Tensor, "batch pos"]:
    """Energy of every row along the direction of BOS, (xᵢ · x₀)² / ‖x₀‖²; 0 where x₀ = 0.

    >>> energies_along_bos(torch.tensor([[[2.0, 0.0], [1.0, 1.0]]]))
    tensor([[4., 1.]], dtype=torch.float64)
    """
    wide = _wide(resid)
    return _along(wide, _unit(wide[:, position]))


@derived
def tightest_row(
    resid: Float[Tensor, "batch pos d_model"], row_energies: Float64[Tensor, "batch pos"]
) -> Tightest:
    """The row i with the largest ‖X xᵢ‖² / (‖xᵢ‖² ‖X‖_F²), the first of equals (to twelve digits).

    NaN and −1 for X = 0, which has no direction at all.
    """
    wide = _wide(resid)
    if wide.shape[1] <= wide.shape[2]:
        caught = (wide @ wide.mT).square().sum(-1)
    else:
        caught = (wide @ (wide.mT @ wide) * wide).sum(-1)
    return tightest(caught, row_energies)


def tightest(caught: Float64[Tensor, "batch pos"], row_energies: Float64[Tensor, "batch pos"]) -> Tightest:
    """The row of the largest share, from ‖X xᵢ‖² and ‖xᵢ‖² of all rows."""
    along = torch.where(row_energies == 0, 0.0, caught / row_energies)
    shares = (along / row_energies.sum(-1, keepdim=True)).clamp_max(1)
    most = shares.amax(-1)
    first = (shares >= (1 - TIED) * most[:, None]).int().argmax(-1)
    return Tightest(most, torch.where(most > 0, first, -1))


@derived
def span_of_top_rows(
    resid: Float[Tensor, "batch pos d_model"],
    row_energies: Float64[Tensor, "batch pos"],
    top_rows: TopRows,
) -> Span:
    """‖X U‖_F² / ‖X‖_F² with U an orthonormal basis of the span of the 1, 2, 3 largest rows, and its size.

    By Gram-Schmidt. A row that points where the earlier ones do (to ten digits) adds no dimension, so that
    no basis vector is made of rounding; the bound holds for any orthonormal U.
    """
    wide, total = _wide(resid), row_energies.sum(-1)
    places = top_rows.position.to(wide.device)
    caught, size = torch.zeros_like(total), torch.zeros_like(places[:, 0])
    basis: list[Tensor] = []
    shares, sizes = [], []
    for place in places.unbind(-1):
        there = place >= 0
        left = _unit(wide[torch.arange(len(place), device=wide.device), place.clamp_min(0)])
        for _ in range(2):  # massive rows are nearly collinear: the first pass leaves its own rounding
            for vector in basis:
                left = left - (left * vector).sum(-1, keepdim=True) * vector
        new = there & (left.norm(dim=-1) > SAME_DIRECTION)
        basis.append(torch.where(new[:, None], _unit(left), 0.0))
        caught, size = caught + _along(wide, basis[-1]).sum(-1), size + new
        shares.append(torch.where(there, (caught / total).clamp_max(1), torch.nan))
        sizes.append(torch.where(there & total.isfinite(), size, -1))
    return Span(torch.stack(shares, -1), torch.stack(sizes, -1))


@metric(units="1", source="arXiv 2510.06477, Theorem 1 (M)")
def bos_energy(row_energies: Float64[Tensor, "batch pos"], position: int = 0) -> Float[Tensor, "batch"]:
    """Energy of the BOS row, M = ‖x₀‖².

    In squared units of the residual stream. Source: arXiv 2510.06477, Theorem 1.

    Misleads when it is read without `rest_energy`: the bound needs their quotient c = M / R, and both
    grow with depth.

    >>> bos_energy(torch.tensor([[25.0, 1.0, 2.0]]).double())
    tensor([25.], dtype=torch.float64)
    """
    return row_energies[:, position]


@metric(units="1", source="arXiv 2510.06477, Theorem 1 (R)")
def rest_energy(row_energies: Float64[Tensor, "batch pos"], position: int = 0) -> Float[Tensor, "batch"]:
    """Energy of all other rows together, R = Σ_{i ≠ 0} ‖xᵢ‖².

    In squared units of the residual stream; 0 for a prompt of one token. Source: arXiv 2510.06477, Theorem 1.

    Misleads when a second row is massive: the energy is then that row's, not that of the many.

    >>> rest_energy(torch.tensor([[25.0, 1.0, 2.0]]).double())
    tensor([3.], dtype=torch.float64)
    """
    return _others(row_energies, position).sum(-1)


@metric(units="1", source="arXiv 2510.06477, Theorem 1 (α)")
def bos_alignment(
    energies_along_bos: Float64[Tensor, "batch pos"],
    row_energies: Float64[Tensor, "batch pos"],
    position: int = 0,
) -> Float[Tensor, "batch"]:
    """Share of the other rows' energy along the BOS row, α = (1/R) Σ_{i ≠ 0} (xᵢ · x₀)² / ‖x₀‖².

    Between 0 (orthogonal to BOS) and 1 (all collinear with it); 0 where x₀ = 0. NaN where there is no other
    energy, R = 0, as for a prompt of one token. Source: arXiv 2510.06477, Theorem 1.

    Misleads when the rest is dominated by one other massive row: α is then how that row points, not how
    the tokens do.

    >>> x = torch.tensor([[[9.0, 0.0], [1.0, 1.0]]])
    >>> bos_alignment(energies_along_bos(x), row_energies(x))
    tensor([0.5000], dtype=torch.float64)
    """
    along, whole = (_others(e, position).sum(-1) for e in (energies_along_bos, row_energies))
    return (along / whole).clamp_max(1)


@metric(units="token", source="this library, after arXiv 2510.06477, Theorem 1")
def tightest_token(tightest_row: Tightest) -> Int[Tensor, "batch"]:
    """Position of the row with the tightest bound on σ₁², argmax over i of ‖X xᵢ‖² / ‖xᵢ‖².

    Whether it is BOS is thus answered, not assumed. Counted from the first real token, the first of equals;
    −1 for X = 0. Source: this library, after arXiv 2510.06477, Theorem 1.

    Misleads when no row is tight: some row always is the tightest, so read it with `tightest_share`.

    >>> x = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]])
    >>> tightest_token(tightest_row(x, row_energies(x)))
    tensor([1])
    """
    return tightest_row.position


@metric(units="1", source="this library, after arXiv 2510.06477, Theorem 1")
def tightest_share(tightest_row: Tightest) -> Float[Tensor, "batch"]:
    """Largest share of the energy along one row, max over i of ‖X xᵢ‖² / (‖xᵢ‖² ‖X‖_F²).

    p₁ is at least this large. Between 1 / rank X and 1; NaN for X = 0. Source: this library, after
    arXiv 2510.06477, Theorem 1.

    Misleads when rows point the same way without being long: the share is high by direction, and no row
    is massive.

    >>> x = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    >>> tightest_share(tightest_row(x, row_energies(x)))  # 5 of 6
    tensor([0.8333], dtype=torch.float64)
    """
    return tightest_row.share


@metric(units="1", source="this library, after arXiv 2510.06477, Theorem 1 (k rows)")
def top_rows_share(span_of_top_rows: Span) -> Float[Tensor, "batch top"]:
    """Share of the energy in the span of the 1, 2, 3 largest rows, ‖X U‖_F² / ‖X‖_F².

    U is an orthonormal basis of that span. NaN where the prompt has fewer tokens, and for X = 0.
    Source: this library; Theorem 1 of arXiv 2510.06477 is the case of one row.

    Misleads when prompts have few tokens: the span of three rows holds much of any short prompt.

    >>> from mcr_lens.metrics import token_norms, top_rows
    >>> x = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))[None]
    >>> top_rows_share(span_of_top_rows(x, row_energies(x), top_rows(token_norms(x)))) * 30
    tensor([[16., 25., 29.]], dtype=torch.float64)
    """
    return span_of_top_rows.share


@metric(units="1", source="this library, after arXiv 2510.06477, Theorem 1 (k rows)")
def top_rows_dimension(span_of_top_rows: Span) -> Int[Tensor, "batch top"]:
    """Dimension of the span of the 1, 2, 3 largest rows: fewer where massive rows are collinear.

    0 for X = 0; −1 where the prompt has fewer tokens. Source: this library.

    Misleads when it is read as the rank of the stream: it says whether the longest rows are collinear,
    and nothing of the others.

    >>> from mcr_lens.metrics import token_norms, top_rows
    >>> x = torch.tensor([[[9.0, 0.0], [8.0, 0.0], [0.0, 1.0]]])
    >>> top_rows_dimension(span_of_top_rows(x, row_energies(x), top_rows(token_norms(x))))
    tensor([[1, 1, 2]])
    """
    return span_of_top_rows.dimension
