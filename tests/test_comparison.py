"""Is each condition of a comparison what `measure` would have given, paired prompt by prompt?"""

import json
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import xarray as xr
from jaxtyping import Float
from models import bridge, is_encoder
from reference.formulas import kl_divergence
from texts import FRESH
from torch import Tensor
from traces import hook_census

import mcr_lens
from mcr_lens import (
    IndirectEditWarning,
    ObservationWarning,
    compare,
    condition,
    condition_names,
    dose_response,
    load,
    mean_ablation,
    measure,
    observe,
    random_direction,
    resample_ablation,
    save,
    scale,
    tidy,
    zero_ablation,
    zero_bos_mlp,
)

LOSSES = ["next_token_loss", "perplexity", "kl_divergence"]
CUT = zero_bos_mlp(1)
CONDITIONS = {
    "clean": [],
    "cut": CUT,
    "several": [random_direction("mlp_out", layers=2, positions=[0, 3]), zero_ablation("attn_out", layers=1)],
    "by reference": [mean_ablation("z", layers=0, prompts=[[5, 6, 7]]),
                     resample_ablation("resid", layers=1, prompts=[[9, 8], [7, 6]], positions=1)],
}  # fmt: skip


@pytest.fixture(scope="module")
def demo():
    return mcr_lens.load_model("demo", verbose=False)


@pytest.fixture(scope="module")
def prompts() -> list[torch.Tensor]:
    """Rows of token ids of mixed length."""
    g = torch.Generator().manual_seed(2)
    return [torch.randint(3, 128, (n,), generator=g) for n in (12, 5, 17, 12, 9)]


@pytest.fixture(scope="module")
def compared(llama, prompts):
    return compare(llama, prompts, CONDITIONS, "all", progress=False)


def bare(ds: xr.Dataset) -> xr.Dataset:
    """Without the time, and without the name that `condition` leaves."""
    return ds.assign_attrs(created="", condition="")


def logits_of(model, prompt, *edits) -> np.ndarray:
    """Of one prompt alone, by TransformerLens."""
    hooks = [hook for edit in edits for hook in edit.fwd_hooks(model)]
    with torch.no_grad():
        return model.run_with_hooks(prompt[None], fwd_hooks=hooks)[0].double().numpy()


def as_edits(given) -> list:
    return list(given) if isinstance(given, list) else [given]


def test_each_condition_is_what_measure_gives(llama, prompts, compared):
    """Bitwise, every variable, coordinate and attribute; also the clean one."""
    assert condition_names(compared) == list(CONDITIONS)
    for name, given in CONDITIONS.items():
        wanted = measure(llama, prompts, "all", interventions=as_edits(given), progress=False)
        xr.testing.assert_identical(bare(condition(compared, name)), bare(wanted))


def test_in_every_family_too(any_model, prompts):
    """Two metrics, and the same bits."""
    some = {name: CONDITIONS[name] for name in ("several", "clean")}
    names = ["top_norm", "top_sink_score", *([] if is_encoder(any_model) else LOSSES[:2]), "kl_divergence"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IndirectEditWarning)
        with pytest.warns(ObservationWarning) if is_encoder(any_model) else nullcontext():
            ds = compare(any_model, prompts, some, names[:2], progress=False)
        for name, given in some.items():
            wanted = measure(any_model, prompts, names, interventions=as_edits(given), progress=False)
            xr.testing.assert_identical(bare(condition(ds, name)), bare(wanted))


def test_conditions_are_paired_by_prompt(llama, prompts, compared):
    """Prompts in the order given, one hash for all conditions, and every variable has the axis first."""
    plain = measure(llama, prompts, ["bos_norm"], progress=False)
    assert compared.prompt_hash.dims == ("prompt",)
    assert compared.prompt_hash.values.tolist() == plain.prompt_hash.values.tolist()
    assert compared.n_tokens.values.tolist() == [len(p) for p in prompts]
    assert all(array.dims[:2] == ("condition", "prompt") for array in compared.values())


