"""Is work that is handed over done once, in order, and without a trace in the process?"""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from mcr_lens import lapack, workers
from mcr_lens.workers import run_apart


@pytest.fixture(autouse=True)
def enough_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_outcomes_come_in_order_and_once():
    """Every item once, joined in the order in which they came."""
    seen = []
    work = run_apart(lambda i: seen.append(i) or i * i, range(20), list, held=1)
    assert not seen  # nobody has asked
    assert work.result() == [i * i for i in range(20)] == work.result()
    assert sorted(seen) == list(range(20))


def test_without_held_it_begins_at_once():
    """Beside a GPU nothing is put off."""
    work = run_apart(lambda i: i, [1], list)
    assert work._parts is not None and work.result() == [1]


def test_asking_for_one_does_all_that_waits():
    """The cores are used for all of it together."""
    first, second = (run_apart(lambda i: i, range(3), sum, held=1) for _ in range(2))
    assert first.result() == 3
    assert second._parts is not None and second.result() == 3


def test_too_much_that_waits_is_done(monkeypatch):
    """What is held in memory is bounded, whether somebody asks or not."""
    monkeypatch.setattr(workers, "HELD", 100)
    done = []
    kept = [run_apart(done.append, [i], list, held=60) for i in range(2)]
    assert sorted(done) == [0, 1] and len(kept) == 2


def test_an_error_comes_out_where_the_outcome_is_asked_for():
    """And the next piece of work is not disturbed."""

    def fails(item):
        raise ZeroDivisionError("in the pool")

    with pytest.raises(ZeroDivisionError, match="in the pool"):
        run_apart(fails, [1], list, held=1).result()
    assert run_apart(abs, [-1], list, held=1).result() == [1]


def test_what_nobody_waits_for_is_forgotten():
    """A forward pass that broke off leaves nothing behind that waits."""
    work = run_apart(abs, [-1], list, held=1)
    gone = weakref.ref(work)
    del work
    gc.collect()
    assert gone() is None and run_apart(abs, [-2], list, held=1).result() == [2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.once
def test_a_forked_process_has_threads_of_its_own():
    """The pool was used before the fork, and is used after it."""
    assert run_apart(abs, [-1], list).result() == [1]
    script = (
        "import os, warnings; from mcr_lens.workers import run_apart; run_apart(abs, [-1], list).result()\n"
        "warnings.simplefilter('ignore'); child = os.fork()\n"
        "if not child: os._exit(run_apart(abs, [-7], sum).result())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "7", done.stderr


def test_threads_of_blas_are_as_they_were():
    """Other people's NumPy keeps its threads, after an error too."""
    before = [each["num_threads"] for each in workers._controller().info()]
    inside = run_apart(lambda i: [e["num_threads"] for e in workers._controller().info()], [0], list).result()
    assert set(inside[0]) == {1}
    assert [each["num_threads"] for each in workers._controller().info()] == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 3, 40, 150])
def test_two_spectra_from_one_reduction(size, dtype):
    """With the first row and without it, as a singular value decomposition has them."""
    x = np.random.default_rng(size).standard_normal((size, 200)).astype(dtype)
    x[0] *= 50
    main, off = lapack.tridiagonal(lapack.gram(x))
    close = 1e-12 if dtype == np.float64 else 1e-4
    for found, rows in ((lapack.eigenvalues(main, off), x), (lapack.eigenvalues(main[1:], off[1:]), x[1:])):
        wanted = np.linalg.svd(rows.astype(np.float64), compute_uv=False) ** 2
        np.testing.assert_allclose(found, wanted, rtol=close)


def test_gram_of_columns():
    """Xᵀ X and X Xᵀ, the lower triangle alone."""
    x = np.random.default_rng(0).standard_normal((7, 4))
    np.testing.assert_allclose(lapack.gram(x, of_columns=True), np.tril(x.T @ x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(lapack.gram(x), np.tril(x @ x.T), rtol=1e-12, atol=1e-12)
    assert not lapack.gram(x[:0], of_columns=True).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 2, 37])
def test_quadratic_forms(columns, dtype):
    """xᵢᵀ A xᵢ of every row, from the lower triangle of A, which stays as it was."""
    x = np.random.default_rng(columns).standard_normal((50, columns)).astype(dtype)
    lower = lapack.gram(x[1:], of_columns=True)
    before = lower.copy()
    found = lapack.quadratic_forms(x, lower)
    close = 1e-12 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(found, np.square(x[1:] @ x.T).sum(0), rtol=close, atol=close)
    assert np.array_equal(lower, before)
    assert not lapack.quadratic_forms(x[:0], lower).size


def test_numbers_that_do_not_converge_are_no_numbers(monkeypatch):
    """LAPACK's word that it failed is not passed over."""

    def fails(size, values, others, info):
        info._obj.value = 1

    monkeypatch.setattr(lapack, "_call", lambda routine, dtype: fails)
    assert np.isnan(lapack.eigenvalues(np.array([1.0, 2.0]), np.array([1.0]))).all()
