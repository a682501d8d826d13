"""Which blocks must be cut: is the set minimal, and is what was planted found?"""

import numpy as np
import pytest
import torch

from mcr_lens import load_model, measure, zero_bos_mlp
from mcr_lens.minimal import MinimalAblation, minimal_ablation
from mcr_lens.testing import Massive, plant, planted_model, planted_prompts
from mcr_lens.testing._weights import LAYOUTS

pytestmark = pytest.mark.once

QUIET = {"progress": False}
PROMPTS = planted_prompts(3)


def largest(model, interventions) -> float:
    ds = measure(model, PROMPTS, ["massive_activation_ratio"], interventions=interventions, **QUIET)
    return float(ds.massive_activation_ratio.mean("prompt").max())


def with_backup():
    """Block 3 has the neuron of block 1 too, which is silent on a row that is massive already."""
    model = plant("llama3", Massive(1))
    one, three = (LAYOUTS["llama3"].weights(model).blocks[i] for i in (1, 3))
    with torch.no_grad():
        for source, copy in zip(one.neurons, three.neurons, strict=True):
            copy.weight[0] = source.weight[0] * source.norm.weight / copy.norm.weight
        three.mlp_out.weight[:, 0] = one.mlp_out.weight[:, 0]
    return load_model(model, verbose=False)


def with_amplifier():
    """Block 1 makes BOS massive, and block 3 makes what block 1 wrote nine times as long."""
    model = plant("llama3", Massive(1, ratio=15.0, removed_by=3))
    with torch.no_grad():
        LAYOUTS["llama3"].weights(model).blocks[3].mlp_out.weight[:, 0] *= -8
    return load_model(model, verbose=False)


def check_law(model, found: MinimalAblation) -> None:
    """Without the set the ratio is small, and with any member back it is large."""
    assert found.removed and found.ratio_after < found.threshold
    assert largest(model, found.interventions) == pytest.approx(found.ratio_after, rel=1e-6)
    for back in found.layers:
        rest = [layer for layer in found.layers if layer != back]
        assert largest(model, [zero_bos_mlp(rest)] if rest else []) >= found.threshold, back


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama2", "llama3", "qwen2"])
def test_the_planted_block(family):
    """One block writes it, one block is named, and two runs were enough."""
    model = load_model(planted_model("massive_sinks", family).model, verbose=False)
    found = minimal_ablation(model, PROMPTS, **QUIET)
    assert found.layers == (1,) and found.found and found.removed
    assert found.ratio_after < 3 < 50 < found.ratio_before
    assert [t.layers for t in found.path] == [(), (1,)]
    assert found.path[0].ratio == found.ratio_before == pytest.approx(largest(model, []), rel=1e-6)
    check_law(model, found)
    assert str(found).startswith("gone without mlp_out at position 0 of layer 1 (ratio ")


def test_a_backup_is_cut_too():
    """Cut block 1 and block 3 writes it: both must go, and neither alone is enough."""
    model = with_backup()
    found = minimal_ablation(model, PROMPTS, **QUIET)
    assert found.layers == (1, 3)
    check_law(model, found)
    assert [t.layers for t in found.path][:3] == [(), (1,), (1, 3)]
    assert found.path[1].ratio > 10


def test_what_is_not_needed_is_given_back():
    """The ratio rises most behind block 3, which only makes longer what block 1 wrote: block 1 is the set."""
    model = with_amplifier()
    found = minimal_ablation(model, PROMPTS, **QUIET)
    assert found.layers == (1,)
    check_law(model, found)
    assert [t.layers for t in found.path][:3] == [(), (3,), (1, 3)]
    assert found.ratio_before > 50


def test_nothing_to_remove():
    """Without a massive activation nothing is cut, and nothing is called removed."""
    model = load_model(planted_model("nothing", "gpt2").model, verbose=False)
    found = minimal_ablation(model, PROMPTS, **QUIET)
    assert (found.layers, found.found, found.removed, found.interventions) == ((), False, False, [])
    assert found.ratio_before == found.ratio_after < 10 and len(found.path) == 1
    assert str(found).startswith("no massive activation: the largest mean ratio is ")


def test_attention_does_not_write_it():
    """Every attention below the peak cut, and it stays: said, not hidden."""
    model = load_model(planted_model("massive_stays", "gpt2").model, verbose=False)
    found = minimal_ablation(model, PROMPTS, site="attn_out", **QUIET)
    assert found.found and not found.removed and found.ratio_after > 10
    assert found.layers and "stays without attn_out at position 0 of layers 0, 1" in str(found)


def test_a_massive_embedding():
    """No write makes it, so no write is cut, and one run says so."""
    model = planted_model("nothing", "llama3").model
    with torch.no_grad():
        model.model.embed_tokens.weight[0] *= 100
    found = minimal_ablation(load_model(model, verbose=False), PROMPTS, **QUIET)
    assert (found.layers, found.found, found.removed) == ((), True, False)
    assert len(found.path) == 1 and "stays without mlp_out at position 0 of no layer" in str(found)


def test_another_position_and_prompts_that_are_read_once():
    """A massive delimiter at position 2 is cut there, and the one at BOS is left alone."""
    model = load_model(planted_model("two_massive", "qwen2").model, verbose=False)
    rows = [torch.cat([row[:2], torch.tensor([3]), row[row != 3][2:]]) for row in PROMPTS]
    found = minimal_ablation(model, iter(rows), position=2, **QUIET)
    assert found.layers == (1,) and found.removed
    ds = measure(model, rows, ["massive_activation_ratio"], interventions=found.interventions, **QUIET)
    assert np.all(ds.massive_activation_ratio.max("depth") > 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio=1.0: a massive row is longer than the others; pass a number above 1"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"site": "resid"}, "site='resid': pass one of mlp_out, attn_out"),
    ],
)
def test_nonsense_is_refused(llama, options, message):
    """Before any run."""
    with pytest.raises(ValueError, match=message):
        minimal_ablation(llama, PROMPTS, **options, **QUIET)


@pytest.mark.filterwarnings("ignore:.*have a single token:UserWarning")
def test_a_single_token_has_no_ratio(llama):
    """Said in words."""
    with pytest.raises(ValueError, match="every prompt has a single token"):
        minimal_ablation(llama, [[5], [6]], **QUIET)
