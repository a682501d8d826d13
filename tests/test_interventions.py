"""Are interventions made where they say, recorded in the result, and gone after the run?"""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from models import bridge, hugging_face, is_encoder, tokenizer
from traces import hook_census

from mcr_lens import (
    IndirectEditWarning,
    MissingHookPointError,
    load_model,
    measure,
    merge,
    zero_ablation,
    zero_bos_mlp,
)


def test_layer_that_does_not_exist(llama, tokens):
    """The message says which layers there are, and nothing is left hanging."""
    llama(tokens)
    before = hook_census(llama)
    with pytest.raises(ValueError, match=r"layer 4 does not exist: the model has layers 0\.\.3"):
        measure(llama, tokens, interventions=[zero_bos_mlp([0, 4])], progress=False)
    assert hook_census(llama) == before


def test_edit_needs_a_model():
    """Not a TransformerLens model."""
    with pytest.raises(TypeError, match="expected a TransformerLens model"):
        zero_bos_mlp(0).fwd_hooks(torch.nn.Linear(1, 1))


def test_edit_is_recorded(llama, tokens):
    """The result says what was edited, as JSON; such results do not merge with others."""
    edited = measure(llama, tokens, ["bos_norm"], interventions=[zero_bos_mlp([1, 2])], progress=False)
    assert json.loads(edited.attrs["interventions"]) == [
        {"kind": "zero_ablation", "site": "mlp_out", "layers": [1, 2], "positions": [0]}
    ]
    plain = measure(llama, tokens.flip(1), ["bos_norm"], progress=False)
    assert plain.attrs["interventions"] == "[]"
    with pytest.raises(ValueError, match="results differ in interventions"):
        merge(plain, edited)


def test_several_edits_are_all_made(llama, tokens):
    """Two edits together are not one of them alone."""
    one, two = zero_bos_mlp(1), zero_ablation("attn_out", layers=2, positions=None)
    writes = ["mlp_bos_norm", "attn_bos_norm"]
    both = measure(llama, tokens, writes, interventions=[one, two], progress=False)
    assert (both.mlp_bos_norm.sel(layer=1) == 0).all() and (both.attn_bos_norm.sel(layer=2) == 0).all()
    assert (both.mlp_bos_norm.sel(layer=2) > 0).all() and (both.attn_bos_norm.sel(layer=1) > 0).all()


def test_edits_without_measuring(llama, tokens):
    """The hooks work with TransformerLens alone."""
    edit = zero_ablation("mlp_out", layers=range(4), positions=None)
    plain = llama(tokens)
    edited = llama.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks(llama))
    assert not torch.allclose(plain, edited) and torch.equal(llama(tokens), plain)


def test_padded_batches_edit_the_same_tokens(any_model, prompts):
    """Mixed lengths in one batch: the same edit as one prompt at a time, loss included."""
    options = {"metrics": ["bos_norm", "sink_score", "next_token_loss"], "progress": False}
    edits = [zero_ablation("mlp_out", layers=[0, 2], positions=[0, 3])]
    with pytest.warns(IndirectEditWarning) if is_encoder(any_model) else nullcontext():
        together = measure(any_model, prompts, batch_size=5, interventions=edits, **options)
        alone = merge(*(measure(any_model, p, interventions=edits, **options) for p in prompts))
    for name in together.data_vars:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5, atol=1e-5)


def test_positions_beyond_a_prompt_are_not_there(llama):
    """A position that a prompt does not have is no error and no edit."""
    edit = zero_ablation("mlp_out", layers=1, positions=[0, 40])
    tokens = torch.randint(3, 128, (1, 6))
    far = measure(llama, tokens, interventions=[edit], progress=False)
    near = measure(llama, tokens, interventions=[zero_bos_mlp(1)], progress=False)
    np.testing.assert_array_equal(far.bos_norm, near.bos_norm)


def test_decoding_steps_are_not_touched():
    """With a key-value cache each new token comes alone; it is not position 0."""
    model = load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    written = []

    def spy(tensor, hook=None):
        written.append(tensor.abs().sum(-1)[0])

    hooks = [*zero_bos_mlp(1).fwd_hooks(model), ("blocks.1.hook_mlp_out", spy)]
    with model.hooks(fwd_hooks=hooks), torch.no_grad():
        ids = torch.randint(3, 128, (1, 6))
        model.generate(ids, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
    assert len(written[0]) == 6 and written[0][0] == 0 and (written[0][1:] > 0).all()
    assert len(written) == 4 and all(len(step) == 1 and step[0] > 0 for step in written[1:])


def test_edit_where_there_is_no_hook(monkeypatch):
    """A model without the hook point: the missing name is in the message."""
    model = bridge("llama")
    points = {n: p for n, p in model.hook_dict.items() if "mlp_out" not in n}

    class Without:
        cfg = model.cfg
        hook_dict = points
        hooks = model.hooks

        def __call__(self):
            raise AssertionError

    with pytest.raises(MissingHookPointError, match=r"has no hook point 'blocks\.0\.hook_mlp_out'"):
        zero_bos_mlp(0).fwd_hooks(Without())
