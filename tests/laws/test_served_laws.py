"""What must hold for every Hugging Face model that is measured as it is served?"""

import warnings

import numpy as np
import pytest
import torch
from dispatch import Largest
from models import FAMILIES, bridge, hugging_face

import mcr_lens
from mcr_lens import CannotServeError, compare, measure, observe, serve, zero_bos_mlp
from mcr_lens.hookpoints import hook_names
from mcr_lens.served_attention import _READERS, configurations

SERVED = [family for family in FAMILIES if family != "bloom"]
"""Bloom does not go through transformers' attention interface."""

EAGER_ONLY = ("gemma2", "gpt_oss")
"""transformers has no sdpa for a soft-cap or a sink logit."""


def plain(family, **options):
    return hugging_face(family, attention="eager" if family in EAGER_ONLY else "sdpa", **options)


@pytest.fixture(scope="module", params=SERVED)
def family(request):
    return request.param


def traces(model):
    """Everything that a door could leave behind: hooks, configurations, readers, weights, modes."""
    hooks = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    )
    settings = [config._attn_implementation for config in configurations(model)]
    weights = [(p.data_ptr(), p._version) for p in model.parameters()]
    return hooks, settings, weights, [m.training for m in model.modules()], dict(_READERS)


def assert_same(found, wanted, within):
    assert set(found.data_vars) == set(wanted.data_vars)
    for name in wanted.data_vars:
        one, other = found[name].values, wanted[name].values
        if np.issubdtype(one.dtype, np.integer):
            assert (one == other).mean() > 0.99, name  # places of equal scores
        else:
            assert np.allclose(one, other, atol=within, rtol=within, equal_nan=True), name


def test_every_default_metric_is_that_of_the_bridge(family, prompts):
    """Mixed lengths, one token alone included: the same numbers, the same variables, the same state."""
    prompts = [*prompts, torch.tensor([7])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mcr_lens.PromptWarning)
        found = measure(plain(family), prompts, progress=False)
        wanted = measure(bridge(family), prompts, progress=False)
    assert_same(found, wanted, 1e-5)
    assert found.attrs["door"].startswith("Hugging Face model as it is served")
    different = {k for k in mcr_lens.results.SAME if found.attrs[k] != wanted.attrs[k]}
    assert not different and not found.attrs["skipped_metrics"]


def test_edits_are_those_of_the_bridge(family, prompts):
    """An ablation of what an MLP writes, its loss and its divergence included."""
    conditions = {"clean": [], "cut": zero_bos_mlp(1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BERT: no next token, and an edit through a norm
        found = compare(plain(family), prompts, conditions, progress=False)
        wanted = compare(bridge(family), prompts, conditions, progress=False)
    assert_same(found, wanted, 1e-4)
    assert float(found.bos_norm.sel(condition="cut", depth=2).mean()) != pytest.approx(
        float(found.bos_norm.sel(condition="clean", depth=2).mean()), rel=1e-3
    )


def test_logits_are_bitwise_those_of_the_model_and_nothing_is_left(family, tokens):
    """Before, while and after somebody looks, in the model's own call."""
    model = plain(family)
    served = serve(model)
    before = traces(model)
    with torch.no_grad():
        alone = model(tokens).logits
        with observe(served) as watch:
            seen = model(tokens).logits
            assert traces(model) != before
            asked = served(tokens)
        assert torch.equal(alone, seen) and torch.equal(alone, asked)
        assert traces(model) == before
        measure(model, tokens, progress=False)
        assert traces(model) == before
        assert torch.equal(alone, model(tokens).logits)
    assert watch.result().sizes["prompt"] == 2 * len(tokens)


def test_nothing_is_left_after_an_exception(family, tokens):
    """An error in the model, in an edit and in the user's block."""
    model = plain(family)
    served = serve(model)
    before = traces(model)

    def boom(*_args, **_kwargs):
        raise ZeroDivisionError

    for read in ("resid", "attn_out", "mlp_out", "value", "attention", "z"):
        with pytest.raises(ZeroDivisionError), served.hooks([(hook_names(served, read)[1], boom)]):
            served(tokens)
        assert traces(model) == before
    with pytest.raises(KeyError), observe(served):
        raise KeyError
    assert traces(model) == before
    handle = served._parts.blocks[2].module.register_forward_pre_hook(boom)
    with pytest.raises(ZeroDivisionError):
        measure(served, tokens, progress=False)
    handle.remove()
    assert traces(model) == before


def test_padding_on_either_side_makes_no_difference(family, prompts):
    """In somebody's own loop, with a mask, as the model's own call."""
    if family in ("bert", "gpt2", "opt"):
        pytest.skip("positions are counted from the padding there")
    model = plain(family)
    wanted = measure(model, prompts[:3], progress=False)
    longest = max(len(p) for p in prompts[:3])
    for side in ("left", "right"):
        rows = torch.full((3, longest), 2)
        mask = torch.zeros(3, longest, dtype=torch.long)
        for row, ids in enumerate(prompts[:3]):
            real = slice(longest - len(ids), longest) if side == "left" else slice(0, len(ids))
            rows[row, real], mask[row, real] = ids, 1
        with observe(serve(model)) as watch, torch.no_grad():
            model(rows, attention_mask=mask)
        assert_same(watch.result(), wanted, 1e-4)


def test_no_tensor_of_the_square_of_the_length_is_ever_made():
    """All default metrics on a long prompt: the largest tensor belongs to a linear one."""
    length = 4096
    model = plain("llama3", max_position_embeddings=length)
    ids = torch.randint(3, 128, (1, length), generator=torch.Generator().manual_seed(0))
    with Largest() as seen:
        measure(model, ids, progress=False)
    assert 32 * length <= seen.elements < length**2 // 4


def test_bloom_is_refused_in_words():
    """Its attention is its own; the bridge has it."""
    with pytest.raises(
        CannotServeError, match=r"BloomForCausalLM computes its attention by itself.*load_model"
    ):
        serve(hugging_face("bloom"))
