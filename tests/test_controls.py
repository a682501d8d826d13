"""Are the controls of an ablation as large as it and elsewhere, and does a moved write move its effects?"""

import warnings

import numpy as np
import pytest
import torch
from handmade import result
from models import bridge
from texts import FRESH

import mcr_lens
from mcr_lens import (
    ResultSchemaError,
    ShortPromptWarning,
    compare,
    condition,
    induction,
    inject,
    matched_controls,
    measure,
    normalized_entropy,
    record_activations,
    scale,
    sink_rate,
    zero_ablation,
    zero_bos_mlp,
)
from mcr_lens.findings import find_sinks

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def demo():
    return mcr_lens.load_model("demo", verbose=False)


def deep(n_tokens=(20, 12), n_layers=8):
    """A result that says how long the prompts and how deep the model."""
    return result({"next_token_loss": 1.0}, n_tokens=n_tokens).assign_attrs(n_layers=n_layers)


CUTS = [
    zero_bos_mlp(3),
    zero_bos_mlp([0, 7]),
    zero_ablation("attn_out", layers=2, positions=[0, 4, 5]),
    zero_ablation("mlp_out", layers=[1, 2, 3], positions=6),
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_controls_are_matched(cut):
    """As many positions and layers as the cut, and never the cut itself or a part of it."""
    for seed in range(20):
        controls = matched_controls(cut, deep(), seed=seed)
        half = "attention instead" if cut.site == "mlp_out" else "MLP instead"
        assert list(controls) == ["other token", "other layer", half, "random direction"]
        (token,), (layer,), (other,), (turned,) = controls.values()
        assert token.site == layer.site == turned.site == cut.site != other.site
        assert other.site in ("mlp_out", "attn_out")
        for control in (token, layer, other):
            assert control.edit == cut.edit and len(control.positions) == len(cut.positions)
            assert len(control.layers) == len(cut.layers)
        assert token.layers == cut.layers and not set(token.positions) & {0, *cut.positions}
        assert max(token.positions) < 12  # every prompt has them
        assert layer.positions == cut.positions and not set(layer.layers) & set(cut.layers)
        assert max(layer.layers) < 8
        assert (other.layers, other.positions) == (cut.layers, cut.positions)
        assert (turned.layers, turned.positions) == (cut.layers, cut.positions)
        assert turned.edit.describe() == {"seed": seed} and turned.edit.kind == "random_direction"


def test_draws_go_by_the_seed():
    """The same again, and others under another seed."""
    cut = zero_bos_mlp(3)
    assert matched_controls(cut, deep(), seed=1) == matched_controls(cut, deep(), seed=1)
    drawn = [matched_controls(cut, deep(), seed=s) for s in range(40)]
    assert {d["other token"][0].positions for d in drawn} == {(p,) for p in range(1, 12)}
    assert {d["other layer"][0].layers for d in drawn} == {(n,) for n in range(8) if n != 3}


@pytest.mark.parametrize(
    ("cut", "ds", "missing"),
    [
        (zero_bos_mlp(0), deep(n_layers=1), {"other layer"}),
        (zero_bos_mlp([0, 1]), deep(n_layers=3), {"other layer"}),
        (zero_ablation("mlp_out", layers=0, positions=[0, 1]), deep(n_tokens=(2, 9)), {"other token"}),
        (zero_bos_mlp(0), deep(n_tokens=(1, 9)), {"other token"}),
        (zero_ablation("mlp_out", layers=0, positions=1), deep((2, 9), 1), {"other token", "other layer"}),
        (zero_bos_mlp(0), deep(n_tokens=(2, 9)), set()),
    ],
)
def test_no_room_no_control(cut, ds, missing):
    """One layer, or prompts of two tokens: left out, not replaced by something else."""
    every = {"other token", "other layer", "attention instead", "random direction"}
    assert set(matched_controls(cut, ds)) == every - missing


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (scale("mlp_out", 0.5, layers=1), "controls are made for a zero ablation of mlp_out or attn_out"),
        (zero_ablation("resid", layers=1), "at numbered positions, not for .*'site': 'resid'"),
        (zero_ablation("z", layers=1), "at numbered positions, not for .*'site': 'z'"),
        (zero_ablation("mlp_out", layers=1, positions=None), "at numbered positions, not for"),
        (zero_ablation("mlp_out", layers=1, positions=slice(2, None)), "not for .*'positions': '2:'"),
        ([zero_bos_mlp(1)], "cut is a list; pass one intervention, such as"),
    ],
)
def test_other_interventions_have_no_controls(cut, message):
    with pytest.raises(ValueError, match=message):
        matched_controls(cut, deep())


