"""Tiny random models, made in memory: nothing here touches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import jaxtyping
import pytest
import torch
from models import FAMILIES, GENERATION, bridge, hooked_transformer, hooked_twin

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


BRIDGES = {family: (bridge, family) for family in FAMILIES}
# The rest of HOOKED is measured in test_reference and test_inspection.
TWINS = {f"hooked_{f}": (hooked_twin, f) for f in ("gpt2", "neox", "llama3", "gemma2")}
HOOKED_TRANSFORMERS = {"hooked_transformer": (hooked_transformer,), **TWINS} if GENERATION < 4 else {}


@pytest.fixture(scope="session", params={**BRIDGES, **HOOKED_TRANSFORMERS}.items(), ids=lambda item: item[0])
def any_model(request):
    """Every family through the bridge, and HookedTransformer where TransformerLens still has it."""
    make, *arguments = request.param[1]
    return make(*arguments)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Three rows of twelve token ids."""
    return torch.randint(3, 128, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompts() -> list[torch.Tensor]:
    """Rows of token ids of mixed length."""
    g = torch.Generator().manual_seed(2)
    return [torch.randint(3, 128, (n,), generator=g) for n in (12, 5, 17, 12, 9)]
