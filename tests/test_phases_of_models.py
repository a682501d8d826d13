"""Does a model whose phases are known by construction show them, and only them?"""

import pytest

import mcr_lens as mcr
from mcr_lens.models import demo_folder
from mcr_lens.phases import detect_phases
from mcr_lens.testing import MECHANISMS, Massive, plant, planted_model, planted_prompts

pytestmark = pytest.mark.slow

METRICS = ["matrix_entropy", "massive_activation_ratio", "sink_score", "mixing_score"]
DEPTHS = 7


@pytest.fixture(scope="module", params=["gpt2", "neox", "llama3"])
def measured(request):
    """Every mechanism in one family, two seeds each."""
    found = []
    for mechanism in MECHANISMS:
        for seed in range(2):
            planted = planted_model(mechanism, request.param, seed=seed)
            model = mcr.load_model(planted.model, verbose=False)
            prompts = planted_prompts(3, seed=100 + seed)
            ds = mcr.measure(model, prompts, METRICS, progress=False)
            found.append((mechanism, planted.truth, ds))
    return found


def test_planted_phases_are_found_where_they_are(measured):
    for mechanism, truth, ds in measured:
        found = detect_phases(ds)
        assert found.found == truth.valley, mechanism
        if truth.valley:
            assert abs(found.compress.start - truth.valley_depths.start) <= 1, mechanism
            assert abs(found.compress.stop - truth.valley_depths.stop) <= 1, mechanism
        elif mechanism == "massive_stays":
            assert (found.compress, len(found.refine)) == (range(2, DEPTHS), 0)
            assert "still there at depth 6" in found.reason
        else:
            assert not found.mix and not found.compress and not found.refine, mechanism


def test_what_makes_the_valley_shows_in_the_agreement(measured):
    for mechanism, _, ds in measured:
        agreement = detect_phases(ds).agreement
        if mechanism == "massive_sinks":
            assert all(agreement.values())
        if mechanism == "common_direction":
            assert agreement["normalized_entropy"] and not agreement["massive_activation_ratio"]
        if mechanism == "identity_sinks":
            assert agreement["massive_activation_ratio"] and not agreement["sink_rate"]


def test_one_signal_is_enough(measured):
    for mechanism, truth, ds in measured:
        entropy, ratio = (detect_phases(ds[[name]]) for name in METRICS[:2])
        assert entropy.found == truth.valley, mechanism
        massive = truth.massive.get(0, range(0))
        assert ratio.compress == massive, mechanism
        assert ratio.found == bool(massive and massive.stop < DEPTHS), mechanism


@pytest.mark.demo
def test_the_demo_model_compresses_from_depth_one():
    prompts = (demo_folder() / "prompts.txt").read_text().split("\n")[:8]
    ds = mcr.measure(mcr.load_model("demo", verbose=False), prompts, METRICS, progress=False)
    found = detect_phases(ds)
    assert found.found
    assert found.compress.start == 1
    assert found.start_interval == (1, 1)
    assert not found.disagreements


@pytest.mark.parametrize(("layers", "writes", "removes"), [(2, 0, 1), (12, 2, 9), (80, 15, 66)])
def test_any_number_of_layers(layers, writes, removes):
    """The row is massive from behind the block that writes it up to the one that takes it away."""
    planted = plant("llama3", Massive(writes, removed_by=removes), seed=1, layers=layers)
    ds = mcr.measure(mcr.load_model(planted, verbose=False), planted_prompts(4), METRICS, progress=False)
    phases = detect_phases(ds)
    assert phases.found and phases.compress == range(writes + 1, removes + 1)
    assert phases.mix == range(writes + 1) and phases.refine == range(removes + 1, layers + 1)
