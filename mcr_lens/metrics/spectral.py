"""How many directions does the residual stream of one prompt use?

All of it follows from the eigenvalues σⱼ² of the smaller Gram matrix of X [pos, d_model], not centred
and not row-normalised, always in float64: squaring costs half the digits, and a massive row can be
10⁴ times the others.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mcr_lens.metrics._registry import derived, metric

TOP = 8
"""How many singular values a result keeps."""


class TridiagonalForm(NamedTuple):
    """The Gram matrix of each prompt as a tridiagonal matrix with BOS in front, and what is known of it.

    `corner` is the first diagonal entry without BOS, NaN where the first row goes altogether. Of a small
    matrix the entropies are known, and nothing is left of the matrix itself; of a large one they are NaN, and
    on a GPU the largest eigenvalues are too.
    """

    main: Float64[Tensor, "batch rank"]
    off: Float64[Tensor, "batch less"]
    corner: Float64[Tensor, "batch"]
    top: Float64[Tensor, "batch top"]
    total: Float64[Tensor, "batch"]
    entropy: Float64[Tensor, "batch"]
    top_without_bos: Float64[Tensor, "batch"]
    total_without_bos: Float64[Tensor, "batch"]
    entropy_without_bos: Float64[Tensor, "batch"]


def _eigenvalues(rows: Float[Tensor, "batch pos d_model"]) -> Float64[Tensor, "batch rank"]:
    # Apple's GPUs have no float64.
    wide = rows.cpu().double() if rows.device.type == "mps" else rows.double()
    small_side = wide.shape[1] <= wide.shape[2]
    gram = wide @ wide.mT if small_side else wide.mT @ wide
    # LAPACK raises or hangs on NaN, so those prompts go round it and come out as NaN.
    finite = gram.isfinite().all((1, 2))
    gram = torch.where(finite[:, None, None], gram, torch.zeros_like(gram))
    values = torch.linalg.eigvalsh(gram).clamp_min(0).flip(-1)
    return torch.where(finite[:, None], values, torch.full_like(values, torch.nan))


@derived
def spectrum(resid: Float[Tensor, "batch pos d_model"]) -> Float64[Tensor, "batch rank"]:
    """Squared singular values σ₁² ≥ σ₂² ≥ … of each prompt's residual matrix, min(pos, d_model) of them.

    NaN where the input is not finite. Source: arXiv 2510.06477, definition of matrix-based entropy.

    >>> spectrum(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]))
    tensor([[16.,  9.]], dtype=torch.float64)
    """
    return _eigenvalues(resid)


@derived
def spectrum_without_bos(
    resid: Float[Tensor, "batch pos d_model"], position: int = 0
) -> Float64[Tensor, "batch rank"]:
    """Squared singular values of the residual matrix with the row at `position` removed.

    No values at all (rank 0) for a prompt of one token. Source: this library.
    """
    return _eigenvalues(torch.cat([resid[:, :position], resid[:, position + 1 :]], 1))


@derived
def tridiagonal_form(
    spectrum: Float64[Tensor, "batch rank"], spectrum_without_bos: Float64[Tensor, "batch other"]
) -> TridiagonalForm:
    """What follows from both spectra, as if they were those of a small matrix. Source: this library."""
    nothing = spectrum[:, :0]
    without = spectrum_without_bos
    return TridiagonalForm(
        nothing, nothing, torch.full_like(spectrum[:, 0], torch.nan),
        spectrum[:, :TOP], spectrum.sum(-1), _entropy(spectrum),
        without.amax(-1) if without.shape[1] else torch.full_like(spectrum[:, 0], torch.nan),
        without.sum(-1), _entropy(without),
    )  # fmt: skip


@derived
def spectrum_of_directions(
    resid: Float[Tensor, "batch pos d_model"],
) -> Float64[Tensor, "batch rank"]:
    """Squared singular values after subtracting the token mean and scaling every row to length one.

    A zero row stays zero. Source: arXiv 2502.02013 (without the clamping of Gram entries at zero that
    its published code applies).
    """
    centred = resid.double() - resid.double().mean(1, keepdim=True)
    return _eigenvalues(torch.nn.functional.normalize(centred, dim=-1))


def _entropy(spectrum: Float[Tensor, "batch rank"]) -> Float[Tensor, "batch"]:
    if spectrum.shape[-1] == 0:
        return spectrum.new_full((spectrum.shape[0],), torch.nan)
    share = spectrum / spectrum.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).clamp_min(0)


def _top_share(spectrum: Float[Tensor, "batch rank"]) -> Float[Tensor, "batch"]:
    if spectrum.shape[-1] == 0:
        return spectrum.new_full((spectrum.shape[0],), torch.nan)
    return spectrum[:, 0] / spectrum.sum(-1)


@metric(units="nats", source="arXiv 2510.06477, matrix-based entropy (reconstruction: log base)")
def matrix_entropy(spectrum: Float[Tensor, "batch rank"]) -> Float[Tensor, "batch"]:
    """Matrix-based entropy, H = −Σⱼ pⱼ ln pⱼ with pⱼ = σⱼ² / ‖X‖²_F.

    In nats, between 0 (rank one) and ln min(pos, d_model); NaN for X = 0, where it is not defined.
    Divide by a logarithm when reading, with `normalized_entropy`. Source: arXiv 2510.06477.

    Misleads when prompts of different lengths are compared: its largest value is ln min(pos, d_model), by
    which `normalized_entropy` divides.

    >>> matrix_entropy(spectrum(torch.eye(4)[None]))  # ln 4
    tensor([1.3863], dtype=torch.float64)
    """
    return _entropy(spectrum)


@metric(units="1", source="Roy & Vetterli 2007")
def effective_rank(spectrum: Float[Tensor, "batch rank"]) -> Float[Tensor, "batch"]:
    """Effective rank, exp(H): the number of equal directions that would have this entropy.

    Between 1 and min(pos, d_model); NaN for X = 0. Source: Roy & Vetterli 2007.

    Misleads when it is read as a rank: one massive row takes it near 1 while the other rows still use as many
    directions as before.

    >>> effective_rank(spectrum(torch.eye(4)[None]))
    tensor([4.], dtype=torch.float64)
    """
    return _entropy(spectrum).exp()


@metric(units="1", source="arXiv 2510.06477, anisotropy")
def anisotropy(spectrum: Float[Tensor, "batch rank"]) -> Float[Tensor, "batch"]:
    """Anisotropy, p₁ = σ₁² / ‖X‖²_F: the share of the strongest direction.

    Between 1/min(pos, d_model) and 1; NaN for X = 0. Not Ethayarajh's mean cosine, which goes by the
    same name. Source: arXiv 2510.06477.

    Misleads when it is read as tokens that look alike: one long row is enough, so compare it with
    `anisotropy_without_bos`.

    >>> anisotropy(spectrum(torch.eye(4)[None]))
    tensor([0.2500], dtype=torch.float64)
    """
    return _top_share(spectrum)


@metric(units="1", source="arXiv 2510.06477 (norms of the residual matrix)")
def singular_values(spectrum: Float[Tensor, "batch all"]) -> Float[Tensor, "batch rank"]:
    """Largest singular values σ₁ ≥ σ₂ ≥ … of the residual matrix (eight; zero where it has fewer).

    In the units of the residual stream. Source: arXiv 2510.06477.

    Misleads when prompts of different lengths are compared: the sum of their squares grows with the
    number of tokens.

    >>> singular_values(spectrum(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])))[:, :3]
    tensor([[4., 3., 0.]], dtype=torch.float64)
    """
    top = spectrum[:, :TOP].sqrt()
    return torch.nn.functional.pad(top, (0, TOP - top.shape[1]))


@metric(units="nats", source="this library (the valley's decomposition)")
def matrix_entropy_without_bos(
    spectrum_without_bos: Float[Tensor, "batch rank"],
) -> Float[Tensor, "batch"]:
    """Matrix-based entropy of the residual matrix without the BOS row.

    In nats. A valley that is gone here is made by that one row, a valley that stays is not. NaN for a
    prompt of one token. Source: this library, after the mechanism of arXiv 2510.06477.

    Misleads when a second row is massive: the valley stays, though rows and not directions make it (see
    `top_norm`).

    >>> x = torch.eye(4)[None] * torch.tensor([100.0, 1.0, 1.0, 1.0])[:, None]  # a massive first row
    >>> matrix_entropy_without_bos(spectrum_without_bos(x))  # ln 3
    tensor([1.0986], dtype=torch.float64)
    """
    return _entropy(spectrum_without_bos)


@metric(units="1", source="this library (the valley's decomposition)")
def effective_rank_without_bos(
    spectrum_without_bos: Float[Tensor, "batch rank"],
) -> Float[Tensor, "batch"]:
    """Effective rank of the residual matrix without the BOS row, exp(H).

    NaN for a prompt of one token. Source: this library.

    Misleads when a second row is massive: it stays near 1 although the BOS row is gone (see `top_norm`).

    >>> x = torch.eye(4)[None] * torch.tensor([100.0, 1.0, 1.0, 1.0])[:, None]  # a massive first row
    >>> effective_rank_without_bos(spectrum_without_bos(x)).round(decimals=4)
    tensor([3.], dtype=torch.float64)
    """
    return _entropy(spectrum_without_bos).exp()


@metric(units="1", source="this library (the valley's decomposition)")
def anisotropy_without_bos(
    spectrum_without_bos: Float[Tensor, "batch rank"],
) -> Float[Tensor, "batch"]:
    """Anisotropy of the residual matrix without the BOS row, p₁.

    NaN for a prompt of one token. Source: this library.

    Misleads when a second row is massive: it stays near 1 although the BOS row is gone (see `top_norm`).

    >>> x = torch.eye(4)[None] * torch.tensor([100.0, 1.0, 1.0, 1.0])[:, None]  # a massive first row
    >>> anisotropy_without_bos(spectrum_without_bos(x))
    tensor([0.3333], dtype=torch.float64)
    """
    return _top_share(spectrum_without_bos)


@metric(units="nats", source="arXiv 2502.02013, prompt entropy with α = 1", default=False)
def direction_entropy(
    spectrum_of_directions: Float[Tensor, "batch rank"],
) -> Float[Tensor, "batch"]:
    """Matrix-based entropy of token-centred, row-normalised states: norms do not count, only directions.

    In nats. A massive row is one row among the others here. NaN for a prompt of one token, which
    centring leaves at zero. Source: arXiv 2502.02013.

    Misleads when it is held beside `matrix_entropy`: centring and scaling remove the very norms that make
    that one's valley.

    >>> x = torch.tensor([[[100.0, 0.0], [-100.0, 0.0], [0.0, 1.0], [0.0, -1.0]]])
    >>> direction_entropy(spectrum_of_directions(x))  # ln 2
    tensor([0.6931], dtype=torch.float64)
    """
    return _entropy(spectrum_of_directions)
