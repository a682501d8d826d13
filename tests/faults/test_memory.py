"""Does a batch that does not fit in memory run again in smaller ones, with the same numbers and no trace?"""

import contextlib
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from models import bridge, hugging_face, tokenizer

import mcr_lens
from mcr_lens import OutOfMemoryWarning, compare, measure, record_activations, zero_bos_mlp
from mcr_lens.batches import in_batches
from mcr_lens.memory import is_out_of_memory
from mcr_lens.prompts import read_prompts

pytestmark = pytest.mark.once

CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.65 GiB"
HOST = "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
HALVED = (
    r"^a batch of 4 prompts did not fit in memory \(20\.00 MiB could not be allocated\); it runs again, and "
    r"from now on at most 2 run together: pass batch_size=2 to begin so$"
)
TRIAL = 9
"""Tokens, at most, of the forward passes by which the library finds out what a model does."""


@pytest.fixture
def rows():
    """Nine prompts of different lengths, longest in the middle."""
    g = torch.Generator().manual_seed(2)
    return [torch.randint(3, 128, (n,), generator=g) for n in (12, 5, 17, 11, 9, 16, 4, 8, 10)]


@pytest.fixture(params=["bridge", "served"])
def model(request):
    """The same tiny Llama through both doors."""
    return bridge("llama") if request.param == "bridge" else mcr_lens.serve(hugging_face("llama"))


@contextlib.contextmanager
def too_small(model, most: int, error: BaseException | None = None):
    """The MLP of the last block needs too much memory for more than so many prompts; yields how many came."""
    ran: list[int] = []

    def look(module, args):
        ran.append(len(args[0]))
        if len(args[0]) > most and args[0].shape[1] > TRIAL:
            raise error or torch.OutOfMemoryError(CUDA)

    inner = model.original_model
    handle = inner.model.layers[-1].mlp.register_forward_pre_hook(look)
    try:
        yield ran
    finally:
        handle.remove()


def hooks(model) -> int:
    """How many hooks there are on every module."""
    found = 0
    for module in model.original_model.modules():
        found += len(module._forward_hooks) + len(module._forward_pre_hooks)
    points = [p for p in model.hook_dict.values() if hasattr(p, "fwd_hooks")]
    return found + sum(len(p.fwd_hooks) for p in points)


def assert_close(one: xr.Dataset, other: xr.Dataset) -> None:
    """The same variables and prompts in the same order, within 1e-5; attributes but time and batch size."""
    assert list(one.variables) == list(other.variables) and one.sizes == other.sizes
    for name in [name for name in one.variables if name != "padding"]:  # that of the batch
        a, b = one[name].values, other[name].values
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            assert (a == b).all(), name
    other_than = ("created", "batch_size")
    assert {k: v for k, v in one.attrs.items() if k not in other_than} == {
        k: v for k, v in other.attrs.items() if k not in other_than
    }


def test_measure_goes_on_with_half_the_batch(model, rows):
    """From 8 to 4 to 2, each said once; the numbers are those of batches that fit from the beginning."""
    whole = measure(model, rows, batch_size=8, progress=False)
    assert whole.attrs["batch_size"] == 8
    before = hooks(model)
    with too_small(model, 2) as ran, pytest.warns(OutOfMemoryWarning) as said:
        found = measure(model, rows, batch_size=8, progress=False)
    texts = [str(w.message) for w in said]
    assert [re.findall(r"batch of (\d+) .* at most (\d+) run", t) for t in texts] == [
        [("8", "4")],
        [("4", "2")],
    ]
    assert re.fullmatch(HALVED, texts[1])
    assert ran == [8, 4, 2, 2, 2, 2, 1] and hooks(model) == before
    assert found.attrs["batch_size"] == 2
    assert_close(whole, found)


@pytest.mark.parametrize(
    ("error", "why"),
    [(RuntimeError(HOST), r"9 bytes could not be allocated"), (MemoryError(), "MemoryError")],
    ids=["host", "python"],
)
def test_memory_of_the_host(llama, rows, error, why):
    whole = measure(llama, rows, ["bos_norm"], progress=False)
    with too_small(llama, 4, error), pytest.warns(OutOfMemoryWarning, match=rf"fit in memory \({why}\); it"):
        found = measure(llama, rows, ["bos_norm"], batch_size=9, progress=False)
    assert found.attrs["batch_size"] == 4
    assert_close(whole, found)


