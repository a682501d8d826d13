"""What is read of the Gram matrix of one residual stream once it is tridiagonal?"""

from typing import Any

import numpy as np
from scipy.special import entr

from mcr_lens import lapack
from mcr_lens.metrics.spectral import TOP, TridiagonalForm

SPECTRA = frozenset({"spectrum", "spectrum_without_bos", "tridiagonal_form"})

_FORM: Any = TridiagonalForm  # of numbers and arrays here, of tensors once all prompts are together

EASY = 160
"""Up to so many rows, all eigenvalues are had sooner than the few largest by bisection."""


def read(
    main: np.ndarray, off: np.ndarray, less: np.ndarray, less_off: np.ndarray, wanted: frozenset[str]
) -> dict[str, Any]:
    """The spectra, or what the metrics read of them, from the matrix in tridiagonal form and without BOS.

    All eigenvalues where somebody asks for them or where they cost little: in that case the form follows from
    them by `tridiagonal_form`.
    """
    found: dict[str, Any] = {}
    if wanted & {"spectrum", "spectrum_without_bos"} or len(main) <= EASY:
        found = {"spectrum": _positive(main, off), "spectrum_without_bos": _positive(less, less_off)}
    if "tridiagonal_form" in wanted and len(main) <= EASY:
        found["tridiagonal_form"] = _known(*found.values())
    elif "tridiagonal_form" in wanted:
        nan = np.float64(np.nan)
        found["tridiagonal_form"] = _FORM(
            main, off, less[0] if len(less) == len(main) else nan,
            np.maximum(lapack.largest(main, off, TOP), 0), main.sum(), nan,
            np.maximum(lapack.largest(less, less_off, 1), 0)[0] if len(less) else nan, less.sum(), nan,
        )  # fmt: skip
    return found


def _known(spectrum: np.ndarray, without: np.ndarray) -> Any:
    """As `tridiagonal_form`, of one prompt: in a thread of its own it takes no time of the model's."""
    nan, nothing = np.float64(np.nan), spectrum[:0]
    return _FORM(
        nothing, nothing, nan, spectrum[:TOP], spectrum.sum(), _entropy(spectrum),
        without[0] if len(without) else nan, without.sum(), _entropy(without),
    )  # fmt: skip


def _entropy(spectrum: np.ndarray) -> np.floating[Any]:
    return np.maximum(entr(spectrum / spectrum.sum()).sum(), 0) if len(spectrum) else np.float64(np.nan)


def _positive(main: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Eigenvalues of what cannot have negative ones but for rounding."""
    return np.maximum(lapack.eigenvalues(main, off), 0)


def without_numbers(length: int, width: int) -> dict[str, Any]:
    """What comes out of rows that hold NaN or infinity."""
    rank, less = min(length, width), min(length - 1, width)
    nan = np.float64(np.nan)
    found: dict[str, Any] = {
        "spectrum": np.full(rank, nan), "spectrum_without_bos": np.full(less, nan),
        "caught": np.full(length, nan),
    }  # fmt: skip
    form = _FORM(
        np.full(rank, nan), np.full(rank - 1, nan), nan, np.full(min(rank, TOP), nan),
        *(nan for _ in range(5)),
    ) if rank > EASY else _known(found["spectrum"], found["spectrum_without_bos"])  # fmt: skip
    return {**found, "tridiagonal_form": form}
