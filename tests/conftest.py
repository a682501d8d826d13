"""Tiny random models, made in memory: nothing here touches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def as_for_users():
    """Users have no type checker at their calls, so it must not answer in the library's place."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def llama():
    """A Llama-like bridge with grouped heads: 4 layers, 4 heads, width 32, vocabulary 128."""
    from models import bridge

    return bridge("llama")


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
