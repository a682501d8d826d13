"""How is everything that the metrics need taken from a residual stream with one eigenvalue problem?

Per prompt: the smaller Gram matrix, its reduction to tridiagonal form with the BOS row in front, and from it
both spectra, with BOS and without (see `mcr_lens.lapack`). What the theorem needs comes from the same matrix.
All of it in float64, one prompt to a core.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mcr_lens import lapack
from mcr_lens.metrics._registry import joint
from mcr_lens.metrics.medians import median_of
from mcr_lens.metrics.norms import TOP, Largest, TopRows, largest_activations
from mcr_lens.metrics.spectral import TridiagonalForm
from mcr_lens.metrics.theory import SAME_DIRECTION, TIED, Span, Tightest
from mcr_lens.metrics.tridiagonal import SPECTRA, read, without_numbers
from mcr_lens.workers import SCRATCH, run_apart

SMALL = 48
"""A matrix of so few rows is done at once: handing it over would take longer."""


class ResidualSummary(NamedTuple):
    """What the metrics read of one residual stream; None for what nobody asked for."""

    spectrum: Float64[Tensor, "batch rank"] | None
    spectrum_without_bos: Float64[Tensor, "batch rank"] | None
    row_energies: Float64[Tensor, "batch pos"] | None
    energies_along_bos: Float64[Tensor, "batch pos"] | None
    tightest_row: Tightest | None
    span_of_top_rows: Span | None
    activation_median: Float[Tensor, "batch"] | None
    largest_activations: Largest | None
    tridiagonal_form: TridiagonalForm | None


# Of numbers and arrays for one prompt, of tensors once all are together.
_LARGEST, _SPAN, _TIGHTEST = (cast(Any, record) for record in (Largest, Span, Tightest))

FIELDS = frozenset(ResidualSummary._fields)
NOTHING: dict[str, Any] = dict.fromkeys(ResidualSummary._fields)


@joint(ResidualSummary)
def residual_summary(
    resid: Float[Tensor, "batch pos d_model"],
    top_rows: TopRows,
    position: int = 0,
    wanted: frozenset[str] = FIELDS,
) -> Any:
    """Both spectra and what Theorem 1 needs, from one Gram matrix per prompt.

    The same numbers as the functions of these names, up to rounding in float64. Returned as a `Pending`
    where the work goes on elsewhere. Source: this library.
    """
    if resid.device.type == "cuda":
        from mcr_lens.metrics.residuals_on_gpu import summarize

        return summarize(resid, top_rows, position, wanted)
    small = resid.shape[1] <= SMALL
    # A copy where the work may wait: the stream may be edited, or its memory used again, before it is done.
    rows = resid.cpu() if small or resid.device.type != "cpu" else resid.clone()
    places = top_rows.position.cpu().numpy()

    def one(number: int) -> dict[str, Any]:
        with np.errstate(all="ignore"):  # 0/0 and infinity are said by the numbers that come out
            return _summarize(rows[number], places[number], position, wanted)

    def together(parts: list[dict[str, Any]]) -> ResidualSummary:
        return ResidualSummary(**NOTHING | joined(parts, wanted))

    numbers = range(len(rows))
    if small:
        return together([one(number) for number in numbers])
    return run_apart(one, numbers, together, held=rows.nbytes)


def joined(
    parts: list[dict[str, Any]], wanted: frozenset[str], device: torch.device | None = None
) -> dict[str, Any]:
    """What is wanted of all prompts, on this device."""
    return {name: _stack([part[name] for part in parts], device) for name in wanted & parts[0].keys()}


def _stack(values: Sequence[Any], device: torch.device | None) -> Any:
    """Numbers of all prompts as one tensor; of records, part by part."""
    if isinstance(values[0], tuple):
        return type(values[0])(*(_stack(part, device) for part in zip(*values, strict=True)))
    return torch.from_numpy(np.stack(values)).to(device)


def _summarize(rows: Tensor, places: np.ndarray, position: int, wanted: frozenset[str]) -> dict[str, Any]:
    """All quantities of one prompt, whose rows are [pos, d_model] in the processor's memory.

    In few and large steps: each one lets go of Python's lock, and another thread may take it.
    """
    x = (rows if rows.dtype in (torch.float32, torch.float64) else rows.float()).numpy()
    found: dict[str, Any] = {}
    if wanted & {"activation_median", "largest_activations"}:
        magnitudes = np.abs(x, out=SCRATCH.array("magnitudes", x.shape, x.dtype))
        if "activation_median" in wanted:
            found["activation_median"] = median_of(magnitudes.ravel())
        if "largest_activations" in wanted:
            found["largest_activations"] = _largest(magnitudes)
    if wanted <= {"activation_median", "largest_activations"}:
        return found
    # BOS first, so that the reduction leaves it in place.
    x = np.concatenate(
        [x[position : position + 1], x[:position], x[position + 1 :]], out=SCRATCH.array("rows", x.shape)
    )
    side = _by_rows if len(x) <= x.shape[1] else _by_columns
    found |= side(x, wanted)
    energies = found["row_energies"]
    if "span_of_top_rows" in wanted:
        found["span_of_top_rows"] = _span(x, energies, _moved(places, position))
    for name in {"row_energies", "energies_along_bos", "caught"} & set(found):
        first, others = found[name][:1], found[name][1:]
        found[name] = np.concatenate([others[:position], first, others[position:]])
    if "tightest_row" in wanted:
        found["tightest_row"] = _tightest(found["row_energies"], found["caught"])
    return {name: number for name, number in found.items() if name in FIELDS}


def _largest(magnitudes: np.ndarray) -> Any:
    """As `largest_activations`; the largest three stand in the three rows whose largest is largest."""
    by_row = magnitudes.max(1)
    if len(by_row) < TOP or np.isnan(by_row).any():
        given = largest_activations(torch.from_numpy(magnitudes.copy())[None])
        return _LARGEST(*(part[0].numpy() for part in given))
    rows = np.sort(np.argsort(-by_row, kind="stable")[:TOP])
    candidates, width = magnitudes[rows].ravel(), magnitudes.shape[1]
    found = np.empty(TOP, candidates.dtype), np.empty(TOP, np.int64)
    for number in range(TOP):  # of equals, the first
        place = candidates.argmax()
        found[0][number], found[1][number] = candidates[place], place
        candidates[place] = -1
    return _LARGEST(found[0], rows[found[1] // width], found[1] % width)


def _moved(places: np.ndarray, position: int) -> np.ndarray:
    """Places of rows once BOS stands in front; −1 stays."""
    return np.where(places == position, 0, places + ((places >= 0) & (places < position)))


def _by_rows(x: np.ndarray, wanted: frozenset[str]) -> dict[str, Any]:
    """Energies, spectra with and without the first row, and ‖X xᵢ‖², from X Xᵀ."""
    matrix = lapack.gram(x)
    energies = matrix.diagonal().copy()
    found: dict[str, Any] = {"row_energies": energies}
    if "energies_along_bos" in wanted:
        found["energies_along_bos"] = np.square(matrix[:, 0]) / (energies[0] if energies[0] else 1.0)
    if not np.isfinite(energies).all():
        return found | without_numbers(*x.shape)
    if "tightest_row" in wanted:
        squares = np.square(matrix.T, out=SCRATCH.array("squares", matrix.shape))
        found["caught"] = squares.sum(0) + squares.sum(1) - np.square(energies)
    if wanted & SPECTRA:
        main, off = lapack.tridiagonal(matrix)
        found |= read(main, off, main[1:], off[1:], wanted)
    return found


def _by_columns(x: np.ndarray, wanted: frozenset[str]) -> dict[str, Any]:
    """The same from Xᵀ X, for more rows than columns.

    In a basis that begins with the direction of BOS, its row adds to one entry alone, the first.
    """
    energies = np.einsum("td,td->t", x, x)
    unit = x[0] / np.sqrt(energies[0]) if energies[0] else x[0]
    along = np.square(x @ unit)
    found: dict[str, Any] = {"row_energies": energies, "energies_along_bos": along}
    if not np.isfinite(energies).all():
        return found | without_numbers(*x.shape)
    if not wanted & {*SPECTRA, "tightest_row"}:
        return found
    rest = lapack.gram(x[1:], of_columns=True)
    if "tightest_row" in wanted:
        found["caught"] = lapack.quadratic_forms(x, rest) + along * energies[0]
    rest += np.tril(rest, -1).T
    return found | read_columns(rest, unit, energies[0], wanted) if wanted & SPECTRA else found


def read_columns(rest: np.ndarray, unit: np.ndarray, energy: Any, wanted: frozenset[str]) -> dict[str, Any]:
    """As `read`, from Xᵀ X of the rows without BOS, and the direction and energy of BOS."""
    main, off = lapack.tridiagonal(_reflected(rest, unit))
    with_bos = main.copy()
    with_bos[0] += energy
    return read(with_bos, off, main, off, wanted)


def _reflected(matrix: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """H A H for a symmetric A, where the reflection H takes a direction to the first axis."""
    mirror = unit.copy()
    mirror[0] += 1.0 if mirror[0] >= 0 else -1.0
    mirror /= np.sqrt(mirror @ mirror)
    image = matrix @ mirror
    image -= (mirror @ image) * mirror
    both = np.multiply.outer(mirror, image)
    return np.asfortranarray(matrix - 2 * (both + both.T))


def _tightest(energies: np.ndarray, caught: np.ndarray) -> Any:
    """As `tightest_row`."""
    along = np.where(energies == 0, 0.0, caught / energies)
    shares = np.minimum(along / energies.sum(), 1)
    most = shares.max()
    first = np.argmax(shares >= (1 - TIED) * most)
    return _TIGHTEST(most, first if most > 0 else np.int64(-1))


def _span(x: np.ndarray, energies: np.ndarray, places: np.ndarray) -> Any:
    """As `span_of_top_rows`."""
    basis = np.zeros((len(places), x.shape[1]))
    sizes = np.full(len(places), -1)
    size = 0
    for number, place in enumerate(places):
        if place < 0:
            continue
        left = x[place] / np.sqrt(energies[place]) if energies[place] else x[place]
        for _ in range(2):
            left = left - (basis[:size] @ left) @ basis[:size]
        length = np.sqrt(left @ left)
        if length > SAME_DIRECTION:
            basis[size] = left / length
            size += 1
        sizes[number] = size
    total = energies.sum()
    caught = np.append(0.0, np.square(x @ basis[:size].T).sum(0).cumsum())
    shares = np.where(sizes < 0, np.nan, np.minimum(caught[sizes] / total, 1))
    return _SPAN(shares, sizes if np.isfinite(total) else np.full(len(places), -1))
