"""How far apart are the numbers of other batch sizes, threads and devices? Not farther than the docs say."""

import numpy as np
import pytest
import torch
import xarray as xr

import mcr_lens
from mcr_lens import list_metrics, measure

TEXTS = [
    "The river runs to the sea.", "A cat sat down on the mat, and slept until the evening came.",
    "Once more.", "Nobody knew the way through the forest, so they waited for the morning.", "It rained.",
]  # fmt: skip

pytestmark = [pytest.mark.demo, pytest.mark.once]


def distance(one: xr.Dataset, other: xr.Dataset, name: str) -> float:
    """The largest difference of a variable, as a share of its largest value (or absolute, below 1)."""
    a, b = one[name].values.astype(float), other[name].values.astype(float)
    assert (np.isnan(a) == np.isnan(b)).all(), name
    return float(np.nanmax(np.abs(a - b)) / max(1.0, np.nanmax(np.abs(b))))


def places(ds: xr.Dataset) -> set[str]:
    """Variables that say which token, or which dimension: there is no half of one."""
    return {str(n) for n, v in ds.data_vars.items() if v.attrs["units"] in ("token", "token id", "index")} | {
        str(n) for n, v in ds.data_vars.items() if v.dtype.kind in "iu"
    }


def assert_close(one: xr.Dataset, other: xr.Dataset, most: float, agree: float = 1.0) -> None:
    """No variable is farther off than this; of the places, at least this share is the same."""
    whole = places(one)
    for name in map(str, one.data_vars):
        if name in whole:
            assert (one[name].values == other[name].values).mean() >= agree, name
        else:
            assert distance(one, other, name) <= most, name


@pytest.fixture(scope="module")
def model():
    return mcr_lens.load_model("demo", device="cpu", verbose=False)


@pytest.fixture(scope="module")
def reference(model) -> xr.Dataset:
    """Every default metric, one prompt at a time."""
    ds = measure(model, TEXTS, batch_size=1, progress=False)
    assert {m.name for m in list_metrics() if m.default} <= set(map(str, ds.data_vars))
    return ds


@pytest.mark.parametrize("size", [2, 5, "auto"])
def test_batch_sizes(model, reference, size):
    assert_close(reference, measure(model, TEXTS, batch_size=size, progress=False), 1e-5)


def test_thread_counts(model, reference):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = measure(model, TEXTS, batch_size=1, progress=False)
    finally:
        torch.set_num_threads(before)
    assert_close(reference, found, 1e-5)


def test_the_same_again(model, reference):
    """On one machine, with the same batches and threads: the same bits."""
    again = measure(model, TEXTS, batch_size=1, progress=False)
    for name in reference.data_vars:
        assert reference[name].values.tobytes() == again[name].values.tobytes(), name


def test_the_order_of_prompts(model, reference):
    """What runs together does not depend on it beyond rounding, and rows come in the order given."""
    turned = measure(model, TEXTS[::-1], progress=False).isel(prompt=slice(None, None, -1))
    assert_close(reference, turned, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "most", "agree"), [("float32", 1e-3, 0.99), ("bfloat16", 0.1, 0.9)])
def test_a_gpu(dtype, most, agree):
    """The same model and dtype on both devices, every default metric; bfloat16 keeps 8 bits of a number."""
    cpu, gpu = (mcr_lens.load_model("demo", device=d, dtype=dtype, verbose=False) for d in ("cpu", "cuda"))
    assert next(gpu.parameters()).is_cuda
    here = measure(cpu, TEXTS, batch_size=1, progress=False)
    there = measure(gpu, TEXTS, batch_size=1, progress=False)
    assert here.attrs["dtype"] == there.attrs["dtype"] == dtype
    assert_close(here, there, most, agree)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_again():
    """Within the tolerance of batch sizes: some of CUDA's sums add in any order."""
    gpu = mcr_lens.load_model("demo", device="cuda", verbose=False)
    one, other = (measure(gpu, TEXTS, progress=False) for _ in range(2))
    assert_close(one, other, 1e-5)
