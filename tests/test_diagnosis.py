"""What does a diagnosis say of the demo model, and what of prompts and models that leave no room for one?"""

import json
import re
import warnings
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from models import GENERATION, bridge, hooked_transformer

from mcr_lens import condition, load_model
from mcr_lens.diagnosis import Diagnosis, diagnose, to_json_text
from mcr_lens.evidence import CONTROLS, Evidence
from mcr_lens.judging import JUDGES, judge
from mcr_lens.liveness import IndirectEditWarning
from mcr_lens.measurement import PromptWarning
from mcr_lens.summaries import ShortPromptWarning
from mcr_lens.testing import planted_model, planted_prompts

pytestmark = pytest.mark.once

NAMES = [
    "massive_activation", "one_row", "written_by_mlp", "valley", "valley_from_bos",
    "valley_from_massive_rows", "valley_follows", "sinks", "sinks_from_massive", "sinks_follow",
    "sinks_are_no_ops", "three_phases", "ablation_costs",
]  # fmt: skip


def run(model, prompts, **options) -> Diagnosis:
    return diagnose(model, prompts, progress=False, **options)


def verdicts(found: Diagnosis) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in found.claims}


@pytest.fixture(scope="module")
def planted():
    return load_model(planted_model("massive_sinks", "llama3").model, verbose=False)


@pytest.fixture(scope="module")
def found(planted):
    return run(planted, planted_prompts(8))


@pytest.fixture(scope="module")
def demo():
    prompts = files("mcr_lens").joinpath("demo/prompts.txt").read_text("utf-8").splitlines()
    return run(load_model("demo", verbose=False), prompts)


def test_every_claim_holds_in_the_demo(demo):
    assert verdicts(demo) == dict.fromkeys(NAMES, "holds")
    ranges = {
        "massive_activation": (47, 50), "one_row": (1, 1), "written_by_mlp": (0.97, 1.01),
        "valley": (0.6, 0.8), "valley_from_bos": (0.55, 0.7), "valley_from_massive_rows": (0.55, 0.7),
        "valley_follows": (0.95, 1.05), "sinks": (0.99, 1), "sinks_from_massive": (0.55, 0.75),
        "sinks_follow": (0.85, 1.05), "sinks_are_no_ops": (0, 0.08), "three_phases": (0.2, 0.6),
        "ablation_costs": (10, 30),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        effect = demo[name].effect
        assert low <= effect.low <= effect.high <= high, str(demo[name])
        assert effect.low <= effect.value <= effect.high and effect.n == 16 and effect.level == 0.95


def test_controls_of_the_demo_do_nothing(demo):
    e = Evidence(demo.findings, **demo.cut_offs, short="")
    for effect in (e.regained_under, e.lost_under):
        controls = e.controls(effect)
        assert set(controls) == set(CONTROLS)
        assert all(abs(c.value) < 0.15 and c.high < 0.15 for c in controls.values())
    clean = condition(demo.findings.experiments, "clean")
    for name in CONTROLS:
        rise = condition(demo.findings.experiments, name).next_token_loss - clean.next_token_loss
        assert np.exp(float(rise.mean())) < 1.05


def test_the_demo_is_told_in_words(demo):
    assert demo.summary.startswith(
        "This model shows a massive activation on BOS, a compression valley and sinks on BOS. The massive "
        "activation makes both: one mechanism, as the paper says. But 36 % of the sinks survive without it."
    )
    assert "those of block 1 survive" in demo["sinks_from_massive"].evidence
    assert "controls: other token" in demo["valley_from_bos"].evidence
    assert str(demo).splitlines()[0] == demo.summary and len(str(demo).splitlines()) == 1 + 2 * len(NAMES)


@pytest.mark.slow
def test_claims_come_in_the_order_of_the_argument(found):
    assert [claim.name for claim in found.claims] == NAMES and len(JUDGES) == len(NAMES)
    assert found["sinks"].name == "sinks"
    with pytest.raises(KeyError, match="no claim 'sink'; there are massive_activation, one_row"):
        found["sink"]


def test_json_of_a_diagnosis(found):
    text = to_json_text(found)
    assert "NaN" not in text and "Infinity" not in text
    read = json.loads(text)
    assert [c["claim"] for c in read["claims"]] == NAMES
    for claim in read["claims"]:
        assert list(claim) == ["claim", "statement", "verdict", "evidence", "effect", "measure", "ci", "n"]
        assert claim["verdict"] in ("holds", "fails", "untestable")
        assert (claim["ci"] is None) or claim["ci"][0] <= claim["effect"] <= claim["ci"][1]
    assert read["summary"] == found.summary and read["n_prompts"] == 8
    assert read["cut_offs"] == {"ratio": 10.0, "threshold": 0.3, "valley": 0.2}


def test_the_same_inputs_give_the_same_diagnosis(planted, found):
    again = run(planted, planted_prompts(8))
    assert again == found and again.summary == found.summary
    for before, after in zip(found.claims, again.claims, strict=True):
        assert before.to_json() == after.to_json()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["batch size", "order", "generator", "seed"])
