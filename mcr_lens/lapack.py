"""How are both spectra of a matrix had from one eigenvalue problem, on several cores at once?

A symmetric matrix is reduced to tridiagonal form by reflections that leave the first coordinate in place, so
what is left without it is the tridiagonal form of the matrix without it: one reduction, two spectra. The
routines are SciPy's own LAPACK, called by their addresses because that lets go of Python's lock.
"""

import ctypes
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from mcr_lens.workers import SCRATCH

LOWER, PLAIN, TRANSPOSE, BY_NUMBER, ENTIRE = (
    ctypes.byref(ctypes.c_char(letter)) for letter in (b"L", b"N", b"T", b"I", b"E")
)
BLOCK = 64
"""Columns that the reduction handles together, at most: the size of its workspace."""

_ROUTINES = {
    "syrk": "cython_blas", "trmm": "cython_blas", "sytrd": "cython_lapack", "sterf": "cython_lapack",
    "stebz": "cython_lapack",
}  # fmt: skip
_LETTER = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}
_NUMBER = {np.dtype(np.float32): ctypes.c_float, np.dtype(np.float64): ctypes.c_double}


def gram(x: np.ndarray, *, of_columns: bool = False) -> np.ndarray:
    """Lower triangle, in Fortran order, of X Xᵀ (of its columns: Xᵀ X) for X in C order; the rest is zero.

    It lies in memory that the next call in this thread uses again.
    """
    rows, columns = x.shape
    size, steps = (columns, rows) if of_columns else (rows, columns)
    out = SCRATCH.array("gram", (size, size), x.dtype).T
    out.fill(0)
    number = _NUMBER[x.dtype]
    if steps:  # what is C order here is the transpose to Fortran
        _call("syrk", x.dtype)(
            LOWER, PLAIN if of_columns else TRANSPOSE, _int(size), _int(steps), ctypes.byref(number(1)),
            _at(x), _int(columns), ctypes.byref(number(0)), _at(out), _int(size),
        )  # fmt: skip
    return out


def quadratic_forms(x: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """xᵢᵀ A xᵢ for every row of X in C order, by the lower triangle of a symmetric A in Fortran order.

    Twice xᵢᵀ L xᵢ, where L is the triangle with half the diagonal: a product with it takes half as long.
    """
    rows, columns = x.shape
    half = lower.copy(order="F")
    half[np.diag_indices(columns)] /= 2
    product = SCRATCH.array("product", x.shape, x.dtype)
    np.copyto(product, x)
    _call("trmm", x.dtype)(
        LOWER, LOWER, TRANSPOSE, PLAIN, _int(columns), _int(rows), ctypes.byref(_NUMBER[x.dtype](1)),
        _at(half), _int(max(1, columns)), _at(product), _int(max(1, columns)),
    )  # fmt: skip
    return 2 * np.einsum("td,td->t", product, x)


def tridiagonal(lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal and off-diagonal of Qᵀ A Q, where Q leaves the first coordinate alone; A is overwritten."""
    n = len(lower)
    main, off, scales = (np.empty(max(1, n - less), lower.dtype) for less in (0, 1, 1))
    work = SCRATCH.array("work", (n * BLOCK,), lower.dtype)
    info = ctypes.c_int(0)
    _call("sytrd", lower.dtype)(
        LOWER, _int(n), _at(lower), _int(n), _at(main), _at(off), _at(scales), _at(work), _int(len(work)),
        ctypes.byref(info),
    )  # fmt: skip
    return main, off[: n - 1]


def eigenvalues(main: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Eigenvalues of a symmetric tridiagonal matrix, the largest first; NaN if they do not converge."""
    values, others, info = main.copy(), np.append(off, 0).astype(main.dtype), ctypes.c_int(0)
    if len(values):
        _call("sterf", main.dtype)(_int(len(values)), _at(values), _at(others), ctypes.byref(info))
    if info.value:
        values.fill(np.nan)
    return values[::-1]


def largest(main: np.ndarray, off: np.ndarray, count: int) -> np.ndarray:
    """The largest eigenvalues of a symmetric tridiagonal matrix, the largest first, by bisection."""
    n = len(main)
    found, number, parts, info = np.empty(n, main.dtype), *(ctypes.c_int(0) for _ in range(3))
    zero, work = _NUMBER[main.dtype](0), np.empty(4 * n, main.dtype)
    others = np.append(off, 0).astype(main.dtype)
    blocks, splits, integers = (np.empty(size, np.int32) for size in (n, n, 3 * n))
    zero = ctypes.byref(zero)
    _call("stebz", main.dtype)(
        BY_NUMBER, ENTIRE, _int(n), zero, zero, _int(max(1, n - count + 1)), _int(n), zero, _at(main),
        _at(others), ctypes.byref(number), ctypes.byref(parts), _at(found),
        _at(blocks), _at(splits), _at(work), _at(integers), ctypes.byref(info),
    )  # fmt: skip
    if info.value or number.value != min(n, count):
        return eigenvalues(main, off)[:count]
    return found[: number.value][::-1]


def _at(array: np.ndarray) -> Any:
    return ctypes.c_void_p(array.ctypes.data)


def _int(number: int) -> Any:
    return ctypes.byref(ctypes.c_int(number))


@cache
def _call(routine: str, dtype: np.dtype) -> Any:
    """A routine of BLAS or LAPACK in the precision of the numbers; all of its arguments are addresses."""
    module = import_module(f"scipy.linalg.{_ROUTINES[routine]}")
    capsule = module.__pyx_capi__[_LETTER[dtype] + routine]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    count = signature.decode().count("*")
    address = api.PyCapsule_GetPointer(capsule, signature)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(address)
