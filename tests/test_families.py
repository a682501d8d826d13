"""Are the tiny models what they promise to be: real, small, reproducible, and nowhere degenerate?"""

import copy

import pytest
import torch
from models import FAMILIES
from test_imports import loaded

from mcr_lens.testing import FAMILIES as TABLE
from mcr_lens.testing import tiny_model

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
CLASSES = {
    "gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "neox": "GPTNeoXForCausalLM",
    "bloom": "BloomForCausalLM", "llama2": "LlamaForCausalLM", "llama3": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gemma1": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM", "gpt_oss": "GptOssForCausalLM", "bert": "BertForMaskedLM",
}  # fmt: skip


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_every_family_is_its_own_class():
    """The classes users load, all of them."""
    assert {name: type(tiny_model(name)).__name__ for name in TABLE} == CLASSES
    assert all(family.name == name and family.architecture for name, family in TABLE.items())


@EVERY_FAMILY
def test_the_same_seed_gives_the_same_weights(family):
    """Whatever the global random numbers are; they do not move."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, other = weights(tiny_model(family)), weights(tiny_model(family, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again = weights(tiny_model(family))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


@EVERY_FAMILY
def test_no_parameter_is_where_it_was_born(family):
    """A norm's gain of exactly 1 or a bias of exactly 0 would hide that it was forgotten."""
    for name, parameter in weights(tiny_model(family)).items():
        assert not ((parameter == 0) | (parameter == 1)).any(), name
        assert parameter.std() > 0.02, name


@EVERY_FAMILY
def test_attention_is_neither_uniform_nor_one_key(family, tokens):
    """Heads differ, and rows lie between the extremes."""
    with torch.no_grad():
        patterns = torch.stack(tiny_model(family)(tokens, output_attentions=True).attentions)
    entropy = torch.special.entr(patterns).sum(-1)  # [layer, batch, head, query]
    most = (patterns > 0).sum(-1).float().log()
    share = (entropy / most)[..., 3:]
    assert 0.1 < share.mean() < 0.98
    assert (patterns.std(2) > 0.01).any()


@EVERY_FAMILY
def test_every_parameter_matters(family, tokens):
    """Logits move when any parameter does, so no part of the model is switched off."""
    model = tiny_model(family)
    unused = {name for name, p in model.named_parameters() if "pooler" in name}
    model(tokens).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert name in unused or (gradient is not None and gradient.abs().sum() > 0), name


@EVERY_FAMILY
def test_half_precision_is_the_rounded_model(family):
    """dtype= rounds the same weights; buffers such as RoPE frequencies stay in float32."""
    full, half = tiny_model(family), tiny_model(family, dtype=torch.bfloat16)
    for (name, one), other in zip(full.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other), name
    assert all(b.dtype != torch.bfloat16 for b in half.buffers())
    assert half.config.dtype == torch.bfloat16


def test_settings_can_be_changed():
    """By Hugging Face's names; the table itself stays as it was."""
    before = copy.deepcopy(dict(TABLE["llama3"].settings))
    model = tiny_model("llama3", num_hidden_layers=2, num_key_value_heads=4, sliding_window=8)
    assert len(model.model.layers) == 2 and model.config.num_key_value_heads == 4
    assert dict(TABLE["llama3"].settings) == before
    assert len(tiny_model("gpt2", num_hidden_layers=2).transformer.h) == 2
    assert tiny_model("opt", attention="sdpa").config._attn_implementation == "sdpa"


def test_unknown_family():
    """The message lists those there are."""
    with pytest.raises(KeyError, match="unknown family 'llama': pass one of gpt2, opt, neox"):
        tiny_model("llama")


@pytest.mark.once
def test_importing_the_library_does_not_import_the_testing_part():
    """Hugging Face is needed for tests only."""
    code = "import mcr_lens, sys\n[getattr(mcr_lens, name) for name in mcr_lens.__all__]\n"
    assert loaded(code + "assert not [m for m in sys.modules if m.startswith('mcr_lens.testing')]") == set()
