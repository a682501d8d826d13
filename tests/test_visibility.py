"""Which keys does a query see: is it read off the configuration as the model means it?"""

from types import SimpleNamespace

import pytest
import torch

from mcr_lens.visibility import attention_chunk, attention_window, layer_mask


def wrapped(**config):
    """What of a bridge decides its masks."""
    return SimpleNamespace(
        cfg=SimpleNamespace(architecture="SomeForCausalLM", attention_dir="causal"),
        original_model=SimpleNamespace(config=SimpleNamespace(**config)),
    )


def seen(model, layer: int, length: int = 5) -> list[list[int]]:
    """The keys that each query sees."""
    return [row.nonzero()[:, 0].tolist() for row in layer_mask(model, layer, length)]


ALL = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_chunks_are_not_looked_out_of():
    """Llama 4: full layers among chunked ones."""
    kinds = ["chunked_attention", "full_attention"]
    model = wrapped(attention_chunk_size=2, layer_types=kinds)
    assert [attention_chunk(model, layer) for layer in (0, 1)] == [2, None]
    assert seen(model, 0) == [[0], [0, 1], [2], [2, 3], [4]]
    assert seen(model, 1) == ALL


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, [None, None]),
        ({"sliding_window": 2}, [2, 2]),
        ({"sliding_window": None}, [None, None]),
        ({"sliding_window": 2, "use_sliding_window": False}, [None, None]),
        ({"sliding_window": 2, "layer_types": ["full_attention", "sliding_attention"]}, [None, 2]),
        ({"window_size": 3, "attention_layers": ["global", "local"]}, [None, 3]),
    ],
)
def test_windows(config, wanted):
    """Every layer, every layer but by switch, some layers, GPT-Neo's own names."""
    model = wrapped(**config)
    assert [attention_window(model, layer) for layer in (0, 1)] == wanted
    for layer, window in enumerate(wanted):
        assert seen(model, layer) == [keys[-window:] if window else keys for keys in ALL]


def test_encoders_see_everything():
    """Whatever TransformerLens says about the direction: the architecture's name is asked as well."""
    model = wrapped()
    model.cfg.architecture = "BertForMaskedLM"
    assert torch.equal(layer_mask(model, 0, 4), torch.ones(4, 4, dtype=torch.bool))
    model.cfg = SimpleNamespace(architecture=None, attention_dir="bidirectional")
    assert layer_mask(model, 0, 3).all()
