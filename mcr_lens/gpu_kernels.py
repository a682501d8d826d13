"""Which reductions does a GPU do in one pass, where torch's own operations would need many?

In Triton, and imported only where that is there; `mcr_lens.gpu` calls these. Every sum has a fixed order, so
that the same input gives the same bits again.
"""

from typing import Any, no_type_check

import triton
import triton.language as tl

# Triton rewrites what is between these decorators: to a type checker everything in there is Any.
jit: Any = triton.jit


@jit
@no_type_check
def summarize_pattern(
    pattern, entropy, sums, of_batch, of_head, of_query, heads, queries, keys, parts,
    CAUSAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Entropy of some rows of one head, and what they add to the sum of every column."""
    which, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows = part * ROWS + tl.arange(0, ROWS)
    base = pattern + (which // heads) * of_batch + (which % heads) * of_head
    found = tl.zeros([ROWS], tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, (part + 1) * ROWS)
    for start in range(0, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = (rows < queries)[:, None] & (columns < keys)[None, :]
        x = tl.load(base + rows[:, None] * of_query + columns[None, :], mask=inside, other=0).to(tl.float32)
        found -= tl.sum(x * tl.log(tl.maximum(x, 1.2e-38)), 1)
        tl.store(sums + (which * parts + part) * keys + columns, tl.sum(x, 0), mask=columns < keys)
    tl.store(entropy + which * queries + rows, tl.maximum(found, 0.0), mask=rows < queries)


@jit
@no_type_check
def count_below(
    bits, thresholds, counts, numbers, chunks, MAGNITUDE: tl.constexpr, TOGETHER: tl.constexpr,
    ROUNDS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """How many numbers of one chunk have a magnitude below each threshold, all as bit patterns."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    limits = tl.load(thresholds + row * LANES + tl.arange(0, LANES))
    found = tl.zeros([TOGETHER, LANES], tl.int32)
    for turn in range(ROUNDS):
        places = (chunk * ROUNDS + turn) * TOGETHER + tl.arange(0, TOGETHER)
        there = places < numbers
        # What is not there is below nothing.
        x = tl.load(bits + row * numbers + places, mask=there, other=0).to(tl.int32) & MAGNITUDE
        x = tl.where(there, x, 2147483647)
        found += (x[:, None] < limits[None, :]).to(tl.int32)
    tl.store(counts + (row * chunks + chunk) * LANES + tl.arange(0, LANES), tl.sum(found, 0))


@jit
@no_type_check
def smallest_above(
    bits, limits, found, counts, numbers, chunks, MAGNITUDE: tl.constexpr, TOGETHER: tl.constexpr,
    ROUNDS: tl.constexpr,
):  # fmt: skip
    """The smallest magnitude of one chunk above a limit, all bits set without one, and how many are below."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    limit = tl.load(limits + row)
    least = tl.full([TOGETHER], MAGNITUDE, tl.int32)
    others = tl.zeros([TOGETHER], tl.int32)
    for turn in range(ROUNDS):
        places = (chunk * ROUNDS + turn) * TOGETHER + tl.arange(0, TOGETHER)
        there = places < numbers
        x = tl.load(bits + row * numbers + places, mask=there, other=0).to(tl.int32) & MAGNITUDE
        least = tl.where(x > limit, tl.minimum(least, x), least)
        others += (there & (x <= limit)).to(tl.int32)
    tl.store(found + row * chunks + chunk, tl.min(least, 0))
    tl.store(counts + row * chunks + chunk, tl.sum(others, 0))


@jit
@no_type_check
def eliminate(
    matrices, panels, mains, offs, n, first, last,
    WIDTH: tl.constexpr, PANEL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Householder's reduction of one symmetric matrix a program, columns `first` to `last`.

    As LAPACK's sytrd does it: matrix-vector products column by column, and the matrix itself changed once for
    every PANEL of columns. What remains of it must be at most WIDTH wide.
    """
    which = tl.program_id(0).to(tl.int64)
    s, v_rows = matrices + which * n * n, panels + which * 2 * PANEL * n
    w_rows = v_rows + PANEL * n
    columns = n - WIDTH + tl.arange(0, WIDTH)
    for j in range(first, last):
        i = j % PANEL  # columns of this panel that are done, whose effect on the matrix is still to come
        after = columns > j
        a = tl.load(s + j * n + columns, mask=columns >= j, other=0).to(tl.float64)
        for start in range(0, i, ROWS):
            some = start + tl.arange(0, ROWS)
            inside = (some < i)[:, None] & (columns >= j)[None, :]
            at = some[:, None] * n + columns[None, :]
            v_j = tl.load(v_rows + some * n + j, mask=some < i, other=0).to(tl.float64)
            w_j = tl.load(w_rows + some * n + j, mask=some < i, other=0).to(tl.float64)
            vs = tl.load(v_rows + at, mask=inside, other=0).to(tl.float64)
            ws = tl.load(w_rows + at, mask=inside, other=0).to(tl.float64)
            a -= tl.sum(vs * w_j[:, None] + ws * v_j[:, None], 0)
        tl.store(mains + which * n + j, tl.sum(tl.where(columns == j, a, 0.0), 0))
        alpha = tl.sum(tl.where(columns == j + 1, a, 0.0), 0)
        rest = tl.sum(tl.where(columns > j + 1, a * a, 0.0), 0)
        length = tl.sqrt(alpha * alpha + rest)
        beta = tl.where(rest > 0, tl.where(alpha > 0, -length, length), alpha)
        tl.store(offs + which * (n - 1) + j, beta, mask=j < n - 1)
        # The reflection is made of the vector as it is kept, rounded: it is orthogonal to the last digit.
        size = tl.where(rest > 0, alpha - beta, 1.0)
        kept = tl.where(columns == j + 1, 1.0, tl.where(columns > j + 1, a / size, 0.0))
        kept = kept.to(panels.dtype.element_ty)
        vector = kept.to(tl.float64)
        tau = tl.where(rest > 0, 2.0 / tl.maximum(tl.sum(vector * vector, 0), 1.0), 0.0)
        tl.store(v_rows + i * n + columns, kept, mask=after)
        tl.debug_barrier()
        # All of the matrix is read, not its lower half: each thread then adds up columns of its own, and
        # nothing waits for a sum over threads before the next rows.
        product = tl.zeros([WIDTH], tl.float64)
        for start in range(j + 1, n, ROWS):
            rows = start + tl.arange(0, ROWS)
            inside = (rows < n)[:, None] & after[None, :]
            tile = tl.load(s + rows[:, None] * n + columns[None, :], mask=inside, other=0).to(tl.float64)
            there = tl.load(v_rows + i * n + rows, mask=rows < n, other=0).to(tl.float64)
            product += tl.sum(tile * there[:, None], 0)
        for start in range(0, i, ROWS):
            some = start + tl.arange(0, ROWS)
            inside = (some < i)[:, None] & after[None, :]
            at = some[:, None] * n + columns[None, :]
            vs = tl.load(v_rows + at, mask=inside, other=0).to(tl.float64)
            ws = tl.load(w_rows + at, mask=inside, other=0).to(tl.float64)
            by_w, by_v = tl.sum(ws * vector[None, :], 1), tl.sum(vs * vector[None, :], 1)
            product -= tl.sum(vs * by_w[:, None] + ws * by_v[:, None], 0)
        product *= tau
        product -= 0.5 * tau * tl.sum(product * vector, 0) * vector
        tl.store(w_rows + i * n + columns, product.to(panels.dtype.element_ty), mask=after)
        tl.debug_barrier()
        if i == PANEL - 1:
            for start in range(j + 1, n, ROWS):
                rows = start + tl.arange(0, ROWS)
                inside = (rows < n)[:, None] & after[None, :]
                place = s + rows[:, None] * n + columns[None, :]
                tile = tl.load(place, mask=inside, other=0).to(tl.float64)
                for k in range(PANEL):
                    v_c = tl.load(v_rows + k * n + columns, mask=after, other=0).to(tl.float64)
                    w_c = tl.load(w_rows + k * n + columns, mask=after, other=0).to(tl.float64)
                    v_r = tl.load(v_rows + k * n + rows, mask=rows < n, other=0).to(tl.float64)
                    w_r = tl.load(w_rows + k * n + rows, mask=rows < n, other=0).to(tl.float64)
                    tile -= v_r[:, None] * w_c[None, :] + w_r[:, None] * v_c[None, :]
                tl.store(place, tile.to(matrices.dtype.element_ty), mask=inside)
            tl.debug_barrier()


@jit
@no_type_check
def count_eigenvalues(
    mains, offs, corners, shifts, counts, counts_without, n, smallest, LANES: tl.constexpr
):  # fmt: skip
    """How many eigenvalues of one tridiagonal matrix, with BOS and without, lie below each shift."""
    which = tl.program_id(0).to(tl.int64)
    lanes = which * LANES + tl.arange(0, LANES)
    shift = tl.load(shifts + lanes)
    tiny = tl.load(smallest + which)
    below = tl.zeros([LANES], tl.float64)
    found = tl.zeros([LANES], tl.int32)
    for up in range(0, n - 1):
        row = n - 1 - up
        pivot = tl.load(mains + which * n + row) - shift - below
        pivot = tl.where(tl.abs(pivot) < tiny, -tiny, pivot)
        found += (pivot < 0).to(tl.int32)
        beside = tl.load(offs + which * (n - 1) + row - 1)
        below = beside * beside / pivot
    corner = tl.load(corners + which)
    without = corner - shift - below
    gone = corner != corner
    tl.store(counts_without + lanes, found + ((without < 0) & (gone == 0)).to(tl.int32))
    pivot = tl.load(mains + which * n) - shift - below
    tl.store(counts + lanes, found + (pivot < 0).to(tl.int32))


@jit
@no_type_check
def sum_resolvents(
    mains, offs, corners, points, whole, without, n, many, LANES: tl.constexpr
):  # fmt: skip
    """Σ λ/(λ + t) of one tridiagonal matrix at every point t, with BOS and without, by one recursion."""
    which = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * LANES + tl.arange(0, LANES)
    t = tl.load(points + lanes, mask=lanes < many, other=1.0)
    u = tl.load(mains + which * n + n - 1) + tl.zeros([LANES], tl.float64)
    v = tl.zeros([LANES], tl.float64)
    below = tl.zeros([LANES], tl.float64)
    sums = tl.zeros([LANES], tl.float64)
    for up in range(0, n - 1):
        row = n - 1 - up
        pivot = u + t
        inverse = 1.0 / tl.where(pivot == 0, 2.2250738585072014e-308, pivot)
        sums += (u - v * t) * inverse
        beside = tl.load(offs + which * (n - 1) + row - 1)
        below = beside * beside * inverse
        v = (v + 1.0) * inverse * below
        u = tl.load(mains + which * n + row - 1) - below
    corner = tl.load(corners + which)
    less = corner - below
    pivot = less + t
    share = (less - v * t) / tl.where(pivot == 0, 2.2250738585072014e-308, pivot)
    tl.store(without + which * many + lanes, sums + tl.where(corner != corner, 0.0, share), mask=lanes < many)
    pivot = u + t
    share = (u - v * t) / tl.where(pivot == 0, 2.2250738585072014e-308, pivot)
    tl.store(whole + which * many + lanes, sums + share, mask=lanes < many)
