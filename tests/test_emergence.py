"""Are checkpoints found in their order, measured as `measure` does, and is it right when things emerge?"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from models import bridge, hugging_face, tokenizer
from test_cli import run
from test_examples import script
from test_plots import USUAL, fake_result

import mcr_lens
from mcr_lens import ResultSchemaError, emergence, emergence_steps, join_steps, measure
from mcr_lens.checkpoints import METRICS, PYTHIA_REVISIONS, find_checkpoints
from mcr_lens.growth import EVENTS, emergence_table, first_to_stay, in_sentences

pytestmark = pytest.mark.once

PROMPTS = ["The river runs to the sea.", "A cat sat on the mat all day.", "One two three four five."]


def model(step: int = 0):
    """A tiny model, moved a little with every step."""
    made = hugging_face("llama")
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.001 * step * torch.randn(p.shape, generator=g))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three checkpoints whose names sort otherwise than their numbers, and what may lie beside them."""
    root = tmp_path_factory.mktemp("run")
    for step in (10, 9, 100):
        model(step).save_pretrained(root / f"step{step}")
        tokenizer(prepends=True).save_pretrained(root / f"step{step}")
    (root / "runs").mkdir()
    (root / "step7").write_text("a file")
    return root


# -- where checkpoints are --


def test_folders_come_in_the_order_of_their_numbers(folder, tmp_path):
    assert list(find_checkpoints(folder)) == [9, 10, 100]
    for name in ("checkpoint-500", "checkpoint-1500", "checkpoint-1000", "final", "tmp-checkpoint-7"):
        (tmp_path / name).mkdir()
    assert list(find_checkpoints(str(tmp_path))) == [500, 1000, 1500]


def test_maps_and_revisions():
    found = find_checkpoints({np.int64(20): "b", 3: "a"})
    assert found == {3: ("a", None), 20: ("b", None)} and list(found) == [3, 20]
    found = find_checkpoints("EleutherAI/pythia-410m", PYTHIA_REVISIONS[::-1])
    assert list(found) == [1, 1000, 2000, 4000, 8000, 10_000, 20_000, 30_000, 143_000]
    assert found[8000] == ("EleutherAI/pythia-410m", "step8000")


@pytest.mark.parametrize(
    ("given", "revisions", "error", "message"),
    [
        ({}, None, ValueError, "an empty map"),
        ({-1: "a"}, None, ValueError, "training step -1: pass whole numbers from 0 on"),
        ({"step1": "a"}, None, ValueError, "training step 'step1': pass whole"),
        ({1: "a"}, ["step1"], ValueError, "revisions= goes with a hub name"),
        (3, None, TypeError, "expected a folder, a hub name or a map from step to model, got int"),
        ("no/such", None, ValueError, r"'no/such' is no folder; .* pass revisions=\['step1', 'step1000'\]"),
        ("no/such", [], ValueError, r"revisions=\[\]: pass a list of names"),
        ("no/such", "step1", ValueError, "revisions='step1': pass a list"),
        ("no/such", ["main"], ValueError, "revision 'main' does not end in its training step"),
        ("no/such", ["step1", "a1"], ValueError, "training step 1 is there twice"),
    ],
)
def test_refused_sources(given, revisions, error, message):
    with pytest.raises(error, match=message):
        emergence(given, PROMPTS, revisions=revisions)


def test_refused_folders(folder, tmp_path):
    with pytest.raises(ValueError, match="is a folder and has no revisions"):
        emergence(folder, PROMPTS, revisions=["step1"])
    with pytest.raises(
        ValueError, match="holds no checkpoints: no folder is named like step500 or checkpoint"
    ):
        emergence(tmp_path, PROMPTS)
    for name in ("step5", "checkpoint-5"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"holds step 5 twice \(checkpoint-5, step5\)"):
        emergence(tmp_path, PROMPTS)


# -- measuring --


def test_one_checkpoint_is_what_measure_gives(folder):
    ds = emergence({9: folder / "step9"}, PROMPTS, progress=False)
    loaded = mcr_lens.load_model(str(folder / "step9"), verbose=False)
    wanted = measure(loaded, PROMPTS, list(METRICS), progress=False)
    one = ds.isel(step=0, drop=True)
    xr.testing.assert_identical(one.drop_attrs(), wanted.drop_attrs())
    assert ds.step.values.tolist() == [9] and ds.sizes["prompt"] == len(PROMPTS)