def test_partial_sums_of_conditions_are_forgotten(model, rows):
    """The second condition of a batch fails when the first is done: neither is counted twice."""
    edits = {"clean": [], "cut": zero_bos_mlp(0), "both": [zero_bos_mlp(0), zero_bos_mlp(1)]}
    options = {"metrics": ["bos_norm", "sink_score", "kl_divergence"], "progress": False}
    whole = compare(model, rows, edits, batch_size=4, **options)
    seen = []

    def second_time(module, args):
        seen.append(len(args[0]))
        if seen == [4, 4]:
            raise torch.OutOfMemoryError(CUDA)

    handle = model.original_model.model.layers[-1].mlp.register_forward_pre_hook(second_time)
    with pytest.warns(OutOfMemoryWarning, match=HALVED):
        found = compare(model, rows, edits, batch_size=4, **options)
    handle.remove()
    assert seen == [4, 4] + 3 * [2] + 3 * [2] + 3 * [2] + 3 * [2] + 3 * [1]
    assert found.attrs["batch_size"] == 2
    assert_close(whole, found)


def test_one_prompt_that_does_not_fit(model, rows):
    """One sentence, which says what to do; nothing is left on the model, which measures as before."""
    reference = measure(model, rows, ["bos_norm", "sink_score"], progress=False)
    before, weights = hooks(model), [p.clone() for p in model.original_model.parameters()]
    served = hasattr(model, "lacks")
    with too_small(model, 0), pytest.raises(MemoryError) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfMemoryWarning)
        measure(model, rows, batch_size=4, progress=False)
    text = str(seen.value)
    assert text.startswith(
        "a single prompt of 17 tokens does not fit in memory (20.00 MiB could not be allocated): shorten it, "
        "cut it with max_length, or load the model in bfloat16"
    )
    assert text.endswith("memory is linear in the length") != served and "\n" not in text
    assert seen.value.__cause__ is None and seen.value.__context__ is None
    assert hooks(model) == before
    assert all(map(torch.equal, weights, model.original_model.parameters()))
    again = measure(model, rows, ["bos_norm", "sink_score"], progress=False)
    xr.testing.assert_identical(again.drop_attrs(), reference.drop_attrs())


def test_other_errors_are_not_taken_for_it(model, rows):
    with (
        too_small(model, 2, RuntimeError("shapes do not fit")),
        pytest.raises(RuntimeError, match=r"^shapes"),
    ):
        measure(model, rows, batch_size=8, progress=False)


def test_what_a_failed_batch_held_is_let_go(rows):
    """When the smaller batches run, no tensor of the larger one is alive, not even in a traceback."""
    import gc
    import weakref

    model, held, alive = bridge("llama"), [], []

    def look(module, args):
        gc.disable()  # by counting references alone
        if len(args[0]) > 2:
            held.append(weakref.ref(args[0]))
            raise torch.OutOfMemoryError(CUDA)
        alive.extend(ref() is not None for ref in held)

    model.original_model.model.layers[2].mlp.register_forward_pre_hook(look)
    with pytest.warns(OutOfMemoryWarning):
        measure(model, rows, batch_size=4, progress=False)
    gc.enable()
    assert held and not any(alive)


def test_a_batch_that_failed_is_held_by_nobody(rows):
    """Neither is what came of the batch before, once the next one runs."""
    model, prompts = bridge("llama"), read_prompts(bridge("llama"), rows)
    alive, before = [], []

    class Outcome:
        """Can be looked at after it is gone."""

    def run(batch):
        import weakref

        alive.append([ref() is not None for ref in before])
        made = Outcome()
        before.append(weakref.ref(made))
        return made

    for _ in in_batches(model, prompts, 3, run, progress=False):
        _ = None
    assert alive == [[], [False], [False, False]]


def readers(model, rows) -> dict[str, callable]:
    """Everything else that runs batches, by name, as a function of the batch size."""
    texts = [" ".join("abcdefgh"[: 3 + i % 5]) * (1 + i % 4) for i in range(12)]
    pairs = [(texts[i], texts[i + 1]) for i in range(0, 12, 2)]

    def choices(size):
        items = [{"query": t, "choices": ["ab", "cd"], "gold": i % 2} for i, t in enumerate(texts)]
        return mcr_lens.multiple_choice(model, items, batch_size=size, progress=False)

    return {
        "representations": lambda size: mcr_lens.representations(
            model, rows, pooling=["mean", "last"], batch_size=size, progress=False
        ),
        "logit_lens": lambda size: mcr_lens.logit_lens(
            model, texts, window=16, batch_size=size, progress=False
        ),
        "similarity_probe": lambda size: mcr_lens.similarity_probe(
            model, pairs, range(6), batch_size=size, progress=False
        ),
        "multiple_choice": choices,
        "record_activations": lambda size: record_activations(
            model, rows, "mlp_out", layers=[0, 2], batch_size=size
        ),
        "norm_sources": lambda size: mcr_lens.norm_sources(model, rows, batch_size=size, progress=False),
    }


