"""Tiny random models, made in memory: nothing here touches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import jaxtyping
import pytest
import torch
from models import FAMILIES, GENERATION, bridge, hooked_transformer

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
    return bridge("llama")


@pytest.fixture(scope="session", params=[*FAMILIES, "hooked_transformer"])
def any_model(request):
    """Every family through the bridge, and HookedTransformer where TransformerLens still has it."""
    if request.param == "hooked_transformer":
        if GENERATION >= 4:
            pytest.skip("TransformerLens 4 has no HookedTransformer")
        return hooked_transformer()
    return bridge(request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Three rows of twelve token ids."""
    return torch.randint(3, 128, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompts() -> list[torch.Tensor]:
    """Rows of token ids of mixed length."""
    g = torch.Generator().manual_seed(2)
    return [torch.randint(3, 128, (n,), generator=g) for n in (12, 5, 17, 12, 9)]