def test_no_prompts_no_controls():
    with pytest.raises(ResultSchemaError, match="the result holds no prompts; measure some first"):
        matched_controls(zero_bos_mlp(1), deep().isel(prompt=[]))


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
def test_a_random_direction_keeps_the_norm_of_the_write(llama, prompts, site):
    """Per prompt and layer, so that only the direction is lost; the other tokens keep both."""
    cut = zero_ablation(site, layers=[1, 2], positions=[0, 3])
    clean = measure(llama, prompts, ["bos_norm"], progress=False)
    (turned,) = matched_controls(cut, clean)["random direction"]
    places = {"layers": [1], "positions": None}
    seen = {}
    for name, edits in {"clean": [], "turned": [turned]}.items():
        with mcr_lens.intervene(llama, *edits):
            seen[name] = record_activations(llama, prompts, site, **places)[1]
    at = torch.cat([torch.arange(len(p)) for p in prompts])
    chosen = (at == 0) | (at == 3)
    torch.testing.assert_close(seen["turned"].norm(dim=-1), seen["clean"].norm(dim=-1), rtol=1e-5, atol=0)
    cosines = torch.cosine_similarity(seen["turned"], seen["clean"])
    assert (cosines[chosen] < 0.9).all() and (cosines[~chosen] > 0.999).all()
    metric = {"mlp_out": "mlp_bos_norm", "attn_out": "attn_bos_norm"}[site]
    ds = compare(llama, prompts, {"clean": [], "turned": turned}, [metric], progress=False)[metric].sel(
        layer=1
    )
    np.testing.assert_allclose(ds.sel(condition="turned"), ds.sel(condition="clean"), rtol=1e-5)


def read(ds, name: str, position: int) -> tuple[float, float, float]:
    """Largest mean ratio, lowest mean normalised entropy, largest mean sink rate of a condition."""
    one = condition(ds, name)
    assert one.attrs["position"] == position
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortPromptWarning)
        rates = sink_rate(one).mean("prompt")
    ratio = one.massive_activation_ratio.mean("prompt").max()
    return float(ratio), float(normalized_entropy(one).mean("prompt").min()), float(rates.max())


def test_controls_of_the_trained_model_do_nothing(demo):
    """What a token, a layer or the attention more or less does, against the cut."""
    prompts, cut = FRESH[:6], zero_bos_mlp(0)
    controls = matched_controls(cut, measure(demo, prompts, ["norms"], progress=False))
    ds = compare(demo, prompts, {"clean": [], "cut": cut, **controls}, progress=False)
    kl = ds.kl_divergence.mean("prompt").to_series()
    assert kl["clean"] == 0 and kl["cut"] > 1
    assert (kl[["other token", "other layer", "attention instead"]] < kl["cut"] / 20).all()
    clean, without = read(ds, "clean", 0), read(ds, "cut", 0)
    assert without[0] < clean[0] / 10
    for name in ("other token", "other layer", "attention instead"):
        assert read(ds, name, 0)[0] > clean[0] / 2 and read(ds, name, 0)[2] > clean[2] / 2