READERS = tuple(readers(None, None))


@pytest.mark.parametrize("name", READERS)
def test_everything_else_that_runs_batches(name, rows):
    """Readouts, probes and recorded rows: the same numbers after a batch that did not fit."""
    model = mcr_lens.load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    run = readers(model, rows)[name]
    whole = run(4)
    with too_small(model, 2), pytest.warns(OutOfMemoryWarning, match=HALVED):
        found = run(4)
    if isinstance(whole, xr.Dataset):
        assert_close(whole, found)
        if "batch_size" in whole.attrs:
            assert (whole.attrs["batch_size"], found.attrs["batch_size"]) == (4, 2)
    else:
        for key in whole:
            np.testing.assert_allclose(whole[key], found[key], rtol=1e-5, atol=1e-5)
    # A single prompt that does not fit is told alike by all of them.
    with too_small(model, 0), pytest.raises(MemoryError, match=r"^a single prompt of"):
        run(1)


def test_words_of_other_devices():
    for text in ("MPS backend out of memory (MPS allocated: 9 GB)", "CUDA error: out of memory",
                 "std::bad_alloc", "DefaultCPUAllocator: not enough memory: you tried",
                 "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"):  # fmt: skip
        assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(ValueError("out of memory")) and not is_out_of_memory(RuntimeError("sizes"))


IN_A_SMALL_PROCESS = """
import resource, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
from mcr_lens import load_model, measure, prompts
from mcr_lens.testing.families import tiny_model

prompts.LARGEST = 2**40  # batches as large as they are asked for
model = load_model(tiny_model("llama3", max_position_embeddings=4096), verbose=False)
rows = [torch.randint(3, 128, (700 - i,), generator=torch.Generator().manual_seed(i)) for i in range(8)]
metrics = ["bos_norm", "sink_score"]
whole = measure(model, rows, metrics, batch_size=1, progress=False)
said = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, *rest: said.append(str(message))


def run(room, given):
    said.clear()
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + room * 2**20, resource.RLIM_INFINITY))
    return measure(model, given, metrics, batch_size=8, progress=False)


for room in range(30, 600, 15):  # how much is used besides, by threads for one, is not known before
    try:
        found = run(room, rows)
    except MemoryError:
        continue
    print(found.attrs["batch_size"], float(abs(found - whole).max().to_array().max()))
    print(len(said), *said)
    break
try:
    run(20, [torch.randint(3, 128, (4000,))])  # more than what was given back before
except MemoryError as error:
    print(error)
print(len(said), *said)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits of Linux")
def test_a_process_that_may_not_have_more():
    """Real limits of the system: a batch of 8 needs 63 MB for each pattern, the long one 256 MB."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_SMALL_PROCESS], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    fits, notes, too_small, none = done.stdout.splitlines()
    size, difference = fits.split()
    assert 1 <= int(size) < 8 and float(difference) <= 1e-5
    assert re.match(r"a single prompt of 4000 tokens does not fit in memory \(\d+ bytes could", too_small)
    assert re.match(r"[123] a batch of 8 prompts did not fit in memory \(\d+ bytes could not be", notes)
    assert none == "0"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_too_small():
    """With less than half of what a batch of 16 needs: halves until it fits, and the same numbers."""
    large = hugging_face("llama", max_position_embeddings=1024)
    model = mcr_lens.load_model(large, device="cuda", verbose=False)
    rows = [torch.randint(3, 128, (1000 - i,), generator=torch.Generator().manual_seed(i)) for i in range(16)]
    metrics = ["bos_norm", "sink_score", "matrix_entropy"]
    measure(model, rows[:1], metrics, progress=False)  # libraries take their memory once
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    whole = measure(model, rows, metrics, batch_size=16, progress=False)
    needed = torch.cuda.max_memory_allocated() - held
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + needed / 2.5) / total)
    try:
        with pytest.warns(OutOfMemoryWarning, match=r"^a batch of 16 prompts .* could not be allocated"):
            found = measure(model, rows, metrics, batch_size=16, progress=False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert 1 <= found.attrs["batch_size"] < 16
    assert torch.cuda.memory_allocated() <= held + 2**20
    assert_close(whole, found)