def test_every_step_is_its_checkpoint_and_can_be_kept(folder, tmp_path):
    ds = emergence(folder, PROMPTS, progress=False)
    assert ds.step.values.tolist() == [9, 10, 100] and set(ds) == set(METRICS)
    assert ds.massive_activation_ratio.dims == ("step", "prompt", "depth")
    assert [name.rsplit("/", 1)[1] for name in ds.checkpoint.values] == ["step9", "step10", "step100"]
    assert ds.attrs["model"] == str(folder) and ds.attrs["revision"] == "several"
    last = measure(mcr_lens.load_model(str(folder / "step100"), verbose=False), PROMPTS, progress=False)
    np.testing.assert_array_equal(ds.sink_score.sel(step=100), last.sink_score)
    path = mcr_lens.save(ds, tmp_path / "result.nc")
    xr.testing.assert_identical(mcr_lens.load(path), ds)
    with pytest.raises(ResultSchemaError, match=r"holds 3 training steps; pick one with ds.isel\(step=-1\)"):
        mcr_lens.massive_layer(ds)
    assert mcr_lens.massive_layer(ds.isel(step=-1)) == mcr_lens.massive_layer(last)


def test_served_models_in_memory_and_bridges_agree(folder):
    tok = tokenizer(prepends=True)
    wanted = emergence(folder, PROMPTS, progress=False, metrics=["bos_norm"])
    served = emergence(folder, PROMPTS, progress=False, metrics=["bos_norm"], served=True, dtype="float32")
    held = {step: model(step) for step in (100, 9, 10)}
    memory = emergence(held, PROMPTS, progress=False, metrics="bos_norm", tokenizer=tok)
    assert memory.step.values.tolist() == [9, 10, 100]
    for ds in (served, memory):
        np.testing.assert_allclose(ds.bos_norm, wanted.bos_norm, rtol=1e-4)
    rows = [[5, 6, 7, 8], [9, 8, 7]]
    two = {0: bridge("llama"), 1: bridge("llama")}
    assert emergence(two, iter(rows), progress=False).sizes["prompt"] == 2
    with pytest.raises(ValueError, match="step 9 is a model in memory, where dtype= and device="):
        emergence(held, PROMPTS, dtype="float32", tokenizer=tok, progress=False)


def test_checkpoints_of_other_models_or_tokenizers_are_refused(folder, tmp_path):
    with pytest.raises(ResultSchemaError, match=r"step 2 differs from step 1 in n_layers .* of one model"):
        emergence({1: model(), 2: hugging_face("llama", num_hidden_layers=2)}, [[5, 6, 7]], progress=False)
    model().save_pretrained(tmp_path / "other")
    tokenizer(bos=False).save_pretrained(tmp_path / "other")
    with pytest.raises(ResultSchemaError, match="were not measured on the same tokens; pass the same"):
        emergence({1: folder / "step9", 2: tmp_path / "other"}, PROMPTS, progress=False)


def test_results_at_hand_are_joined():
    """Those of a sweep, for example; the order in which they come does not matter."""
    parts = {step: fake_result(4, prompts=3, model=f"run@{step}") for step in (20, 5)}
    ds = join_steps(parts, model="run")
    assert ds.step.values.tolist() == [5, 20] and ds.attrs["model"] == "run"
    assert ds.checkpoint.values.tolist() == ["run@5", "run@20"]
    assert join_steps(parts).attrs["model"] == "2 checkpoints"
    with pytest.raises(ResultSchemaError, match="no results to join"):
        join_steps({})
    with pytest.raises(ResultSchemaError, match=r"do not hold the same variables \(bos_norm\)"):
        join_steps({1: parts[5], 2: parts[5].drop_vars("bos_norm")})
    with pytest.raises(ResultSchemaError, match="holds 2 training steps"):
        join_steps({1: ds, 2: ds})


# -- reading --


def training(steps=(0, 1, 10, 100, 1000, 10_000), *, at=None, prompts: int = 6, **options) -> xr.Dataset:
    """Spike, valley and sinks appear at given steps; before, there is nothing."""
    at = {"spike": 10, "valley": 100, "sinks": 1000} if at is None else at
    names = (*USUAL, "next_token_loss")
    on, off = (fake_result(4, prompts=prompts, massive=there, names=names) for there in (True, False))
    variables = {"spike": "massive_activation_ratio", "valley": "matrix_entropy", "sinks": "sink_score"}
    parts = {}
    for number, step in enumerate(steps):
        ds = off.copy(deep=True)
        for event, name in variables.items():
            if step >= at[event]:
                ds[name] = on[name]
        ds["next_token_loss"][:] = 5 - 0.5 * number
        parts[step] = ds
    return join_steps(parts, **options)


