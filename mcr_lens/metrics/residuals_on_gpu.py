"""How is everything that the metrics need taken from a residual stream on a GPU?

As `mcr_lens.metrics.residuals` does it on a processor, from one float64 copy and its Gram matrix, and without
waiting for the GPU. Spectra follow when enough matrices have come together (see `mcr_lens.gpu`), or without
Triton from the processor.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcr_lens import gpu, lapack
from mcr_lens.metrics.norms import TopRows, activation_median, largest_activations
from mcr_lens.metrics.residuals import NOTHING, ResidualSummary, joined, read_columns
from mcr_lens.metrics.spectral import TOP, TridiagonalForm
from mcr_lens.metrics.theory import energies_along_bos, span_of_top_rows, tightest, tightest_row
from mcr_lens.metrics.tridiagonal import EASY, SPECTRA, read, without_numbers
from mcr_lens.workers import Pending, run_apart, to_host


def summarize(resid: Tensor, top_rows: TopRows, position: int, wanted: frozenset[str]) -> Any:
    """As `residual_summary`; the spectra as a `Pending`."""
    wide = resid.double()
    by_rows = wide.shape[1] <= wide.shape[2]
    given: dict[str, Any] = dict(NOTHING)
    if "activation_median" in wanted:
        median = gpu.median_magnitude if gpu.can_search(resid) else activation_median
        given["activation_median"] = median(resid)
    if "largest_activations" in wanted:
        given["largest_activations"] = largest_activations(resid)
    gram = wide @ wide.mT if by_rows and wanted & {*SPECTRA, "tightest_row"} else None
    energies = wide.square().sum(-1) if gram is None else gram.diagonal(dim1=1, dim2=2).clone()
    given["row_energies"] = energies
    if "energies_along_bos" in wanted:
        given["energies_along_bos"] = energies_along_bos(wide, position)
    if "span_of_top_rows" in wanted:
        given["span_of_top_rows"] = span_of_top_rows(wide, energies, top_rows)
    if "tightest_row" in wanted:
        caught = None if gram is None else gram.square().sum(-1)
        given["tightest_row"] = tightest_row(wide, energies) if caught is None else tightest(caught, energies)
    if not wanted & SPECTRA:
        return ResidualSummary(**given)
    first = wide[:, position]
    if gram is None:
        others = torch.cat([wide[:, :position], wide[:, position + 1 :]], 1)
        matrices = others.mT @ others
    else:
        order = torch.arange(gram.shape[1], device=gram.device)
        order = torch.cat([order[position : position + 1], order[:position], order[position + 1 :]])
        matrices = gram[:, order][:, :, order] if position else gram
    small = len(matrices[0]) <= EASY or wanted & {"spectrum", "spectrum_without_bos"}
    if small or len(matrices[0]) > gpu.LARGEST or not gpu.available(resid):
        return _on_host(matrices, first, by_rows, resid, given, wanted)
    return _on_device(matrices, first, by_rows, given)


def _on_device(
    matrices: Tensor, first: Tensor, by_rows: bool, given: dict[str, Any]
) -> Pending[ResidualSummary]:
    """What is read of the spectra, once enough matrices have come together on the GPU."""
    energy = first.square().sum(-1)
    if not by_rows:
        unit = torch.where(energy[:, None] == 0, first, first / energy.sqrt()[:, None])
        matrices = _reflected(matrices, unit)
    waiting = gpu.reduction(matrices, of_rows=by_rows)

    def together(parts: list[Any]) -> ResidualSummary:
        form = waiting.result()
        nan = torch.full_like(energy, torch.nan)
        corner, total = nan, form.main.sum(-1)
        less = form.main[:, 1:].sum(-1)
        if not by_rows:
            corner, less = form.main[:, 0].clone(), total
            bos = torch.nn.functional.pad(energy[:, None], (0, form.main.shape[1] - 1))
            form = gpu.Tridiagonal(form.main + bos, form.off)
            total = total + energy
        # What is left is read of all depths together, as `spectral_readings` does it.
        unknown = form.main.new_full((len(form.main), TOP), torch.nan)
        known = TridiagonalForm(form.main, form.off, corner, unknown, total, nan, nan, less, nan)
        given["tridiagonal_form"] = known
        return ResidualSummary(**given)

    return run_apart(lambda item: item, [], together)


def _on_host(
    on_device: Tensor,
    bos_on_device: Tensor,
    by_rows: bool,
    resid: Tensor,
    given: dict[str, Any],
    wanted: frozenset[str],
) -> Pending[ResidualSummary]:
    """The same from the processor, where the Gram matrices go on their own."""
    matrices, firsts = to_host(on_device), to_host(bos_on_device)

    def one(number: int) -> dict[str, Any]:
        matrices.wait()
        firsts.wait()
        matrix, bos = matrices.tensor[number].numpy(), firsts.tensor[number].numpy()
        if not (np.isfinite(matrix).all() and np.isfinite(bos).all()):
            return without_numbers(*resid.shape[1:])
        with np.errstate(all="ignore"):
            if by_rows:
                main, off = lapack.tridiagonal(np.array(matrix.T, order="F"))
                return read(main, off, main[1:], off[1:], wanted)
            energy = bos @ bos
            return read_columns(matrix, bos / np.sqrt(energy) if energy else bos, energy, wanted)

    def together(parts: list[dict[str, Any]]) -> ResidualSummary:
        return ResidualSummary(**given | joined(parts, wanted, resid.device))

    return run_apart(one, range(len(resid)), together)


def _reflected(matrices: Tensor, units: Tensor) -> Tensor:
    """H A H for symmetric matrices A, where the reflection H takes a direction to the first axis."""
    mirror = units.clone()
    mirror[:, 0] += torch.where(mirror[:, 0] >= 0, 1.0, -1.0)
    mirror /= mirror.norm(dim=1, keepdim=True)
    image = (matrices @ mirror[:, :, None]).squeeze(-1)
    image -= (mirror * image).sum(1, keepdim=True) * mirror
    both = mirror[:, :, None] * image[:, None]
    return matrices - 2 * (both + both.mT)
