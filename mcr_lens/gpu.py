"""How are patterns, medians and Gram matrices reduced on a GPU, so that nothing waits for the processor?

An eigenvalue solver on a GPU takes one matrix after the other, and on the processor a hundred matrices take
longer than the model. So matrices wait until there are enough to fill the GPU, one to a multiprocessor, and
are then reduced to tridiagonal form together; what is read of that form is had there too. Needs Triton, which
comes with torch for CUDA; without it, the processor does this work (see `mcr_lens.lapack`).
"""

import threading
import weakref
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

MANY = 2**31
"""Bytes of Gram matrices that may wait on one GPU; then they are reduced."""

LARGEST = 4096
"""Rows of a matrix that is reduced on the GPU; the processor's LAPACK takes larger ones."""

ROUNDED = 1536
"""Up to so many rows, X Xᵀ is kept in float32 between steps, which are all in float64: a massive row stays
in its row, so that rounding is relative to each number. Measured, entropies move by less than 3·10⁻⁶ nats
(512 rows). Not so Xᵀ X, where a massive row is everywhere and rounding would be relative to it."""

PANEL, ROWS, NARROW = 16, 4, 128
"""Columns after which the matrix itself is changed, rows that are read together, and the smallest width that
a kernel is compiled for: measured on an H200."""


@cache
def has_triton() -> bool:
    """Whether Triton is there."""
    return find_spec("triton") is not None


def available(tensor: Tensor) -> bool:
    """Whether the kernels can be run on this tensor."""
    return tensor.is_cuda and torch.version.cuda is not None and has_triton()


def can_summarize(pattern: Tensor) -> bool:
    """Whether `summarize_pattern` can take this pattern as it lies in memory."""
    return available(pattern) and pattern.dtype in _BITS and pattern.stride(-1) == 1 and pattern.numel() > 0


def summarize_pattern(
    pattern: Float[Tensor, "batch head query key"], *, causal: bool
) -> tuple[Float[Tensor, "batch head key"], Float[Tensor, "batch head query"]]:
    """Column sums and row entropies of attention patterns, in float32, from one pass over them."""
    from mcr_lens import gpu_kernels

    batch, heads, queries, keys = pattern.shape
    rows, parts = 32, -(-queries // 32)
    entropy = pattern.new_empty((batch, heads, queries), dtype=torch.float32)
    sums = pattern.new_zeros((batch, heads, parts, keys), dtype=torch.float32)
    gpu_kernels.summarize_pattern[(batch * heads, parts)](
        pattern, entropy, sums, pattern.stride(0), pattern.stride(1), pattern.stride(2),
        heads, queries, keys, parts, CAUSAL=causal, ROWS=rows, COLUMNS=256,
    )  # fmt: skip
    return sums.sum(2), entropy


_BITS: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.bfloat16: (torch.int16, 15), torch.float16: (torch.int16, 15), torch.float32: (torch.int32, 31),
}  # fmt: skip
_LANES, _DIGIT, _TOGETHER, _ROUNDS = 8, 3, 512, 32


def can_search(x: Tensor) -> bool:
    """Whether `median_magnitude` can take these numbers."""
    return available(x) and x.dtype in _BITS and x.numel() > 0