def test_what_must_not_matter_does_not(planted, found, change):
    prompts, options = planted_prompts(8), {}
    if change == "batch size":
        options["batch_size"] = 3
    if change == "order":
        prompts = prompts[::-1]
    if change == "generator":
        prompts = iter(prompts)
    if change == "seed":
        options["seed"] = 5
    other = run(planted, prompts, **options)
    assert verdicts(other) == verdicts(found) and other.summary == found.summary
    if change != "seed":
        for a, b in zip(found.claims, other.claims, strict=True):
            numbers = [(c.effect.value, c.effect.low, c.effect.high) for c in (a, b) if c.effect]
            assert len(numbers) in (0, 2) and np.allclose(*(numbers or ([0], [0])), atol=2e-3)


@pytest.mark.slow
def test_other_cut_offs_need_no_model(found):
    strict = found.rejudge(ratio=200.0)
    assert strict["massive_activation"].verdict == "fails"
    assert strict["sinks_from_massive"].verdict == "fails"
    assert strict["sinks_from_massive"].evidence.endswith("(norm ratio 99.0, cut-off 200)")
    assert strict["valley"] == found["valley"] and strict.cut_offs["ratio"] == 200.0
    assert found.rejudge(valley=0.95)["valley"].verdict == "fails"
    assert found.rejudge(valley=0.95)["valley_from_bos"].verdict == "untestable"
    assert found.rejudge(valley=0.95)["three_phases"].verdict == "fails"
    assert found.rejudge(threshold=0.99)["sinks"].verdict == "fails"
    assert found.rejudge() == found and strict.rejudge() == found
    assert "no compression valley" not in found.summary and "no compression valley" in (
        found.rejudge(valley=0.95).summary
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio=1.0: a massive row is longer than the others; pass a number above 1"),
        ({"ratio": float("nan")}, "ratio=nan: a massive row"),
        ({"threshold": 0.0}, "threshold=0.0: mean attention lies between 0 and 1"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"valley": 1.0}, "valley=1.0: .*normalised entropy lies between 0 and 1"),
        ({"valley": float("nan")}, "valley=nan"),
    ],
)
def test_cut_offs_are_refused_before_anything_runs(found, options, message):
    with pytest.raises(ValueError, match=message):
        diagnose(None, ["never read"], **options)
    with pytest.raises(ValueError, match=message):
        found.rejudge(**options)


def all_undecided(found: Diagnosis) -> None:
    assert set(verdicts(found).values()) == {"untestable"}
    assert all(claim.evidence for claim in found.claims)
    assert found.summary == (
        "Nothing is shown. These prompts do not decide on massive activation on the first token, "
        "compression valley and sinks on the first token."
    )
    json.loads(to_json_text(found))


def test_one_prompt_decides_nothing(planted):
    one = run(planted, planted_prompts(1))
    all_undecided(one)
    assert one["massive_activation"].evidence.endswith("one prompt gives no interval")
    assert one["three_phases"].evidence == "one prompt gives no interval"
    assert one["valley"].to_json()["ci"] is None and one["valley"].to_json()["n"] == 1


def test_a_prompt_counts_once(planted, found):
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        all_undecided(run(planted, planted_prompts(1) * 6))
        twice = run(planted, planted_prompts(8) * 2)
    assert twice == found and twice.to_json()["n_prompts"] == 8
    assert not any(issubclass(w.category, PromptWarning) for w in raised)


def test_two_prompts_are_enough_for_what_is_plain(planted, found):
    two = run(planted, planted_prompts(2))
    assert two["massive_activation"].verdict == two["sinks_from_massive"].verdict == "holds"
    widths = [d["massive_activation"].effect for d in (two, found)]
    assert widths[0].high - widths[0].low > widths[1].high - widths[1].low


def test_prompts_of_one_token_decide_nothing(planted):
    rows = [torch.tensor([i]) for i in (0, 5, 6, 7)]
    with pytest.warns(PromptWarning, match="4 of 4 prompts have a single token") as raised:
        found = run(planted, rows)
    assert len(raised) == 1
    all_undecided(found)
    assert "a single token" in found["valley"].evidence
    with pytest.warns(PromptWarning, match="1 of 6 prompts have a single token") as raised:
        mixed = run(planted, [*planted_prompts(5), torch.tensor([0])])
    assert len(raised) == 1 and mixed["massive_activation"].effect.n == 5
    assert "nan" not in str(mixed).lower().replace("not a finite", "")


