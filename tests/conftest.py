"""Tiny random models, made in memory: nothing here touches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other

if not torch.cuda.is_available():  # kernels are then interpreted, which Triton decides when it is imported
    os.environ["TRITON_INTERPRET"] = "1"


# Before jaxtyping's checks are put in place: what is imported behind them is compiled anew each time.
import transformer_lens  # noqa: E402, F401


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def llama():
    """A Llama-like bridge with grouped heads: 4 layers, 4 heads, width 32, vocabulary 128."""
    from models import bridge

    return bridge("llama")


LONGEST = (
    "test_sweep_ray.py", "test_report_page.py", "test_diagnosis.py", "test_howtos.py", "test_reference.py",
    "test_sweep_resumed.py", "test_explorer.py", "test_verdicts.py", "test_cli.py", "test_tuned_lens.py",
)  # fmt: skip
"""Files that take longest, longest first (`pytest --durations=0`)."""


CORE = {"gpt2", "neox", "llama3", "gemma3", "gpt_oss", "bert"}
"""Families that differ most: norms, grouped heads, windows, sink logits, experts, an encoder."""

OF_EVERY_FAMILY = ("test_reference.py", "test_families.py", "test_inspection.py", "test_hugging_face.py")
"""Files that ask every family whenever tests run; elsewhere, families beside the core are `slow`."""

OF_THE_CORE = ("test_every_metric_in_bfloat16", "test_against_a_model_that_runs_in_float64")
"""Tests in those files that say of other precisions what another says of every family."""


@pytest.hookimpl(trylast=True)  # pytest has an order of its own, by fixtures
def pytest_collection_modifyitems(items):
    """A file is one process's: the longest begin, or one process would wait for the other at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item):
    """What repeats a law in one more family is left to `make test-all`."""
    given = getattr(item, "callspec", None)
    every = item.path.name in OF_EVERY_FAMILY and not item.name.startswith(OF_THE_CORE)
    if given is None or every:
        return
    from models import FAMILIES

    named = {value for value in given.params.values() if isinstance(value, str)} & set(FAMILIES)
    if named and not named & CORE:
        item.add_marker(pytest.mark.slow)


# Nothing of mcr_lens is imported before jaxtyping has put its checks in place, which older versions refuse:
# so names are looked up when tests are collected, and models imported where they are made.


def pytest_generate_tests(metafunc):
    """`any_model`: every family through the bridge, and HookedTransformer where there still is one."""
    if "any_model" not in metafunc.fixturenames:
        return
    from models import FAMILIES, GENERATION

    # The rest of HOOKED is measured in test_reference and test_inspection.
    twins = [f"hooked_{family}" for family in ("transformer", "gpt2", "neox", "llama3", "gemma2")]
    names = [*FAMILIES, *(twins if GENERATION < 4 else [])]
    metafunc.parametrize("any_model", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def any_model(request):
    """One model by its name (see `pytest_generate_tests`)."""
    from models import bridge, hooked_transformer, hooked_twin

    name = request.param
    if name == "hooked_transformer":
        return hooked_transformer()
    if name.startswith("hooked_"):
        return hooked_twin(name.removeprefix("hooked_"))
    return bridge(name)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Three rows of twelve token ids."""
    return torch.randint(3, 128, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompts() -> list[torch.Tensor]:
    """Rows of token ids of mixed length."""
    g = torch.Generator().manual_seed(2)
    return [torch.randint(3, 128, (n,), generator=g) for n in (12, 5, 17, 12, 9)]