def test_events_are_found_where_they_are():
    found = emergence_steps(training(), resamples=100)
    assert found.event.values.tolist() == list(EVENTS)
    assert found.emerged.values.tolist() == [10, 100, 1000]
    assert found.after.values.tolist() == [1, 10, 100]
    assert found["first"].values.tolist() == [10, 100, 1000]
    assert (found.low == found.emerged).all() and (found.high == found.emerged).all()
    assert found.strength.sel(event="valley").values == pytest.approx([0, 0, 0, 0.7, 0.7, 0.7])
    assert found.strength.sel(event="sinks").values.tolist() == [0, 0, 0, 0, 1, 1]


def test_together_is_synchronous_and_apart_is_less():
    together = emergence_steps(training(at=dict.fromkeys(EVENTS, 100)), resamples=100)
    np.testing.assert_allclose(together.synchrony, 1)
    assert (emergence_steps(training(), resamples=100).synchrony < 0.8).all()
    few = emergence_steps(training((0, 10, 100, 1000)), resamples=100)
    assert np.isnan(few.synchrony).all()  # four steps
    still = emergence_steps(training(at={"spike": 10, "valley": 1e9, "sinks": 1000}), resamples=100)
    assert np.isnan(still.synchrony.values).tolist() == [True, False, True]


def test_what_goes_again_has_not_emerged_and_what_comes_back_emerges_later():
    ds = training(at=dict.fromkeys(EVENTS, 10))
    ds["sink_score"][3] = 0.0
    ds["massive_activation_ratio"][-1] = 2.0
    found = emergence_steps(ds, resamples=100)
    assert found["first"].values.tolist() == [10, 10, 10]
    assert found.emerged.sel(event="sinks") == 1000 and np.isnan(found.emerged.sel(event="spike"))
    assert math.isnan(first_to_stay(np.array([1, 2]), np.array([9.0, math.nan]), 1.0))
    lines = in_sentences(found)
    assert lines[0] == "spike (norm ratio ≥ 10): first at step 10, and not at the end"
    assert lines[2] == (
        "sinks (sink rate ≥ 0.5): to stay from step 1,000 on (not yet at 100), over other prompts 1,000 to "
        "1,000; first at step 10"
    )


def test_prompts_that_differ_make_an_interval():
    """Half of the prompts spike at step 10 and the others at 100: the mean passes at 10 or later."""
    ds = training(at=dict.fromkeys(EVENTS, 10), prompts=8)
    ds["massive_activation_ratio"][2, ::2] = 2.0
    ds["massive_activation_ratio"][2, 1::2] = 20.0
    found = emergence_steps(ds, resamples=200).sel(event="spike")
    assert found.emerged == 10 and (found.low, found.high) == (10, 100)
    never = emergence_steps(training(at=dict.fromkeys(EVENTS, 1e9)), resamples=100)
    assert np.isnan(never.emerged).all() and (never.undefined == 1).all()
    assert in_sentences(never)[0] == "spike (norm ratio ≥ 10): never"
    assert in_sentences(never)[-1] == "valley and sinks: no correlation"


def test_strengths_are_those_of_the_single_results():
    ds = training()
    ds["matrix_entropy"][:] += np.random.default_rng(0).uniform(0, 0.5, ds.matrix_entropy.shape)
    found = emergence_steps(ds, resamples=100).strength
    for number in range(ds.sizes["step"]):
        one = ds.isel(step=number)
        assert float(found[1, number]) == pytest.approx(mcr_lens.entropy_valley(one).drop)
        ratio = float(one.massive_activation_ratio.mean("prompt").max())
        assert float(found[0, number]) == pytest.approx(ratio)
    ds["matrix_entropy"][3] = np.nan
    found = emergence_steps(ds, resamples=100)
    assert np.isnan(found.strength[1].values).tolist() == [False, False, False, True, False, False]
    assert found.emerged.sel(event="valley") == 1000


