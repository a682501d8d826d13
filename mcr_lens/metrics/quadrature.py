"""How are entropies had from a large tridiagonal matrix without its eigenvalues?

With t = eˢ, −Σ λ ln λ = ∫ t (Σ λ/(λ + t) − Σ λ/(1 + t)) ds, and Σ λ/(λ + t) follows from the matrix by one
recursion over its rows, for many matrices and many t at once. The integrand is analytic in a strip of half
width π around the real axis, so the trapezoidal rule with step h errs by about exp(−2π²/h).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mcr_lens import gpu
from mcr_lens.metrics._registry import joint
from mcr_lens.metrics.spectral import TOP, TridiagonalForm

STEP = 0.6
"""Distance of the points: an error of 10⁻¹⁴."""

LOWEST, HIGHEST = -56.0, 16.0
"""For a matrix of trace one: from below the rounding of what a massive BOS leaves over, 10⁻⁸ of all energy
and less, to where the rest falls as 1/t and is summed without points."""

TOGETHER = 2**14
"""Numbers in one step of the recursion, so that all of its arrays stay in the cache."""


class SpectralReadings(NamedTuple):
    """What the metrics say of both spectra; None for what nobody asked for."""

    matrix_entropy: Float[Tensor, "batch"] | None
    effective_rank: Float[Tensor, "batch"] | None
    anisotropy: Float[Tensor, "batch"] | None
    singular_values: Float[Tensor, "batch rank"] | None
    matrix_entropy_without_bos: Float[Tensor, "batch"] | None
    effective_rank_without_bos: Float[Tensor, "batch"] | None
    anisotropy_without_bos: Float[Tensor, "batch"] | None


@joint(SpectralReadings)
def spectral_readings(
    tridiagonal_form: TridiagonalForm, wanted: frozenset[str] = frozenset(SpectralReadings._fields)
) -> SpectralReadings:
    """The spectral metrics from the Gram matrix in tridiagonal form: the same numbers as the metrics give.

    To 10⁻¹⁰ nats. Source: this library.
    """
    form = tridiagonal_form
    if form.main.shape[1]:
        form = _completed(form)
    entropy, without = form.entropy, form.entropy_without_bos
    given: dict[str, Any] = {
        "matrix_entropy": entropy,
        "effective_rank": entropy.exp(),
        "anisotropy": form.top[:, 0] / form.total,
        "singular_values": torch.nn.functional.pad(form.top.sqrt(), (0, TOP - form.top.shape[1])),
        "matrix_entropy_without_bos": without,
        "effective_rank_without_bos": without.exp(),
        "anisotropy_without_bos": form.top_without_bos / form.total_without_bos,
    }
    return SpectralReadings(**{name: given[name] if name in wanted else None for name in given})


def _completed(form: TridiagonalForm) -> TridiagonalForm:
    """With what is not known of the spectra of a large matrix: entropies, and on a GPU the largest too."""
    parts = form.main, form.off, form.corner
    if gpu.available(form.main):
        found: Any = entropies_on_gpu(*parts)
        top, top_without = gpu.largest(gpu.Tridiagonal(form.main, form.off), form.corner, form.top.shape[1])
        form = form._replace(top=top, top_without_bos=top_without)
    else:
        found = entropies(*(part.cpu().numpy() for part in parts))
    entropy, without = (torch.from_numpy(each).to(form.main.device) for each in found)
    return form._replace(entropy=entropy, entropy_without_bos=without)


def entropies(
    main: Float64[np.ndarray, "batch rank"],
    off: Float64[np.ndarray, "batch less"],
    corner: Float64[np.ndarray, "batch"],
) -> tuple[Float64[np.ndarray, "batch"], Float64[np.ndarray, "batch"]]:
    """Entropies of tridiagonal matrices, and of the same without BOS, whose part is in the first row alone.

    `corner` is the first diagonal entry without BOS, or NaN where the first row goes altogether. In nats; NaN
    for a matrix that is zero or not finite. Source: this library.
    """
    points = np.exp(np.arange(LOWEST, HIGHEST, STEP))
    some = max(1, TOGETHER // len(points))
    with np.errstate(all="ignore"):  # 0/0 and infinity are said by the numbers that come out
        parts = [
            _some(main[i : i + some], off[i : i + some], corner[i : i + some], points)
            for i in range(0, len(main), some)
        ]
    whole, without = (np.concatenate(each) for each in zip(*parts, strict=True))
    return whole, without


def entropies_on_gpu(
    main: Float64[Tensor, "batch rank"], off: Float64[Tensor, "batch less"], corner: Float64[Tensor, "batch"]
) -> tuple[Float64[np.ndarray, "batch"], Float64[np.ndarray, "batch"]]:
    """The same with the recursion on the GPU. Source: this library."""
    total = main.sum(1, keepdim=True)
    form, first = gpu.Tridiagonal(main / total, off / total), corner / total[:, 0]
    rest = form.main[:, 1:].sum(1) + torch.where(first.isnan(), 0.0, first)
    points = torch.arange(LOWEST, HIGHEST, STEP, dtype=torch.float64).exp()
    whole, without = (part.cpu().numpy() for part in gpu.resolvents(form, first, points.to(main.device)))
    with np.errstate(all="ignore"):
        t, rests = points.numpy(), rest.cpu().numpy()[:, None]
        return _integral(whole, np.ones_like(rests), t), _integral(without, rests, t)


def _some(main: np.ndarray, off: np.ndarray, corner: np.ndarray, t: np.ndarray) -> tuple[Any, Any]:
    total = main.sum(1, keepdims=True)
    diagonal, squares = main / total, np.square(off / total)
    # From the last row up: the pivots of the matrix plus t are t + u, and their derivatives 1 + v.
    u = np.repeat(diagonal[:, -1:], len(t), 1)
    v, sums, inverse, part, below = (np.zeros_like(u) for _ in range(5))
    for row in range(main.shape[1] - 1, 0, -1):
        sums += _share(u, v, t, inverse, part)
        np.multiply(squares[:, row - 1 : row], inverse, out=below)
        v += 1
        v *= inverse
        v *= below
        np.subtract(diagonal[:, row - 1 : row], below, out=u)
    first = corner[:, None] / total
    gone = np.isnan(first)
    rest = diagonal[:, 1:].sum(1, keepdims=True) + np.where(gone, 0, first)
    without = sums + np.where(gone, 0, _share(first - below, v, t, inverse, part))
    return _integral(sums + _share(u, v, t, inverse, part), np.ones_like(total), t), _integral(
        without, rest, t
    )


def _share(u: np.ndarray, v: np.ndarray, t: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> np.ndarray:
    """What one row adds to Σ λ/(λ + t): 1 − t (1 + v)/(u + t)."""
    np.add(u, t, out=inverse)
    inverse[inverse == 0] = np.finfo(float).tiny
    np.reciprocal(inverse, out=inverse)
    np.multiply(v, t, out=out)
    np.subtract(u, out, out=out)
    out *= inverse
    return out


def _integral(sums: np.ndarray, total: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Entropy of the eigenvalues λ/Σ λ from Σ λ/(λ + t) at all points."""
    inside = STEP * t * (sums - total / (1 + t))
    # Below the lowest point it falls as t, since the sum is the number of eigenvalues above it; then as 1/t.
    tails = (inside[:, 0] + inside[:, -1]) / np.expm1(STEP)
    return np.maximum((inside.sum(1) + tails) / total[:, 0] + np.log(total[:, 0]), 0)
