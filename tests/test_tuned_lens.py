"""Do translators learn to say early what the model says at the end, and never say it worse?"""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from models import bridge, hugging_face
from real_data import real
from safetensors.torch import save_file

import mcr_lens as mcr
from mcr_lens.readouts import lens as lenses
from mcr_lens.readouts.tuned_training import fit_tuned_lens
from mcr_lens.readouts.unembedding import CannotReadOutError

pytestmark = pytest.mark.once


def stories(n: int = 40, length: int = 40, seed: int = 5) -> list[torch.Tensor]:
    """Rows of ids in which a token is often followed by its neighbour: there is something to learn."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        row = [int(torch.randint(3, 128, (1,), generator=g))]
        while len(row) < length:
            jump = int(torch.randint(1, 4, (1,), generator=g))
            row.append(3 + (row[-1] - 3 + jump) % 125)
        rows.append(torch.tensor(row))
    return rows


def short(model, texts=None, **options):
    return fit_tuned_lens(model, texts or stories(), steps=40, tokens_per_step=256, progress=False, **options)


OTHERS = [pytest.param(family, marks=pytest.mark.slow) for family in ("gpt2", "neox", "gemma2", "bloom")]


@pytest.mark.parametrize("family", ["llama", *OTHERS])
def test_it_learns_and_is_exact_at_the_last_depth(family):
    model = bridge(family)
    ds = mcr.tuned_lens(model, stories(), steps=60, tokens_per_step=256, progress=False)
    own = mcr.logit_lens(model, stories()[32:], progress=False)
    assert float(ds.cross_entropy[-1]) == pytest.approx(float(own.cross_entropy[-1]), abs=1e-5)
    np.testing.assert_allclose(ds.logit_lens_cross_entropy, own.cross_entropy, atol=1e-5)
    np.testing.assert_allclose(ds.logit_lens_kl_to_final, own.kl_to_final, atol=1e-5)
    assert float(ds.kl_to_final[-1]) == 0 and float(ds.gain[-1]) == 0
    # Random weights predict nothing, so what counts is nearness to the final prediction.
    assert (ds.kl_to_final[:-1] < ds.logit_lens_kl_to_final[:-1]).all()
    np.testing.assert_allclose(ds.gain, ds.logit_lens_cross_entropy - ds.cross_entropy, atol=1e-5)


def test_nothing_of_the_model_changes():
    plain = hugging_face("llama")
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    flags = {name: p.requires_grad for name, p in plain.named_parameters()}
    short(plain)
    for name, p in plain.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None and p.requires_grad == flags[name]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


def test_one_seed_gives_one_lens_and_global_randomness_is_left_alone():
    model = bridge("llama")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one = short(model)
    assert torch.equal(torch.get_rng_state(), state)
    two, other = short(model), short(model, seed=1)
    assert torch.equal(one.weight, two.weight) and one.training == two.training
    assert not torch.equal(one.weight, other.weight)


def test_a_rate_that_ruins_everything_leaves_the_logit_lens():
    """Each depth keeps what was best on the text held out, and the lens begins as the logit lens."""
    lens = short(bridge("llama"), learning_rate=1e4)
    assert not lens.weight.any() and not lens.bias.any()
    assert lens.training["kl_held_out"] == lens.training["kl_held_out_logit_lens"]


def test_training_says_how_well_it_went():
    lens = short(bridge("llama"))
    about = lens.training
    assert about["tokens"] + about["tokens_held_out"] == 40 * 39 and about["steps"] == 40
    kept, first = np.array(about["kl_held_out"]), np.array(about["kl_held_out_logit_lens"])
    assert kept.shape == (4,) and (kept < first).all()
    # And it is what the lens reads on that text.
    ds = mcr.tuned_lens(bridge("llama"), stories()[36:], lens, progress=False)
    np.testing.assert_allclose(ds.kl_to_final[:-1], kept, rtol=1e-4)


def test_a_lens_is_saved_and_read(tmp_path):
    model, path = bridge("llama"), tmp_path / "lens.safetensors"
    ds = mcr.tuned_lens(model, stories(), steps=20, tokens_per_step=256, save=path, progress=False)
    lens = mcr.TunedLens.load(path)
    assert lens.training == json.loads(ds.attrs["training"])
    again = mcr.tuned_lens(model, stories()[32:], path, progress=False)
    for name in ("cross_entropy", "kl_to_final", "gain"):
        np.testing.assert_allclose(again[name], ds[name], atol=1e-6)
    xr.testing.assert_identical(mcr.load(mcr.save(ds, tmp_path / "ds.nc")), ds)
    x = torch.randn(5, 32)
    torch.testing.assert_close(lens.translate(x, 1), x + x @ lens.weight[1].T + lens.bias[1])
    assert torch.equal(lens.translate(x, 4), x)


def test_texts_to_learn_from_may_be_others():
    model = bridge("llama")
    ds = mcr.tuned_lens(
        model, stories(6, seed=9), train_texts=stories(), steps=20, tokens_per_step=256, progress=False
    )
    assert ds.sizes["window"] == 6 and int(ds.n_scored.sum()) == 6 * 39


def test_it_is_said_where_a_lens_leads_away_from_the_final_prediction():
    model, lens = bridge("llama"), short(bridge("llama"))
    away = mcr.TunedLens(lens.weight.clone(), lens.bias.clone())
    away.bias[1] += 50
    with pytest.warns(mcr.TunedLensWarning, match="farther from the final prediction .* at depth 1; train"):
        ds = mcr.tuned_lens(model, stories(4), away, progress=False)
    assert (ds.kl_to_final > ds.logit_lens_kl_to_final).values.nonzero()[0].tolist() == [1]


def test_an_unembedding_without_gradients_is_refused():
    class Rounded(torch.nn.Module):
        """Computes what a layer does, and hands on no gradient, as a quantised one."""

        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            with torch.no_grad():
                return self.layer(x)

    plain = hugging_face("llama")
    plain.lm_head = Rounded(plain.lm_head)
    assert mcr.logit_lens(plain, stories(2), progress=False).sizes["depth"] == 5
    with pytest.raises(CannotReadOutError, match="no gradient comes through the model's unembedding"):
        short(plain)


@pytest.mark.slow
def test_tokens_taken_in_parts_give_the_same_translators(monkeypatch):
    """What is held at once is a matter of memory, not of what is learned."""
    whole = short(bridge("llama"))
    monkeypatch.setattr(lenses, "LOGITS", 4 * 128 * 7)  # seven tokens of a vocabulary of 128
    torch.testing.assert_close(short(bridge("llama")).weight, whole.weight, atol=2e-3, rtol=2e-2)


def test_served_and_bridged_are_trained_alike():
    one, two = short(hugging_face("llama")), short(bridge("llama"))
    torch.testing.assert_close(one.weight, two.weight, atol=2e-3, rtol=2e-2)


def test_what_is_wrong_is_said(tmp_path):
    model, lens = bridge("llama"), short(bridge("llama"))
    for given, kind, message in (
        ({"steps": 0}, ValueError, "steps=0: pass a positive whole number"),
        ({"tokens_per_step": 1.5}, ValueError, r"tokens_per_step=1\.5: pass a positive whole number"),
        ({"learning_rate": -1.0}, ValueError, r"learning_rate=-1\.0: pass a positive number"),
        ({"learning_rate": float("inf")}, ValueError, "learning_rate=inf: pass a positive number"),
        ({"seed": -1}, ValueError, "seed=-1: pass a whole number from 0 on"),
        ({"lens": 3}, TypeError, "lens came as int; pass a TunedLens, or the file of one"),
        ({"train_share": 1.0}, ValueError, r"train_share=1\.0: pass a share between 0 and 1"),
        ({"save": tmp_path / "no" / "lens"}, FileNotFoundError, "no is not a folder; create it first"),
        ({"lens": tmp_path / "none"}, FileNotFoundError, "none is not a file"),
        ({"lens": lens, "save": "x"}, ValueError, "a lens was given, so nothing is trained: leave out"),
    ):
        with pytest.raises(kind, match=message):
            mcr.tuned_lens(model, stories(4), progress=False, **given)
    for given, message in (
        ({"held_out": 1.0}, r"held_out=1\.0: pass a share between 0 and 1"),
        ({"held_out": "x"}, "held_out='x': pass a share between 0 and 1"),
        ({"weight_decay": "x"}, "weight_decay='x': pass 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_tuned_lens(model, stories(4), progress=False, **given)
    with pytest.raises(mcr.TunedLensFileError, match="for 4 layers of width 32, and"):
        mcr.tuned_lens(bridge("llama", num_hidden_layers=2), stories(4), lens, progress=False)
    with pytest.raises(mcr.TunedLensFileError, match="cannot be read as safetensors"):
        (tmp_path / "text").write_text("no tensors in here")
        mcr.TunedLens.load(tmp_path / "text")
    with pytest.raises(mcr.TunedLensFileError, match="holds tensors, but no tuned lens of mcr_lens"):
        save_file({"weight": torch.zeros(1)}, tmp_path / "other")
        mcr.TunedLens.load(tmp_path / "other")
    with pytest.raises(ValueError, match=r"weight has shape \(1, 2, 3\) and bias \(1, 2\); they must be"):
        mcr.TunedLens(torch.zeros(1, 2, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="the translators hold NaN or infinity; train them anew"):
        mcr.TunedLens(torch.full((1, 2, 2), float("nan")), torch.zeros(1, 2))
    fits = {"weight": torch.zeros(1, 2, 2), "bias": torch.zeros(1, 2)}
    about = {"format": "mcr_lens tuned lens 1", "training": "{}"}
    for tensors, changed, message in (
        (fits, {"training": "{"}, r"is a damaged tuned lens \(Expecting property name"),
        (fits | {"bias": torch.zeros(2)}, {}, r"is a damaged tuned lens \(weight has shape"),
    ):
        save_file(tensors, tmp_path / "damaged", metadata=about | changed)
        with pytest.raises(mcr.TunedLensFileError, match=message):
            mcr.TunedLens.load(tmp_path / "damaged")
    with pytest.raises(ValueError, match="4 tokens are held out to choose translators by, and at least 10"):
        fit_tuned_lens(model, [torch.arange(5, 55)], progress=False)
    with pytest.raises(ValueError, match="tokens cannot be parted at 80%"):
        mcr.tuned_lens(model, [torch.tensor([5, 6])], progress=False)


@pytest.mark.slow
@pytest.mark.demo
def test_the_demo_model_is_read_better_at_every_depth():
    """On text that neither the model nor the lens was trained on."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[key] for key in sorted(topics)).split())[-30000:]
    model = mcr.load_model("demo", verbose=False)
    ds = mcr.tuned_lens(model, text, steps=100, progress=False)
    assert (ds.cross_entropy <= ds.logit_lens_cross_entropy).all() and (ds.gain_low[:-1] > 0).all()


@pytest.mark.slow
def test_a_real_model_is_read_better_at_every_depth():
    model = mcr.load_model(str(real("models/stories260K")), verbose=False)
    text = real("data/wikitext2/valid.txt").read_text()[:30000]
    ds = mcr.tuned_lens(model, text, steps=60, window=256, progress=False)
    assert (ds.cross_entropy <= ds.logit_lens_cross_entropy).all() and (ds.gain_low[:-1] > 0).all()
