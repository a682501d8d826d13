"""Does measuring leave the model as it was, whatever happens on the way?"""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from traces import hook_census as count_hooks

from mcr_lens import measure, observe


def failing(resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
    """A user's metric with a mistake in it."""
    raise ZeroDivisionError("in the user's metric")


def boom(*_args, **_kwargs):
    raise RuntimeError("in the model")


def run(model, tokens):
    with torch.no_grad():
        return model(tokens, return_type="logits")


def hook_census(model):
    """Counted after a pass, because a bridge adds capture hooks of its own on the first one."""
    run(model, torch.tensor([[5, 6]]))
    return count_hooks(model)


def test_observing_leaves_the_logits_bitwise_equal(any_model, tokens):
    """The same bits with and without an observer, and after measuring."""
    before = run(any_model, tokens)
    with observe(any_model):
        during = run(any_model, tokens)
    measure(any_model, tokens, progress=False)
    after = run(any_model, tokens)
    assert torch.equal(before, during) and torch.equal(before, after)


def test_no_hook_is_left_after_success(any_model, tokens):
    """Every hook that was installed is gone again, and no other hook with it."""
    point = any_model.hook_dict["blocks.1.hook_mlp_out"]
    point.add_hook(lambda tensor, hook: None)
    try:
        before = hook_census(any_model)
        measure(any_model, tokens, progress=False)
        assert hook_census(any_model) == before
        with observe(any_model) as watch:
            assert count_hooks(any_model) != before
            run(any_model, tokens)
        watch.result()
        assert hook_census(any_model) == before
        assert sum(before.values()) > 0
    finally:
        any_model.reset_hooks(including_permanent=True)


def test_no_hook_is_left_after_an_exception_in_the_model(any_model, tokens):
    """An error between two blocks reaches the caller, and the hooks are gone."""
    run(any_model, tokens)
    handle = any_model.blocks[2].register_forward_pre_hook(boom)
    try:
        before = count_hooks(any_model)
        with pytest.raises(RuntimeError, match="in the model"):
            measure(any_model, tokens, progress=False)
        assert count_hooks(any_model) == before
        with pytest.raises(RuntimeError, match="in the model"), observe(any_model):
            run(any_model, tokens)
        assert count_hooks(any_model) == before
    finally:
        handle.remove()
    measure(any_model, tokens, progress=False)


def test_no_hook_is_left_after_an_exception_in_a_metric(any_model, tokens):
    """An error in a user's metric reaches the caller as it is, and the hooks are gone."""
    before = hook_census(any_model)
    with pytest.raises(ZeroDivisionError, match="in the user's metric"):
        measure(any_model, tokens, [failing], progress=False)
    assert hook_census(any_model) == before
    with pytest.raises(ZeroDivisionError), observe(any_model, [failing]):
        run(any_model, tokens)
    assert hook_census(any_model) == before


def test_no_hook_is_left_after_an_exception_in_the_block(llama, tokens):
    """An error of the user's own inside `with observe(...)` changes nothing either."""
    before = hook_census(llama)
    with pytest.raises(KeyError), observe(llama) as watch:
        run(llama, tokens)
        raise KeyError
    assert hook_census(llama) == before
    assert watch.result().sizes["prompt"] == len(tokens)


def test_a_refused_call_installs_nothing(llama, tokens):
    """Arguments are checked before the first hook."""
    before = hook_census(llama)
    with pytest.raises(KeyError):
        measure(llama, tokens, ["no_such_metric"], progress=False)
    with pytest.raises(ValueError), observe(llama, position=-1):
        pass
    assert hook_census(llama) == before


def test_weights_and_mode_stay(llama, tokens):
    """Neither a parameter, nor a gradient, nor the evaluation mode changes."""
    before = {name: p.detach().clone() for name, p in llama.original_model.named_parameters()}
    measure(llama, tokens, "all", progress=False)
    assert not llama.training
    for name, parameter in llama.original_model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None


def test_gradients_flow_through_an_observed_pass(llama, tokens):
    """Observing inside a training step neither stops the gradient nor keeps the graph alive."""
    plain = torch.autograd.grad(llama(tokens).sum(), llama.original_model.lm_head.weight)[0]
    with observe(llama) as watch:
        loss = llama(tokens).sum()
    seen = torch.autograd.grad(loss, llama.original_model.lm_head.weight)[0]
    assert torch.equal(plain, seen)
    assert watch.result().sizes["prompt"] == len(tokens)
