"""How is everything that the metrics need taken from a residual stream with one eigenvalue problem?

Per prompt: the smaller Gram matrix, its reduction to tridiagonal form with the BOS row in front, and from it
both spectra, with BOS and without (see `mcr_lens.lapack`). What the theorem needs comes from the same matrix.
All of it in float64, one prompt to a core.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mcr_lens import lapack
from mcr_lens.metrics._registry import joint
from mcr_lens.metrics.norms import TopRows, activation_median, median_of
from mcr_lens.metrics.theory import (
    SAME_DIRECTION,
    TIED,
    Span,
    Tightest,
    energies_along_bos,
    row_energies,
    span_of_top_rows,
    tightest_row,
)
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


FIELDS = frozenset(ResidualSummary._fields)


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
        return _from_device(resid, top_rows, position, wanted)
    small = resid.shape[1] <= SMALL
    # A copy where the work may wait: the stream may be edited, or its memory used again, before it is done.
    rows = resid.cpu() if small or resid.device.type != "cpu" else resid.clone()
    places = top_rows.position.cpu().numpy()

    def one(number: int) -> dict[str, Any]:
        with np.errstate(all="ignore"):  # 0/0 and infinity are said by the numbers that come out
            return _summarize(rows[number], places[number], position, wanted)

    numbers = range(len(rows))
    if small:
        return _together([one(number) for number in numbers])
    return run_apart(one, numbers, _together, held=rows.nbytes)


def _together(parts: list[dict[str, Any]]) -> ResidualSummary:
    stacked: dict[str, Any] = {
        name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in parts[0]
    }
    if "tightest_share" in stacked:
        stacked["tightest_row"] = Tightest(stacked.pop("tightest_share"), stacked.pop("tightest_place"))
    if "span_share" in stacked:
        stacked["span_of_top_rows"] = Span(stacked.pop("span_share"), stacked.pop("span_size"))
    return ResidualSummary(**{name: stacked.get(name) for name in ResidualSummary._fields})


def _summarize(rows: Tensor, places: np.ndarray, position: int, wanted: frozenset[str]) -> dict[str, Any]:
    """All quantities of one prompt, whose rows are [pos, d_model] in the processor's memory."""
    x = (rows if rows.dtype in (torch.float32, torch.float64) else rows.float()).numpy()
    magnitudes = np.abs(x, out=SCRATCH.array("magnitudes", x.shape, x.dtype))
    median = median_of(magnitudes.ravel()) if "activation_median" in wanted else None
    if wanted <= {"activation_median"}:
        return {"activation_median": median}
    # BOS first, so that the reduction leaves it in place.
    x = np.concatenate(
        [x[position : position + 1], x[:position], x[position + 1 :]], out=SCRATCH.array("rows", x.shape)
    )
    energies = np.einsum("td,td->t", x, x)
    found: dict[str, Any] = {"row_energies": energies, "activation_median": median}
    unit = x[0] / np.sqrt(energies[0]) if energies[0] else x[0]
    if "energies_along_bos" in wanted:
        found["energies_along_bos"] = np.square(x @ unit)
    if "span_of_top_rows" in wanted:
        found["span_share"], found["span_size"] = _span(x, energies, _moved(places, position))
    if not np.isfinite(energies).all():
        found |= _without_numbers(*x.shape)
    elif wanted & {"spectrum", "spectrum_without_bos", "tightest_row"}:
        side = _by_rows if len(x) <= x.shape[1] else _by_columns
        found["spectrum"], found["spectrum_without_bos"], found["caught"] = side(x, energies, unit)
    for name in {"row_energies", "energies_along_bos", "caught"} & set(found):
        first, others = found[name][:1], found[name][1:]
        found[name] = np.concatenate([others[:position], first, others[position:]])
    if "tightest_row" in wanted:
        found["tightest_share"], found["tightest_place"] = _tightest(found["row_energies"], found["caught"])
    return {name: number for name, number in found.items() if name in wanted or name in PARTS}


PARTS = ("tightest_share", "tightest_place", "span_share", "span_size")


def _moved(places: np.ndarray, position: int) -> np.ndarray:
    """Places of rows once BOS stands in front; −1 stays."""
    return np.where(places == position, 0, places + ((places >= 0) & (places < position)))


def _by_rows(x: np.ndarray, energies: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, ...]:
    """Spectra with and without the first row, and ‖X xᵢ‖², from X Xᵀ."""
    matrix = lapack.gram(x)
    squares = np.square(matrix.T, out=SCRATCH.array("squares", matrix.shape))
    caught = squares.sum(0) + squares.sum(1) - np.square(energies)
    main, off = lapack.tridiagonal(matrix)
    return _positive(main, off), _positive(main[1:], off[1:]), caught


