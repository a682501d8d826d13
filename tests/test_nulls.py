"""Are the nulls what they say, and do they tell a planted phenomenon from nothing?"""

from importlib.resources import files

import numpy as np
import pytest
import torch
from handmade import result
from jaxtyping import Float
from models import bridge
from torch import Tensor

from mcr_lens import ResultSchemaError, load_model, measure, sink_rate
from mcr_lens.nulls import null_share, other_positions, random_weights
from mcr_lens.testing import planted_model, planted_prompts

pytestmark = pytest.mark.once

QUIET = {"progress": False}
NAMES = ["massive_activation_ratio", "sink_score", "mlp_bos_norm"]


def test_a_draw_is_a_measurement_at_that_position(any_model, prompts):
    """Every draw gives what `measure` gives for that prompt at that position; prompts keep their order."""
    null = other_positions(any_model, prompts, NAMES, count=2, **QUIET)
    assert null.n_tokens.values.tolist() == [12, 5, 17, 12, 9]
    for i in (1, 2):
        for draw, k in enumerate(null.drawn_position.values[i].tolist()):
            wanted = measure(any_model, prompts[i], NAMES, position=k, **QUIET).isel(prompt=0)
            for name in NAMES:
                np.testing.assert_allclose(null[name][i, draw], wanted[name], rtol=1e-4, atol=1e-5)


def test_positions_are_drawn_fairly(llama, prompts):
    """Never the measured one, none behind the middle, each before any comes twice, and by the seed."""
    prompts = prompts[:3]
    ten = other_positions(llama, prompts, ["bos_norm"], count=10, **QUIET).drawn_position
    for drawn, prompt in zip(ten.values, prompts, strict=True):
        allowed = set(range(1, len(prompt) // 2 + 1))
        assert set(drawn[: len(allowed)].tolist()) == allowed if len(allowed) <= 10 else set(drawn) < allowed
    again = other_positions(llama, prompts, ["bos_norm"], count=10, **QUIET).drawn_position
    other = other_positions(llama, prompts, ["bos_norm"], count=10, seed=1, **QUIET).drawn_position
    assert ten.equals(again) and not ten.equals(other)
    third = other_positions(llama, prompts, ["bos_norm"], count=6, position=2, **QUIET)
    assert not (third.drawn_position == 2).any() and (third.drawn_position == 0).any()
    assert third.attrs["position"] == 2
    pair = other_positions(llama, [[5, 6]], ["bos_norm"], count=2, **QUIET)
    assert pair.drawn_position.values.tolist() == [[1, 1]]


def test_one_forward_pass_per_prompt(prompts):
    """Whatever the number of draws is."""
    model = bridge("gpt2")
    passes = []
    model.original_model.register_forward_pre_hook(lambda *_: passes.append(1))
    other_positions(model, prompts, ["bos_norm", "sink_score"], count=6, **QUIET)
    assert len(passes) == len(prompts)


def test_only_what_looks_at_a_position(llama, prompts):
    """By default just these metrics, by name nothing else, and one's own."""
    null = other_positions(llama, prompts[:2], count=2, **QUIET)
    assert {"sink_score", "value_drain", "bos_alignment"} <= set(null.data_vars)
    assert not {"matrix_entropy", "strongest_token", "mixing_score"} & set(null.data_vars)
    with pytest.raises(ValueError, match="matrix_entropy is the same whichever token is taken for BOS"):
        other_positions(llama, prompts, ["sink_score", "matrix_entropy"], **QUIET)

    def first(resid: Float[Tensor, "batch pos d_model"], position: int = 0) -> Float[Tensor, "batch"]:
        return resid[:, position, 0]

    own = other_positions(llama, prompts[:2], [first], count=2, **QUIET)
    assert own["first"].dims == ("prompt", "draw", "depth")


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama3"])
def test_what_is_planted_stands_out_of_every_null(family):
    """BOS is above all of the null where it was planted, and ordinary where it was not."""
    planted = planted_model("massive_sinks", family)
    model, rows = load_model(planted.model, verbose=False), planted_prompts(3)
    names = ["massive_activation_ratio", "sink_score"]
    ds = measure(model, rows, names, **QUIET)
    massive = list(planted.truth.massive[planted.bos])
    nulls = [
        other_positions(model, rows, names, **QUIET),
        random_weights(model, rows, names, seeds=(0, 1), **QUIET),
        random_weights(model, rows, names, seeds=(0, 1), kind="shuffled", **QUIET),
    ]
    for null in nulls:
        assert null.massive_activation_ratio.max() < 20 and null.sink_score.max() < 0.3
        ratio = null_share(ds, null, "massive_activation_ratio").mean("prompt")
        score = null_share(ds, null, "sink_score").mean("prompt")
        assert (ratio.sel(depth=massive) == 0).all()
        for layer, head, _ in planted.truth.sinks:
            assert score.sel(layer=layer, head=head) == 0
    ordinary = null_share(ds, nulls[0], "massive_activation_ratio").mean("prompt").sel(depth=[1, 6])
    assert (ordinary > 0.1).all()
    assert sink_rate(nulls[1]).dims == ("seed", "prompt", "layer") and not sink_rate(nulls[1]).any()


def test_random_weights_are_measured_seed_by_seed(llama, prompts):
    """Alone or with others, a seed gives the same numbers; the axis is in front and says which."""
    both = random_weights(llama, iter(prompts), ["bos_norm"], seeds=(7, 2), **QUIET)
    alone = random_weights(llama, prompts, ["bos_norm"], seeds=2, **QUIET)
    assert both.bos_norm.dims == ("seed", "prompt", "depth") and both.seed.values.tolist() == [7, 2]
    np.testing.assert_array_equal(both.bos_norm.sel(seed=2), alone.bos_norm.sel(seed=2))
    assert (both.bos_norm.sel(seed=7) != both.bos_norm.sel(seed=2)).any()
    assert both.attrs["null"] == "initialised weights" and "initialised weights" in both.attrs["model"]
    assert both.bos_norm.attrs["source"]


def null_of(ds, values):
    """The same result once for each value, along `draw`."""
    return (
        ds.expand_dims(draw=len(values))
        .copy(deep=True)
        .assign(bos_norm=ds.bos_norm.expand_dims(draw=len(values)) * 0 + np.reshape(values, (-1, 1, 1)))
    )


def test_share_of_the_null_by_hand():
    """At or above counts, NaN stays NaN, and the size of the null is told."""
    ds = result({"bos_norm": [[1.0, 2.0, 3.0, np.nan], [0.0, 2.5, 9.0, 1.0]]})
    share = null_share(ds, null_of(ds.fillna(0), [1.0, 2.0, 2.0, 4.0]), "bos_norm")
    np.testing.assert_array_equal(share, [[1.0, 0.75, 0.25, np.nan], [1.0, 0.25, 0.0, 1.0]])
    assert share.dims == ("prompt", "depth") and share.attrs["null_size"] == 4 and share.attrs["units"] == "1"
    assert null_share(ds, null_of(ds.fillna(0), [1.0, np.nan]), "bos_norm").isnull().all()


def test_a_null_that_does_not_fit_is_refused():
    """Other prompts, no axis of its own, a variable that is not there."""
    ds = result({"bos_norm": 1.0})
    with pytest.raises(ValueError, match="the null was measured on other prompts"):
        null_share(ds, null_of(result({"bos_norm": 1.0}, seed=1), [1.0]), "bos_norm")
    with pytest.raises(ValueError, match="the null has 0 axes of its own for 'bos_norm', and one is needed"):
        null_share(ds, ds, "bos_norm")
    with pytest.raises(ResultSchemaError, match="the result has no sink_score"):
        null_share(ds, null_of(ds, [1.0]), "sink_score")


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (other_positions, {"count": 0}, "count=0: pass a number of draws, 1 or more"),
        (other_positions, {"position": -1}, "position=-1: pass the index of the token"),
        (other_positions, {"position": 9}, "prompt 1 has 5 tokens: there is no token at 9"),
        (other_positions, {"metrics": ["massive"]}, "unknown metric 'massive'"),
        (random_weights, {"seeds": ()}, r"seeds=\(\): pass one or more different seeds"),
        (random_weights, {"seeds": (1, 1)}, r"seeds=\(1, 1\): pass one or more different seeds"),
        (random_weights, {"seeds": (0, -1)}, "seed=-1: pass a whole number from 0"),
    ],
)
def test_nonsense_is_refused(llama, prompts, function, options, message):
    """In one sentence, before any run."""
    with pytest.raises((ValueError, KeyError), match=message):
        function(llama, prompts, **options, **QUIET)


