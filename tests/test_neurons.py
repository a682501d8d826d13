"""Which neurons write it: do they add up to the MLP, and is the planted one named?"""

import numpy as np
import pytest
import torch
from models import bridge, hugging_face, is_encoder
from probes import stream

from mcr_lens import load_model, measure
from mcr_lens.culprit import norm_sources
from mcr_lens.neurons import writing_neurons
from mcr_lens.testing import planted_model, planted_prompts

QUIET = {"progress": False}


def has_experts(model) -> bool:
    return getattr(model.blocks[0].mlp, "W_out", None) is None


def test_neurons_add_up_to_the_mlp(any_model, prompts):
    """Listed neurons, the others and the bias make the MLP's share of the norm, as `norm_sources` has it."""
    if is_encoder(any_model) or has_experts(any_model):
        with pytest.raises(ValueError, match=r"as in BERT|no one W_out .*a mixture of experts"):
            writing_neurons(any_model, prompts, 1, depth=3, **QUIET)
        return
    for layer, position in ((0, 0), (2, 1)):
        options = {"depth": 3, "position": position, **QUIET}
        ds = writing_neurons(any_model, prompts, layer, top=5, **options)
        wanted = norm_sources(any_model, prompts, **options).write_share.sel(layer=layer, part="mlp")
        total = ds.contribution.sum("neuron") + ds.other_neurons + ds.bias_contribution
        np.testing.assert_allclose(total, wanted, atol=1e-5)
        np.testing.assert_allclose(ds.mlp_share, wanted, atol=1e-12)
        assert ds.sizes["neuron"] == 5 and abs(ds.other_neurons).max() > 1e-3


def test_the_largest_come_first(llama, prompts):
    """All neurons, each once, by the magnitude of the mean contribution."""
    ds = writing_neurons(llama, prompts, 1, depth=4, top=1000, **QUIET)
    assert sorted(ds.neuron.values.tolist()) == list(range(64))
    size = abs(ds.contribution.mean("prompt")).values
    assert (np.diff(size) <= 0).all() and size[0] > 0
    np.testing.assert_array_equal(ds.other_neurons, 0)
    shares = float(ds.share_of_write.sum())
    assert shares == pytest.approx(1, abs=1e-5)  # a Llama has no bias


@pytest.mark.parametrize("family", ["gpt2", "llama3"])
def test_a_contribution_is_what_is_missing_without_the_neuron(family, prompts):
    """With a neuron's column of W_out at zero, the row behind the block has lost just that."""
    found = writing_neurons(bridge(family), prompts, 1, depth=2, top=3, **QUIET)
    whole = bos_rows(bridge(family), prompts)
    for i, neuron in enumerate(found.neuron.values):
        cut = hugging_face(family)
        with torch.no_grad():
            if family == "gpt2":
                cut.transformer.h[1].mlp.c_proj.weight[neuron] = 0
            else:
                cut.model.layers[1].mlp.down_proj.weight[:, neuron] = 0
        lost = whole - bos_rows(load_model(cut, verbose=False), prompts)
        wanted = (lost * whole).sum(-1) / (whole**2).sum(-1)
        np.testing.assert_allclose(found.contribution[:, i], wanted, atol=1e-5)


def bos_rows(model, prompts) -> np.ndarray:
    """BOS behind block 1, [prompt, d_model]."""
    rows = [measure(model, p, {"resid": stream}, **QUIET).resid.values[0, 2, 0] for p in prompts]
    return np.stack(rows).astype(float)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama2", "llama3", "qwen2"])
def test_the_planted_neuron_is_named(family):
    """A planted massive activation is written by the first neuron of block 1, and by nothing else."""
    model = load_model(planted_model("massive_stays", family).model, verbose=False)
    ds = writing_neurons(model, planted_prompts(), 1, **QUIET)
    assert int(ds.neuron[0]) == 0
    assert float(ds.share_of_write[0]) == pytest.approx(1, abs=0.02)
    assert abs(ds.share_of_write[1:]).max() < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, prompts):
    """Rounding is not taken for a broken MLP."""
    for family in ("gpt2", "gemma2", "llama3"):
        ds = writing_neurons(bridge(family, dtype=dtype), prompts, 1, depth=4, **QUIET)
        total = ds.contribution.sum("neuron") + ds.other_neurons + ds.bias_contribution
        np.testing.assert_allclose(total, ds.mlp_share, atol=0.01)


def test_an_mlp_that_does_something_else_is_noticed(prompts):
    """What W_out makes of the neurons is held against what the MLP writes, on the prompts themselves."""
    model = bridge("llama3")
    out = model.blocks[1].mlp.out
    handle = out.register_forward_hook(lambda module, given, made: made * 1.5)
    with pytest.raises(ValueError, match=r"MLP of layer 1 .* does not write hook_post @ W_out \+ b_out"):
        writing_neurons(model, prompts, 1, depth=4, **QUIET)
    handle.remove()
    assert writing_neurons(model, prompts, 1, depth=4, **QUIET).sizes["neuron"] == 10


def test_batches_do_not_matter(llama, prompts):
    """One prompt at a time or all together, padded: the same numbers, prompts in their order."""
    together = writing_neurons(llama, iter(prompts), 1, depth=3, batch_size=5, **QUIET)
    alone = writing_neurons(llama, prompts, 1, depth=3, batch_size=1, **QUIET)
    np.testing.assert_array_equal(together.neuron, alone.neuron)
    for name in ("contribution", "activation", "mlp_share"):
        np.testing.assert_allclose(together[name], alone[name], atol=1e-5)


def test_the_result_is_labelled(llama, prompts):
    """Every variable says what it is, and the result where it was looked at."""
    ds = writing_neurons(llama, prompts, 1, depth=3, top=2, **QUIET)
    for variable in ds.data_vars.values():
        assert {"units", "long_name", "source"} <= set(variable.attrs)
    assert int(ds.layer) == 1 and int(ds.depth) == 3


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (4, {"depth": 4}, r"layer=4: the model has layers 0\.\.3"),
        (True, {"depth": 4}, r"layer=True: the model has layers 0\.\.3"),
        (2, {"depth": 2}, "layer 2 writes to depth 3, .* at depth 2; pass depth=3 or more"),
        (1, {"top": 0}, "top=0: pass how many neurons to list, 1 or more"),
    ],
)
def test_nonsense_is_refused(llama, prompts, layer, options, message):
    """In one sentence."""
    with pytest.raises(ValueError, match=message):
        writing_neurons(llama, prompts, layer, **options, **QUIET)
