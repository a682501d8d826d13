"""What do the examples in docstrings find: `mcr` always; `model`, `prompts` and `ds` where they name them.

The page of the API says the same to readers. Each is made once, and only for an example that asks for it.
"""

import re
from importlib.util import find_spec
from unittest.mock import patch

import jaxtyping
import pytest
from _pytest.doctest import DoctestItem

SHARED = ("model", "prompts", "ds")

# Kernels can only be looked at where Triton is.
collect_ignore = [] if find_spec("triton") else ["mcr_lens/gpu_kernels.py"]


@pytest.fixture(scope="session")
def example_prompts() -> list[str]:
    """Four prompts of some fifty characters."""
    return [
        "Snow fell on the harbour, and the boats stayed in.",
        "The door was open, and nobody was in the house.",
        "She counted the coins twice, put them in the drawer.",
        "If the value is missing, the default is used.",
    ]


@pytest.fixture(scope="session")
def example_model():
    """The bundled model."""
    import mcr_lens

    return mcr_lens.load_model("demo", verbose=False)


@pytest.fixture(scope="session")
def example_ds(example_model, example_prompts):
    """Every default metric of it."""
    import mcr_lens

    return mcr_lens.measure(example_model, example_prompts, progress=False)


CHECKED = ("laws", "test_reference.py", "test_metrics_golden.py", "test_families.py", "test_gpu.py")
"""Where shapes and types are checked at every call, as they are in all examples of docstrings."""

WANTED = not jaxtyping.config.jaxtyping_disable  # JAXTYPING_DISABLE=1 leaves them out everywhere

# Elsewhere as for users, who have no type checker at their calls: it must not answer in the library's place.
# It is a quarter of the time, too.
jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def shapes_and_types(request):
    """Checked or not, as `CHECKED` says."""
    path = request.path
    chosen = isinstance(request.node, DoctestItem) or {path.name, path.parent.name} & set(CHECKED)
    jaxtyping.config.update("jaxtyping_disable", not (chosen and WANTED))
    yield
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def metrics_of_this_test():
    """What a test, a page or an example registers is gone after it: no other must see it."""
    from mcr_lens.metrics import _registry

    with patch.dict(_registry._METRICS):
        yield


@pytest.fixture(autouse=True)
def _names_of_examples(request, doctest_namespace):
    if not isinstance(request.node, DoctestItem):
        return
    import mcr_lens

    doctest_namespace["mcr"] = mcr_lens
    code = "\n".join(example.source for example in request.node.dtest.examples)
    for name in SHARED:
        if re.search(rf"\b{name}\b", code):
            doctest_namespace[name] = request.getfixturevalue(f"example_{name}")