def test_models_and_prompts_without_a_null_are_refused():
    """No other token, dropout, no model."""
    model = bridge("gpt2")
    with pytest.raises(ValueError, match=r"prompt 1 has 1 tokens: .*no other one to hold it against"):
        other_positions(model, [[5, 6], [7]], **QUIET)
    model.train()
    with pytest.raises(ValueError, match="the model is in training mode"):
        other_positions(model, [[5, 6]], **QUIET)
    with pytest.raises(TypeError, match="expected a TransformerLens model"):
        other_positions(torch.nn.Linear(2, 2), [[5, 6]], **QUIET)


@pytest.mark.demo
def test_the_demo_model():
    """Its BOS is massive and a sink; an ordinary token is neither, nor is BOS with random weights."""
    text = (files("mcr_lens") / "demo" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    text, model = [t for t in text if t][:4], load_model("demo", verbose=False)
    ds = measure(model, text, **QUIET)
    assert ds.massive_activation_ratio.max() > 20 and ds.sink_score.max() > 0.9
    tokens = other_positions(model, text, ["massive_activation_ratio", "sink_score"], **QUIET)
    weights = random_weights(model, text, seeds=(0, 1), **QUIET)
    for null in (tokens, weights):
        assert null.massive_activation_ratio.max() < 4 and null.sink_score.max() < 0.3
    assert tokens.text.values.tolist() == ds.text.values.tolist()
    assert tokens.position_token.dims == ("prompt", "draw") and "<bos>" not in tokens.position_token.values
    spelled = dict(zip(weights.token_id.values.tolist(), weights.token_text.values.tolist(), strict=True))
    assert set(np.unique(weights.strongest_token_id)) <= set(spelled)
