"""A tiny model, and a plan that measures it."""

import pytest

# Nothing of mcr_lens is imported here: jaxtyping puts its checks in place later (see the conftest above).


@pytest.fixture(scope="module")
def tiny():
    """A Llama-like bridge with a tokenizer."""
    from models import hugging_face, tokenizer

    from mcr_lens import load_model

    return load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)


@pytest.fixture
def given(tmp_path, tiny):
    """A plan: one model, seven prompts of one length, three in a part."""
    from sweeps.running import METRICS, TEXTS

    return {
        "out": tmp_path / "out", "metrics": METRICS, "chunk": 3, "batch_size": 1,
        "models": [{"name": "tiny", "model": tiny}], "prompts": [{"name": "p", "texts": TEXTS}],
    }  # fmt: skip