def test_a_moved_write_takes_valley_and_sinks_with_it(demo):
    """At position 5, which is nothing in the clean model; cut at BOS, there is no other massive row."""
    prompts = FRESH[:6]
    ds = compare(demo, prompts, induction(demo, prompts, layer=0, positions=5), position=5, progress=False)
    clean, cut, moved, added = (read(ds, name, 5) for name in ("clean", "cut", "moved", "added"))
    assert clean[0] < 3 and cut[0] < 3 and min(moved[0], added[0]) > 20
    assert cut[1] > 0.15 and max(moved[1], added[1]) < 0.12  # the valley is gone, and comes with the write
    assert clean[2] == cut[2] == 0 and min(moved[2], added[2]) > 0.3
    loss = (
        condition(ds, "clean").next_token_loss.mean(),
        *(condition(ds, n).next_token_loss.mean() for n in ("added", "moved", "cut")),
    )
    assert loss[0] < loss[1] < loss[2] < loss[3]


def test_two_anchors_at_once(demo):
    """Both draw heads in "moved"; beside BOS, three rows are massive in "added"."""
    prompts, places = FRESH[:4], {5, 9}
    ds = compare(demo, prompts, induction(demo, prompts, layer=0, positions=[9, 5]), progress=False)
    for name, wanted, without in (
        ("clean", {0}, places),
        ("moved", places, {0}),
        ("added", {0, *places}, set()),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortPromptWarning)
            heads = find_sinks(condition(ds, name), threshold=0.15)
        rows = mcr_lens.findings.find_massive(condition(ds, name))
        massive = rows.groupby("position").prompt.nunique()
        assert wanted <= set(massive.index[massive == len(prompts)]) and not without & set(massive.index)
        assert wanted <= set(heads.position)


def test_what_induction_writes(llama, prompts):
    """The mean write at the source, times a factor, and cut where it came from."""
    made = induction(llama, prompts, layer=2, positions=[3, 1], source=2, factor=-2.0)
    write = record_activations(llama, prompts, "mlp_out", layers=2, positions=2)[2].double().mean(0)
    put = inject("mlp_out", layers=2, positions=[1, 3], vector=-2 * write)
    cut = zero_bos_mlp(2, position=2)
    assert made == {"clean": [], "cut": [cut], "moved": [cut, put], "added": [put]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": 0}, r"positions=\(0,\): 0 is the source itself; choose other tokens"),
        ({"positions": [1, 2], "source": 2}, "2 is the source itself"),
        ({"positions": []}, r"positions=\[\]: pass one or more numbers"),
        ({"layer": 4}, r"layer 4 does not exist: the model has layers 0\.\.3"),
        ({"layer": [0, 1]}, r"layer=\[0, 1\]: pass one number counted from 0"),
        ({"layer": True}, "layer=True: pass one number counted from 0"),
        ({"source": -1}, "source=-1: pass one number counted from 0"),
        ({"positions": [1, 5]}, "there is no position 5 in the shortest prompt, which has 5 tokens; choose"),
        ({"source": 8}, "there is no position 8 in the shortest prompt"),
        ({"factor": float("nan")}, "factor=nan: pass a finite number"),
    ],
)
def test_induction_refuses(llama, prompts, options, message):
    """Before anything is measured: an injection that reaches no token would read as "no effect"."""
    with pytest.raises(ValueError, match=message):
        induction(llama, prompts, **{"layer": 1, "positions": 3, **options})


def test_a_model_of_one_layer():
    """All of it works where there is nothing else."""
    model = bridge("llama", num_hidden_layers=1)
    rows = [[5, 6], [8, 9, 10]]
    ds = measure(model, rows, ["bos_norm"], progress=False)
    controls = matched_controls(zero_bos_mlp(0), ds)
    assert list(controls) == ["other token", "attention instead", "random direction"]
    found = compare(model, rows, {"cut": zero_bos_mlp(0), **controls}, ["bos_norm"], progress=False)
    assert found.sizes["condition"] == 4 and bool((found.kl_divergence > 0).all())