def test_divergence_is_that_of_the_logits(llama, prompts, compared):
    """As float64 from TransformerLens' own logits, prompt by prompt; nothing for the clean model."""
    assert (compared.kl_divergence.sel(condition="clean") == 0).all()
    assert (compared.kl_divergence >= 0).all()
    for name, given in CONDITIONS.items():
        if name in ("clean", "by reference"):  # what is drawn goes by the prompt's number
            continue
        wanted = [kl_divergence(logits_of(llama, p), logits_of(llama, p, *as_edits(given))) for p in prompts]
        np.testing.assert_allclose(compared.kl_divergence.sel(condition=name), wanted, rtol=1e-4, atol=1e-8)
        assert min(wanted) > 1e-6


def test_divergence_of_next_to_nothing_is_not_negative(llama, prompts):
    """Logits that differ in their last digits: rounding does not make it less than zero."""
    factors = 1 + np.array([1e-6, -1e-6, 3e-6, 1e-5, -1e-5])
    doses = {f"{i}": scale("mlp_out", float(f), layers=[0, 1], positions=None) for i, f in enumerate(factors)}
    found = compare(llama, prompts, doses, ["bos_norm"], progress=False).kl_divergence
    assert (found >= 0).all() and (found < 1e-6).all()


def test_loss_is_the_models_own(llama, prompts, compared):
    """TransformerLens' loss of each prompt alone, edited or not; perplexity is its exponential."""
    for name in ("clean", "cut"):
        hooks = [] if name == "clean" else CUT.fwd_hooks(llama)
        with torch.no_grad(), llama.hooks(fwd_hooks=hooks):
            own = [float(llama(p[None], return_type="loss")) for p in prompts]
        np.testing.assert_allclose(compared.next_token_loss.sel(condition=name), own, rtol=1e-5)
    np.testing.assert_allclose(compared.perplexity, np.exp(compared.next_token_loss), rtol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize("size", [1, 2])
def test_batches_make_no_difference(llama, prompts, compared, size):
    """Also for edits that draw at random: they draw by prompt."""
    small = compare(llama, prompts, CONDITIONS, batch_size=size, progress=False)
    assert {"matrix_entropy", "sink_score", *LOSSES} < set(small.data_vars)
    for name in small.data_vars:
        np.testing.assert_allclose(small[name], compared[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_without_a_clean_condition(llama, prompts, compared):
    """The divergence is still from the unedited model, and so is nothing else."""
    alone = compare(llama, prompts, {"cut": CUT}, "all", progress=False)
    assert condition_names(alone) == ["cut"]
    xr.testing.assert_identical(bare(condition(alone, "cut")), bare(condition(compared, "cut")))


@pytest.mark.once
def test_order_of_conditions_is_kept_and_makes_no_difference(llama, prompts, compared):
    """The clean one may stand last."""
    backwards = compare(llama, prompts, dict(reversed(CONDITIONS.items())), "all", progress=False)
    assert condition_names(backwards) == list(reversed(CONDITIONS))
    for name in CONDITIONS:
        xr.testing.assert_identical(bare(condition(backwards, name)), bare(condition(compared, name)))


@pytest.mark.parametrize(
    ("conditions", "passes"), [({"a": [], "b": CUT}, 2), ({"a": CUT}, 2), ({"a": []}, 1)]
)
def test_no_forward_pass_is_made_twice(llama, tokens, conditions, passes):
    """One for each condition, and the clean one if no condition is that."""
    compare(llama, tokens, conditions, ["bos_norm"], progress=False)  # hook points are tried out once
    seen = []
    handle = llama.original_model.register_forward_hook(lambda *_: seen.append(1))
    try:
        compare(llama, tokens, conditions, ["bos_norm"], batch_size=3, progress=False)
    finally:
        handle.remove()
    assert len(seen) == passes


def largest(resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
    """A user's own metric."""
    return resid.flatten(1).abs().max(-1).values


def test_metrics_by_name_function_and_map(llama, tokens):
    """As `measure` takes them; losses and divergence always come too, once."""
    both = {"clean": [], "cut": CUT}
    ds = compare(llama, tokens, both, ["bos_norm", "kl_divergence"], progress=False)
    assert set(ds.data_vars) == {"bos_norm", *LOSSES}
    for metrics, name in (([largest], "largest"), ({"mine": largest}, "mine")):
        ds = compare(llama, tokens, both, metrics, progress=False)
        assert set(ds.data_vars) == {name, *LOSSES}
        assert ds[name].dims == ("condition", "prompt", "depth")
        assert not np.array_equal(ds[name].sel(condition="clean"), ds[name].sel(condition="cut"))
    with pytest.raises(KeyError, match="bos_nrom"):
        compare(llama, tokens, both, ["bos_nrom"], progress=False)


def test_survives_the_disk(compared, tmp_path):
    """Saved and loaded: identical, and still apart by condition."""
    back = load(save(compared, tmp_path / "r.nc"))
    xr.testing.assert_identical(back, compared)
    xr.testing.assert_identical(condition(back, "cut"), condition(compared, "cut"))


def test_tidy(compared):
    """A column with the names of the conditions, and every number at its labels."""
    frame = tidy(compared, "sink_score", "kl_divergence")
    columns = ["variable", "condition", "prompt", "depth", "layer", "head", "value", "units"]
    assert [c for c in columns if c != "depth"] == list(frame.columns)
    assert frame.condition.unique().tolist() == list(CONDITIONS)
    assert all(str(frame[axis].dtype) == "Int64" for axis in ("prompt", "layer", "head"))
    at = {"condition": "cut", "prompt": 3, "layer": 2, "head": 1}
    line = frame[frame.variable == "sink_score"].set_index(list(at)).loc[tuple(at.values())]
    assert line.value.item() == compared.sink_score.sel(at).item()
    assert len(tidy(compared)) == sum(array.size for array in compared.values())


def test_an_encoder_has_no_loss(tokens):
    """Said by name; the divergence is there. Also when the losses are asked for."""
    model = bridge("bert")
    for metrics in (["bos_norm"], ["bos_norm", "loss"]):
        with (
            pytest.warns(
                ObservationWarning, match="is an encoder: next-token loss and perplexity are left out"
            ),
            pytest.warns(IndirectEditWarning),
        ):
            ds = compare(model, tokens, {"clean": [], "cut": CUT}, metrics, progress=False)
        assert set(ds.data_vars) == {"bos_norm", "kl_divergence"}
        assert (ds.kl_divergence.sel(condition="cut") > 0).all()


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, r"conditions: got an empty map; pass a map such as \{\"clean\""),
        ([CUT], "conditions: got list; pass a map such as"),
        (CUT, "conditions: got Intervention; pass a map"),
        ({"": []}, "conditions: the name '' is not a text"),
        ({1: []}, "conditions: the name 1 is not a text"),
        ({"cut": "mlp_out"}, "condition 'cut' holds a str, not an intervention"),
        ({"cut": [CUT, 3]}, "condition 'cut' holds a int, not an intervention"),
        ({"cut": 3}, "condition 'cut' holds a int, not an intervention"),
        ({"cut": None}, "condition 'cut' holds a NoneType, not an intervention"),
        ({"clean": [], "cut": zero_bos_mlp(9)}, r"layer 9 does not exist: the model has layers 0\.\.3"),
    ],
)
def test_refusals(llama, tokens, conditions, message):
    """In one sentence, before anything runs."""
    with pytest.raises(ValueError, match=message) as seen:
        compare(llama, tokens, conditions, progress=False)
    assert "\n" not in str(seen.value)


class Stop(Exception):
    """Not one of ours."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_no_trace(llama, tokens, error):
    """Hooks are gone after a comparison, after an error on the way, and after Ctrl-C in a hook."""
    before, clean = hook_census(llama), llama(tokens)
    compare(llama, tokens, CONDITIONS, ["bos_norm"], progress=False)
    assert hook_census(llama) == before and torch.equal(llama(tokens), clean)
    calls = []

    def failing(resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
        calls.append(1)
        if len(calls) == 8:  # in the second condition
            raise error
        return resid[:, 0, 0]

    with pytest.raises(error):
        compare(llama, tokens, CONDITIONS, [failing], progress=False)
    assert len(calls) == 8
    assert hook_census(llama) == before and torch.equal(llama(tokens), clean)
    with pytest.raises(error), mcr_lens.intervene(llama, CUT):
        raise error
    assert hook_census(llama) == before and torch.equal(llama(tokens), clean)


@pytest.mark.parametrize("name", ["kl_divergence", "perplexity"])
def test_what_reads_logits_is_not_for_observe(llama, tokens, name):
    """The message names the metric and what to do."""
    with pytest.raises(ValueError, match=f"'{name}' reads logits, which only `measure` hands over; leave it"):
        with observe(llama, [name]) as watch, torch.no_grad():
            llama(tokens)
        watch.result()


@pytest.mark.once
def test_doses_end_in_nothing_and_in_the_zero_ablation(llama, prompts):
    """λ = 1 is bitwise the clean model, λ = 0 bitwise the zero ablation; λ stands beside the condition."""
    where = {"layers": [0, 1], "positions": [0, 2]}
    ds = dose_response(llama, prompts, "attn_out", factors=[0, 2.5, 1], progress=False, **where)
    assert condition_names(ds) == ["λ = 0", "λ = 2.5", "λ = 1"]
    assert ds.factor.dims == ("condition",) and ds.factor.values.tolist() == [0, 2.5, 1]
    assert ds.factor.attrs["units"] == "1"
    ends = {"λ = 0": zero_ablation("attn_out", **where), "λ = 1": []}
    wanted = compare(llama, prompts, ends, progress=False)
    for name in ends:
        assert condition(ds, name).drop_attrs().identical(condition(wanted, name).drop_attrs())
    made = json.loads(ds.attrs["interventions"])["λ = 2.5"]
    assert made == [
        {"kind": "scale", "site": "attn_out", "layers": [0, 1], "positions": [0, 2], "factor": 2.5}
    ]
    assert "factor" not in condition(ds, "λ = 0").coords


@pytest.mark.once
def test_more_of_the_write_is_more_of_the_massive_activation(demo):
    """On a trained model: with every dose the ratio grows and the prediction gets nearer."""
    ds = dose_response(demo, FRESH[:4], layers=0, metrics=["norms"], progress=False)
    by_dose = ds.sortby("factor").massive_activation_ratio.sel(depth=1).mean("prompt").values
    assert (np.diff(by_dose) > 0).all() and by_dose[-1] > 20 * by_dose[0]
    kl = ds.sortby("factor").kl_divergence.mean("prompt").values
    assert kl[-1] == 0 and kl[0] > 1 and kl[0] > kl[2] > kl[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factors": []}, r"factors=\[\]: pass one or more different numbers"),
        ({"factors": [1, 1.0]}, "pass one or more different numbers"),
        ({"factors": 0.5}, "factors=0.5: pass one or more different numbers"),
        ({"factors": "10"}, "factors='10': pass one or more different numbers"),
        ({"factors": [0.5, "a"]}, "factors='a': pass a finite number"),
        ({"factors": [float("nan")]}, "factors=nan: pass a finite number"),
        ({"factors": [True]}, "factors=True: pass a finite number"),
        ({"factors": [0.5, 0.5000000001]}, "two of them have the same first six digits"),
        ({"layers": 9}, "layer 9 does not exist"),
        ({"site": "mlp"}, "site 'mlp' cannot be edited"),
    ],
)
def test_doses_that_make_no_sense(llama, tokens, options, message):
    """Numbers, each once."""
    with pytest.raises(ValueError, match=message):
        dose_response(llama, tokens, **{"layers": 0, "progress": False, **options})
