"""Do the benchmarks still run, and do the tables follow from what they find? Small models, no times."""

import importlib
from pathlib import Path

import pytest

import mcr_lens

FOLDER = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.once


@pytest.fixture
def bench(monkeypatch):
    """A benchmark by its name, its models small."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("bench_measure.SIZES", {"gpt2": (2, 2, 8), "llama": (2, 8, 32)})
    return importlib.import_module


def test_a_bridge_and_the_usual_way(bench):
    """Every way runs, and each is compared with both forward passes."""
    measure = bench("bench_measure")
    wanted = ("bare", "no unembedding", "all", "usual", *measure.GROUPS)
    for name in measure.SIZES:
        found = measure.times(name, 16, 2, 1, wanted)
        assert (
            set(found["seconds"])
            == set(found["over bare"])
            == set(found["over no unembedding"])
            == set(wanted)
        )
        assert found["over bare"]["bare"] == 1 and min(found["seconds"].values()) >= 0


def test_prompts_of_mixed_length(bench, monkeypatch):
    measure = bench("bench_measure")
    monkeypatch.setattr(measure, "QUESTIONS", [3, 5, 8])
    found = measure.mixed(1)
    assert found["prompts"] == 15 and set(found["seconds"]) == {"bare", "all"}


def test_a_model_as_it_is_served(bench):
    found = bench("bench_served").times(32, 1, 64)
    assert {"measure/sdpa", "measure/eager"} < set(found)


def test_growth(bench):
    found = bench("bench_growth").one(16, 1, 2, 1, rounds=1)
    assert set(found) == {"forward", "measure", "spectra", "result_bytes"} and found["result_bytes"] > 0


def test_a_logit_lens(bench):
    found = bench("bench_lens").times(8, 1, 1)
    assert {"forward, s", "logit lens, s", "lens/floor", "usual/lens"} <= set(found)


def test_watching_a_training(bench):
    with pytest.warns(mcr_lens.TrainingWatchWarning, match="measuring took"):  # three steps are over at once
        found = bench("bench_watch").watched(3, 2)
    assert found["steps"] == 3 and found["measurements"] >= 1


def test_the_tables_are_what_the_results_say(bench, monkeypatch, tmp_path):
    """The page in docs is the one that the script writes from the results that are kept."""
    tables = bench("tables")
    monkeypatch.setattr(tables, "figure", lambda *_: None)
    kept = (FOLDER.parent / "docs" / "benchmarks.md").read_text("utf-8")
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    (tmp_path / "images").mkdir()
    tables.main()
    assert (tmp_path / "benchmarks.md").read_text("utf-8") == kept