def median_magnitude(x: Shaped[Tensor, "batch *item"]) -> Float[Tensor, "batch"]:
    """Exact median of |x| over each item, in float32; NaN where there is one.

    Numbers without their sign order as their bits do: three bits at a time are found by counting.
    """
    from mcr_lens import gpu_kernels

    kind, width = _BITS[x.dtype]
    bits = x.flatten(1).contiguous().view(kind)
    batch, numbers = bits.shape
    every = 1 << width
    chunks = -(-numbers // (_TOGETHER * _ROUNDS))
    shape = {"MAGNITUDE": every - 1, "TOGETHER": _TOGETHER, "ROUNDS": _ROUNDS}
    steps = torch.arange(1, _LANES, dtype=torch.int32, device=x.device)
    infinity = int(torch.tensor([torch.inf], dtype=x.dtype).view(kind))
    last = torch.full((batch, 1), infinity + 1, dtype=torch.int32, device=x.device)
    counts = torch.empty((batch, chunks, _LANES), dtype=torch.int32, device=x.device)
    found, below = torch.zeros_like(last), last
    for shift in (*range(width - _DIGIT, 0, -_DIGIT), 0):
        limits = torch.cat([found + (steps << shift), last], 1)
        gpu_kernels.count_below[(batch, chunks)](
            bits, limits, counts, numbers, chunks, **shape, LANES=_LANES, num_warps=8
        )
        below = counts.sum(1)
        digits = (below[:, :-1] <= (numbers - 1) // 2).sum(-1, keepdim=True)
        found = found + (digits << shift).to(torch.int32)
    lower = found
    if numbers % 2 == 0:
        least, others = (torch.empty((batch, chunks), dtype=torch.int32, device=x.device) for _ in range(2))
        gpu_kernels.smallest_above[(batch, chunks)](
            bits, lower, least, others, numbers, chunks, **shape, num_warps=8
        )
        tied = others.sum(1, keepdim=True) > numbers // 2
        found = torch.where(tied, lower, least.amin(1, keepdim=True))
    values = torch.cat([lower, found], 1).to(kind).view(x.dtype).float().sum(1) / 2
    return torch.where(below[:, -1] < numbers, torch.nan, values)


class Tridiagonal(NamedTuple):
    """Diagonals and off-diagonals, one row a matrix."""

    main: Float64[Tensor, "batch rank"]
    off: Float64[Tensor, "batch less"]


class Reduction:
    """Matrices that wait to be brought to tridiagonal form, or that form."""

    def __init__(self, matrices: Float64[Tensor, "batch rank rank"], *, of_rows: bool) -> None:
        total = matrices.diagonal(dim1=1, dim2=2).sum(-1)
        # Of trace one, so that float32 can hold whatever there is; a matrix of zeros stays one.
        self._scale = torch.where(total == 0, 1.0, total)
        kept = torch.float32 if of_rows and matrices.shape[1] <= ROUNDED else torch.float64
        self.matrices: Tensor | None = (matrices / self._scale[:, None, None]).to(kept)
        self._form: Tridiagonal | None = None

    def settle(self, form: Tridiagonal) -> None:
        """Take the form of the matrices, which are needed no more."""
        self.matrices = None
        self._form = Tridiagonal(*(part * self._scale[:, None] for part in form))

    def result(self) -> Tridiagonal:
        """The form; whatever waits is reduced, if this does."""
        if self._form is None:
            _WAITING.run()
        assert self._form is not None
        return self._form


def reduction(matrices: Float64[Tensor, "batch rank rank"], *, of_rows: bool) -> Reduction:
    """Householder's reduction of Gram matrices, the first coordinate left in place, some time later."""
    found = Reduction(matrices, of_rows=of_rows)
    _WAITING.add(found)
    return found


class _Waiting:
    """Matrices of many layers: one alone would leave most of a GPU idle. Forgotten ones are left out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[weakref.ref[Reduction]] = []

    def add(self, new: Reduction) -> None:
        with self._lock:
            self._all = [*(ref for ref in self._all if ref() is not None), weakref.ref(new)]
            alive = [each for ref in self._all if (each := ref()) is not None]
        if sum(each.matrices.nbytes for each in alive if each.matrices is not None) > MANY:
            self.run()

    def run(self) -> None:
        with self._lock:
            alive = [each for ref in self._all if (each := ref()) is not None]
            self._all = []
        alike: dict[Any, list[Reduction]] = {}
        for each in alive:
            if each.matrices is not None:
                key = each.matrices.device, each.matrices.shape[1], each.matrices.dtype
                alike.setdefault(key, []).append(each)
        for group in alike.values():
            form = tridiagonal(torch.cat([each.matrices for each in group if each.matrices is not None]))
            parts = [len(each._scale) for each in group]
            for each, main, off in zip(group, form.main.split(parts), form.off.split(parts), strict=True):
                each.settle(Tridiagonal(main, off))


_WAITING = _Waiting()


def tridiagonal(matrices: Float[Tensor, "batch rank rank"]) -> Tridiagonal:
    """Qᵀ A Q of symmetric matrices, where Q leaves the first coordinate alone; they are overwritten."""
    from mcr_lens import gpu_kernels

    batch, n, _ = matrices.shape
    main = matrices.new_empty((batch, n), dtype=torch.float64)
    off = matrices.new_empty((batch, n - 1), dtype=torch.float64)
    panels = matrices.new_empty((batch, 2, PANEL, n))
    width, first = max(NARROW, 1 << (n - 1).bit_length()), 0
    while first < n:  # what remains gets narrower, and a narrower vector is enough for it
        last = n if width <= NARROW else max(0, n - width // 2)
        gpu_kernels.eliminate[(batch,)](
            matrices, panels, main, off, n, first, last, WIDTH=width, PANEL=PANEL, ROWS=ROWS,
            num_warps=max(4, width // 256),
        )  # fmt: skip
        first, width = last, width // 2
    return Tridiagonal(main, off)


def largest(
    form: Tridiagonal, corner: Float64[Tensor, "batch"], count: int
) -> tuple[Float64[Tensor, "batch count"], Float64[Tensor, "batch"]]:
    """The largest eigenvalues of tridiagonal matrices, and the largest without BOS, by multisection.

    As `quadrature.entropies` for `corner`. For matrices without negative eigenvalues.
    """
    from mcr_lens import gpu_kernels

    batch, n = form.main.shape
    padded = torch.nn.functional.pad(form.off.abs(), (1, 1))
    bound = (form.main.abs() + padded[:, 1:] + padded[:, :-1]).amax(1)
    rank = torch.cat([n - 1 - torch.arange(count), torch.zeros(1)]).to(form.main)
    gone = corner.isnan()
    rank = rank.expand(batch, -1).clone()
    rank[:, -1] = torch.where(gone, n - 2.0, n - 1.0)
    low = torch.zeros_like(rank)
    high = (bound * (1 + 1e-12))[:, None].expand_as(rank).clone()
    inside = (torch.arange(1, _SECTIONS, device=form.main.device) / _SECTIONS).to(form.main)
    lanes = 1 << (rank.shape[1] * (_SECTIONS - 1) - 1).bit_length()
    smallest = torch.finfo(torch.float64).tiny * (1 + padded.square().amax(1))
    for _ in range(_TIMES):
        shifts = low[..., None] + (high - low)[..., None] * inside
        flat = torch.nn.functional.pad(shifts.flatten(1), (0, lanes - shifts[0].numel())).contiguous()
        counts, without = (torch.empty(flat.shape, dtype=torch.int32, device=flat.device) for _ in range(2))
        gpu_kernels.count_eigenvalues[(batch,)](
            form.main, form.off, corner, flat, counts, without, n, smallest, LANES=lanes, num_warps=4
        )
        known = counts[:, : shifts[0].numel()].view(shifts.shape)
        known = torch.cat([known[:, :-1], without[:, : shifts[0].numel()].view(shifts.shape)[:, -1:]], 1)
        part = (known <= rank[..., None]).sum(-1)  # so many of the sections lie below the eigenvalue
        edges = torch.cat([low[..., None], shifts, high[..., None]], -1)
        low, high = (edges.gather(-1, (part + end)[..., None]).squeeze(-1) for end in (0, 1))
    values = torch.where(bound.isfinite()[:, None], (low + high) / 2, torch.nan)
    return values[:, :-1], values[:, -1]


_SECTIONS, _TIMES = 15, 13
"""Parts into which an interval is cut, and how often: 15⁻¹³ is 5·10⁻¹⁶."""


def resolvents(
    form: Tridiagonal, corner: Float64[Tensor, "batch"], points: Float64[Tensor, "point"]
) -> tuple[Float64[Tensor, "batch point"], Float64[Tensor, "batch point"]]:
    """Σ λ/(λ + t) at every point t, with BOS and without, as `mcr_lens.metrics.quadrature` needs it."""
    from mcr_lens import gpu_kernels

    batch, n = form.main.shape
    whole, without = (form.main.new_empty((batch, len(points))) for _ in range(2))
    gpu_kernels.sum_resolvents[(batch, -(-len(points) // 64))](
        form.main.contiguous(), form.off.contiguous(), corner.contiguous(), points, whole, without, n,
        len(points), LANES=64, num_warps=2,
    )  # fmt: skip
    return whole, without