def test_short_prompts_are_a_sentence_and_no_warning(planted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(planted, [row[:5] for row in planted_prompts(8)])
    assert found["massive_activation"].verdict == found["valley_from_bos"].verdict == "holds"
    assert found["sinks"].verdict == "untestable"
    assert "even a head that attends to all keys alike has sink score 0.46" in found["sinks"].evidence
    assert found["sinks_from_massive"].verdict == "untestable" and "Other tokens" not in found.summary
    with warnings.catch_warnings():
        warnings.simplefilter("error", ShortPromptWarning)
        assert found.rejudge(threshold=0.9)["sinks"].verdict != "untestable"


def test_every_family_can_be_asked(any_model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a family cannot do is tested elsewhere
        found = run(any_model, planted_prompts(4))
    assert [c.name for c in found.claims] == NAMES and "holds" not in verdicts(found).values()
    assert all(c.evidence and "nan" not in re.findall(r"\w+", c.evidence) for c in found.claims)
    assert found["ablation_costs"].evidence == (
        "no row at the first token reached a ratio of 10: nothing was cut"
    )
    json.loads(to_json_text(found))


def test_an_encoder_has_no_cost_to_ask_for():
    with pytest.warns(IndirectEditWarning, match="normalises behind 'mlp_out'"):
        found = run(bridge("bert"), planted_prompts(4), ratio=1.01)
    assert found["massive_activation"].verdict == "holds"
    undecided = {c.name: c.evidence for c in found.claims if c.verdict == "untestable"}
    assert all(undecided.values()) and "written_by_mlp" in undecided


@pytest.mark.skipif(GENERATION > 3, reason="TransformerLens 4 has no HookedTransformer")
def test_hooked_transformer_can_be_asked():
    found = run(hooked_transformer(), planted_prompts(4))
    assert found["massive_activation"].statement == "the first token carries a massive activation"
    assert "holds" not in verdicts(found).values() and "this model shows no" in found.summary.lower()


# What is missing is said, whatever is missing.


def test_without_experiments_nothing_is_called_a_cause(found):
    bare = replace(
        found.findings, experiments=None, moved=None, mlp_share=None, phases=None, cut_layers=(),
        why_not={"experiments": "no cut was possible", "mlp_share": "post-norm", "phases": "two depths"},
    )  # fmt: skip
    claims = {c.name: c for c in judge(bare)}
    assert claims["massive_activation"].verdict == claims["sinks"].verdict == "holds"
    for name, why in [
        ("written_by_mlp", "post-norm"), ("three_phases", "two depths"), ("ablation_costs", "no cut was"),
        ("sinks_from_massive", "no cut was"), ("valley_from_bos", "that is no experiment: no cut was"),
        ("valley_follows", "is not shown to make a valley"), ("valley_from_massive_rows", "see there"),
    ]:  # fmt: skip
        assert claims[name].verdict == "untestable" and why in claims[name].evidence, claims[name]
    unknown = Diagnosis(tuple(claims.values()), bare, found.cut_offs)
    assert "Whether the massive activation makes the valley and the sinks was not decided." in unknown.summary


def with_control(found: Diagnosis, **moved: str) -> Diagnosis:
    """The same numbers, as if some conditions had given what another one did."""
    ds = found.findings.experiments
    parts = {moved.get(str(n).replace(" ", "_"), str(n)): None for n in ds.condition.values}
    index = [
        list(ds.condition.values).index(moved.get(str(n).replace(" ", "_"), n)) for n in ds.condition.values
    ]
    assert len(parts) < len(index)
    loud = ds.isel(condition=index).assign_coords(condition=ds.condition)
    findings = replace(found.findings, experiments=loud)
    return Diagnosis(tuple(judge(findings)), findings, found.cut_offs)


def test_an_effect_that_a_control_has_too_is_not_specific(found):
    loud = with_control(found, other_token="cut")
    for name, text in (("valley_from_bos", "the valley"), ("sinks_from_massive", "the sinks")):
        assert loud[name].verdict == "fails"
        assert loud[name].evidence.endswith("not specific, see other token")
        assert (
            f"That the massive activation makes {text} is not shown: a control does as much." in loud.summary
        )
    assert "another mechanism" not in loud.summary


def test_sinks_that_were_there_before_did_not_follow(found):
    moved = found.findings.moved
    index = [list(moved.condition.values).index(n) for n in ("moved", "cut", "moved")]
    names = ["clean", "cut", "moved"]
    there = moved.isel(condition=index).assign_coords(condition=("condition", names))
    claims = {c.name: c for c in judge(replace(found.findings, moved=there))}
    assert claims["sinks_follow"].verdict == "fails"
    assert "beyond 1.00 that it draws in the model as it is" in claims["sinks_follow"].evidence


@pytest.mark.slow
def test_rows_that_stay_massive_decide_nothing():
    model = load_model(planted_model("two_massive", "llama3").model, verbose=False)
    found = run(model, planted_prompts(8))
    assert found["valley_from_massive_rows"].verdict == "holds"
    stays = with_control(found, all_rows_cut="clean")
    claim = stays["valley_from_massive_rows"]
    assert claim.verdict == "untestable"
    assert claim.evidence.endswith("in 100 % of the prompts a row is massive all the same")
    without = found.findings.experiments.drop_sel(condition="all rows cut")
    why = {"rows": "they cannot be cut"}
    alone = {c.name: c for c in judge(replace(found.findings, experiments=without, why_not=why))}
    assert alone["valley_from_massive_rows"].verdict == "untestable"
    assert alone["valley_from_massive_rows"].evidence == "they cannot be cut"