def _by_columns(x: np.ndarray, energies: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same from Xᵀ X, for more rows than columns.

    In a basis that begins with the direction of BOS, its row adds to one entry alone, the first.
    """
    mirror = unit.copy()
    mirror[0] += 1.0 if mirror[0] >= 0 else -1.0
    norm = mirror @ mirror
    turned = x - np.multiply.outer(x @ mirror, mirror * (2 / norm)) if norm else x
    rest = lapack.gram(turned[1:], of_columns=True)
    whole = rest + np.tril(rest, -1).T
    whole[0, 0] += energies[0]
    caught = np.einsum("td,td->t", turned @ whole, turned)
    main, off = lapack.tridiagonal(rest)
    without = _positive(main, off)
    main[0] += energies[0]
    return _positive(main, off), without, caught


def _positive(main: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Eigenvalues of what cannot have negative ones but for rounding."""
    return np.maximum(lapack.eigenvalues(main, off), 0)


def _tightest(energies: np.ndarray, caught: np.ndarray) -> tuple[float, int]:
    """As `tightest_row`."""
    along = np.where(energies == 0, 0.0, caught / energies)
    shares = np.minimum(along / energies.sum(), 1)
    most = shares.max()
    first = np.argmax(shares >= (1 - TIED) * most)
    return float(most), int(first) if most > 0 else -1


def _span(x: np.ndarray, energies: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `span_of_top_rows`."""
    total, caught, basis = energies.sum(), 0.0, []
    shares, sizes = np.full(len(places), np.nan), np.full(len(places), -1)
    for number, place in enumerate(places):
        if place < 0:
            continue
        left = x[place] / np.sqrt(energies[place]) if energies[place] else x[place]
        for _ in range(2):
            for vector in basis:
                left = left - (left @ vector) * vector
        length = np.sqrt(left @ left)
        if length > SAME_DIRECTION:
            basis.append(left / length)
            caught += np.square(x @ basis[-1]).sum()
        shares[number] = np.minimum(caught / total, 1)
        if np.isfinite(total):
            sizes[number] = len(basis)
    return shares, sizes


def _without_numbers(length: int, width: int) -> dict[str, Any]:
    """What comes out of rows that hold NaN or infinity."""
    sizes = {"spectrum": min(length, width), "spectrum_without_bos": min(length - 1, width), "caught": length}
    return {name: np.full(size, np.nan) for name, size in sizes.items()}


def _from_device(resid: Tensor, top_rows: TopRows, position: int, wanted: frozenset[str]) -> Any:
    """On a GPU: everything but the eigenvalues is done there, and nothing waits for it.

    An eigenvalue solver on a GPU can cost many times the forward pass; the small Gram matrices go to the
    processor's memory on their own and are solved there while the GPU goes on.
    """
    given: dict[str, Any] = dict.fromkeys(ResidualSummary._fields)
    energies = row_energies(resid)
    given["row_energies"] = energies
    if "energies_along_bos" in wanted:
        given["energies_along_bos"] = energies_along_bos(resid, position)
    if "activation_median" in wanted:
        given["activation_median"] = activation_median(resid)
    if "span_of_top_rows" in wanted:
        given["span_of_top_rows"] = span_of_top_rows(resid, energies, top_rows)
    if "tightest_row" in wanted:
        given["tightest_row"] = tightest_row(resid, energies)
    if not wanted & {"spectrum", "spectrum_without_bos"}:
        return ResidualSummary(**given)
    wide = resid.double()
    others = torch.cat([wide[:, :position], wide[:, position + 1 :]], 1)
    first = wide[:, position]
    if wide.shape[1] <= wide.shape[2]:
        ordered = torch.cat([first[:, None], others], 1)
        matrix, corner = ordered @ ordered.mT, torch.zeros_like(energies[:, 0])
    else:
        length = first.norm(dim=-1, keepdim=True)
        mirror = torch.where(length == 0, 0.0, first / length)
        mirror[:, 0] += torch.where(mirror[:, 0] >= 0, 1.0, -1.0)
        scale = 2 / mirror.square().sum(-1)
        turned = others - (others @ mirror[:, :, None]) * (mirror * scale[:, None])[:, None]
        matrix, corner = turned.mT @ turned, energies[:, position]
    matrices, corners = _to_host(matrix), _to_host(corner)

    def one(number: int) -> tuple[np.ndarray, np.ndarray]:
        matrices.wait()
        corners.wait()
        lower = np.array(matrices.tensor[number].numpy().T, order="F")
        if not np.isfinite(lower).all():
            return tuple(_without_numbers(*resid.shape[1:]).values())[:2]  # type: ignore[return-value]
        main, off = lapack.tridiagonal(lower)
        rows_side = resid.shape[1] <= resid.shape[2]
        less = _positive(main[1:], off[1:]) if rows_side else _positive(main, off)
        main[0] += corners.tensor[number].item()
        return _positive(main, off), less

    def together(parts: list[tuple[np.ndarray, np.ndarray]]) -> ResidualSummary:
        both = [torch.from_numpy(np.stack(found)).to(resid.device) for found in zip(*parts, strict=True)]
        return ResidualSummary(**{**given, "spectrum": both[0], "spectrum_without_bos": both[1]})

    return run_apart(one, range(len(resid)), together)


class _OnHost(NamedTuple):
    """A tensor on its way to the processor's memory; `wait` before reading it."""

    tensor: Tensor
    ready: Any

    def wait(self) -> None:
        if self.ready is not None:
            self.ready.synchronize()


def _to_host(tensor: Tensor) -> _OnHost:
    """A copy in the processor's memory; from a CUDA device without waiting for it."""
    if tensor.device.type != "cuda":
        return _OnHost(tensor, None)
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    held.copy_(tensor, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(tensor.device))
    return _OnHost(held, ready)
