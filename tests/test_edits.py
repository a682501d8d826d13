"""Does an edit of what the MLP writes at position 0 reach the residual stream as that very vector?

Looked at with TransformerLens' own hooks, so that it says something about the hook points, not about us.
"""

import warnings

import pytest
import torch
from models import hugging_face, is_encoder

from mcr_lens import check_edit

VECTOR = torch.linspace(-1, 1, 32)


def run_edited(model, tokens, edit: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every residual stream and MLP write, with vectors added at position 0 of some hook points."""
    seen: dict[str, torch.Tensor] = {}

    def keep(tensor, hook, name):
        seen[name] = tensor.detach().clone()

    def add(tensor, hook, vector):
        tensor = tensor.clone()
        tensor[:, 0] += vector
        return tensor

    names = ["blocks.0.hook_resid_pre"]
    names += [
        f"blocks.{i}.{n}" for i in range(model.cfg.n_layers) for n in ("hook_mlp_out", "hook_resid_post")
    ]
    hooks = [(name, lambda t, hook, v=v: add(t, hook, v)) for name, v in edit.items()]
    hooks += [(name, lambda t, hook, name=name: keep(t, hook, name)) for name in names]
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return seen


@pytest.mark.parametrize("layer", range(4))
def test_the_stream_changes_by_the_edited_vector(any_model, tokens, layer):
    """Behind the block, row 0 moves by the vector and nothing else moves; before it, not one bit changes."""
    before = run_edited(any_model, tokens, {})
    after = run_edited(any_model, tokens, {f"blocks.{layer}.hook_mlp_out": VECTOR})
    behind = f"blocks.{layer}.hook_resid_post"
    if is_encoder(any_model):
        norm = hugging_face("bert").bert.encoder.layer[layer].output.LayerNorm
        # The LayerNorm sees the sum; undone, it moves by the vector, up to what the norm takes away.
        undone = (after[behind] - norm.bias) / norm.weight
        assert not torch.allclose(after[behind][:, 0] - before[behind][:, 0], VECTOR, atol=1e-2)
        standard = undone[:, 0] - undone[:, 0].mean(-1, keepdim=True)
        torch.testing.assert_close(undone[:, 0], standard, atol=1e-5, rtol=1e-5)
        assert check_edit(any_model, "mlp_out", layer) == "through a norm"
    else:
        moved = after[behind][:, 0] - before[behind][:, 0]
        torch.testing.assert_close(moved, VECTOR.expand_as(moved), atol=2e-6, rtol=0)
        assert check_edit(any_model, "mlp_out", layer) == "exact"
    assert torch.equal(after[behind][:, 1:], before[behind][:, 1:])
    for name in before:
        if int(name.split(".")[1]) < layer or name == "blocks.0.hook_resid_pre":
            assert torch.equal(after[name], before[name]), name


def test_the_last_stream_is_what_the_logits_are_made_of(any_model, tokens):
    """An edit in the last layer changes the logits at position 0, and at no other."""
    plain = any_model(tokens, return_type="logits")

    def zero(tensor, hook):
        tensor = tensor.clone()
        tensor[:, 0] = 0
        return tensor

    last = any_model.cfg.n_layers - 1
    with torch.no_grad():
        edited = any_model.run_with_hooks(
            tokens, fwd_hooks=[(f"blocks.{last}.hook_mlp_out", zero)], return_type="logits"
        )
    assert torch.equal(edited[:, 1:], plain[:, 1:])
    assert not torch.allclose(edited[:, 0], plain[:, 0], atol=1e-3)


def test_an_edited_pattern(any_model, tokens):
    """It is used, except where attention stays Hugging Face's own: there it can only be read."""
    plain = any_model(tokens, return_type="logits")
    name = "blocks.1.attn.hook_pattern"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens 4 says that it discards the edit, 3 does not
        edited = any_model.run_with_hooks(
            tokens, fwd_hooks=[(name, lambda pattern, hook: pattern / 2)], return_type="logits"
        )
    only_read = getattr(any_model.cfg, "architecture", None) in ("OPTForCausalLM", "BertForMaskedLM")
    assert torch.equal(edited, plain) is only_read