def test_what_was_found_is_saved_and_read(tmp_path):
    found = emergence_steps(join_steps({0: fake_result(8, seed=1), 9: fake_result(8, seed=2)}), resamples=100)
    xr.testing.assert_identical(mcr_lens.load(mcr_lens.save(found, tmp_path / "steps.nc")), found)


def test_the_table_says_the_same():
    table = emergence_table(training())
    assert isinstance(table, pd.DataFrame)
    assert list(table) == [
        "step", "ratio", "ratio at", "entropy", "entropy at", "drop", "sinks", "mean sinks", "loss",
    ]  # fmt: skip
    assert table.step.tolist() == [0, 1, 10, 100, 1000, 10_000]
    assert table.loss.tolist() == [5, 4.5, 4, 3.5, 3, 2.5]
    assert table.entropy.iloc[-1] == pytest.approx(0.1) and table["mean sinks"].iloc[-1] == 0.5
    assert table["ratio at"].tolist()[2:] == [2] * 4 and table["entropy at"].tolist()[3:] == [2] * 3
    assert "loss" not in emergence_table(training().drop_vars("next_token_loss"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio=1.0: a massive row is longer than the others; pass a number above 1"),
        ({"valley": 0.0}, "valley=0.0: pass a number above 0 and at most 1"),
        ({"rate": 1.5}, "rate=1.5: pass a number above 0"),
        ({"threshold": 0.0}, "threshold=0.0: pass a number above 0"),
        ({"level": 2.0}, "level=2.0: the coverage"),
    ],
)
def test_refused_criteria(options, message):
    with pytest.raises(ValueError, match=message):
        emergence_steps(training(), **options)


def test_what_is_no_training_is_refused():
    with pytest.raises(ResultSchemaError, match=r"no axis `step`; pass what mcr_lens\.emergence returns"):
        emergence_steps(fake_result())
    with pytest.raises(ResultSchemaError, match="has no sink_score"):
        emergence_steps(training().drop_vars("sink_score"))
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        emergence_steps(training().isel(prompt=slice(0)))
    with pytest.raises(ResultSchemaError, match="several conditions"):
        emergence_steps(training().expand_dims(condition=["clean", "cut"]))


# -- from a shell, and the example --


def test_the_command_writes_and_prints(folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    out, _ = run("emergence", folder, "--prompts", prompts, "--out", tmp_path / "out")
    ds = mcr_lens.load(tmp_path / "out" / "result.nc")
    assert ds.step.values.tolist() == [9, 10, 100] and (tmp_path / "out" / "emergence.html").is_file()
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["9"], ["10"], ["100"])]
    table = emergence_table(ds)
    assert [float(row[1]) for row in rows] == [round(v, 1) for v in table.ratio]
    assert [float(row[-1]) for row in rows] == pytest.approx(table.loss.tolist(), abs=6e-4)
    assert "spike (norm ratio ≥ 10)" in out and "valley and sinks: no correlation" in out
    assert max(map(len, out.split("spike (")[0].splitlines())) <= 80


def test_the_command_refuses_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        ([tmp_path], "holds no checkpoints"),
        (["acme/none", "--revisions", "main"], "revision 'main' does not end in its training step"),
        (["acme/none"], "is no folder"),
        ([tmp_path, "--prompts", tmp_path / "none.txt"], "none.txt is not a file"),
        ([tmp_path, "--out", __file__], "is a file; name a folder with --out"),
    ):
        _, err = run("emergence", *arguments, code=1)
        assert message in err.replace("\n", " ") and err.startswith("error: ")
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_the_example_trains_measures_and_writes(tmp_path):
    """Two blocks and four steps; with its checkpoints at hand it trains no more and says the same."""
    training_script = script("train_demo")
    recipe = training_script.Recipe(
        seed=3, markov_steps=2, text_steps=2, blocks=2, markov_batch=2, text_batch=2, length=24
    )
    example = script("emergence")
    text = example.main(tmp_path / "one", recipe=recipe, every=2)
    assert [line.split(" | ")[0] for line in text.splitlines()[2:5]] == ["| 0", "| 2", "| 4"]
    written = sorted(path.name for path in (tmp_path / "one").iterdir() if path.is_file())
    assert {"emergence.html", "emergence.md", "result.nc"} <= set(written)
    again = example.main(tmp_path / "two", checkpoints=tmp_path / "one" / "checkpoints")
    assert again == text and not (tmp_path / "two" / "checkpoints").exists()
