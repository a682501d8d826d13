"""Does a sweep measure what `measure` measures, and say what it could not?"""

import os
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from models import hugging_face, tokenizer

import mcr_lens as mcr
from mcr_lens import SweepError, moments, read_moments
from mcr_lens.sweep_engines import Outcome
from mcr_lens.sweep_store import Store, file_name
from sweeps.running import METRICS, TEXTS, bare, go


def test_a_sweep_is_measure(given, tiny):
    """Bitwise, attributes included: parts are no more visible in the result than batches."""
    found = go(given)
    ds = mcr.measure(tiny, TEXTS, METRICS, batch_size=1, progress=False)
    xr.testing.assert_identical(bare(found.results["tiny/p"]), bare(ds))
    assert found.results["tiny/p"].prompt_set == "p"
    xr.testing.assert_identical(mcr.load(found.table.path[0]), found.results["tiny/p"])
    row = found.table.iloc[0]
    assert (row["name"], row.n_prompts, row.parts, row.reused, row.done) == ("tiny/p", 7, 3, 0, True)
    assert list(found.results) == ["tiny/p"] and len(found.results) == 1 and "1 of 1 results" in repr(found)
    with pytest.raises(KeyError, match=r"no result 'tiny/q'; did you mean 'tiny/p'\?"):
        found.results["tiny/q"]


@pytest.mark.once
def test_a_sweep_with_conditions_is_compare(given, tiny):
    """Bitwise too, on the axis `condition`."""
    conditions = {"clean": [], "cut": [mcr.zero_bos_mlp(1)], "half": [mcr.scale("mlp_out", 0.5, layers=1)]}
    found = go(given | {"conditions": conditions}).results["tiny/p"]
    ds = mcr.compare(tiny, TEXTS, conditions, METRICS, batch_size=1, progress=False)
    xr.testing.assert_identical(bare(found), bare(ds))


@pytest.mark.filterwarnings("ignore:.*have a single token")
def test_moments_are_those_of_the_prompts(given):
    """What is kept instead of prompts says the same about all of them."""
    few = given["prompts"][0] | {"texts": [*TEXTS, "x"]}
    every = go(given | {"out": given["out"] / "a", "prompts": [few], "prepend_bos": False}).results["tiny/p"]
    kept = go(given | {"out": given["out"] / "b", "prompts": [few], "keep": "moments", "prepend_bos": False})
    found = kept.results["tiny/p"]
    assert (found.n_prompts, found.n_single_token) == (
        8,
        1,
    ) and found.left_out == "strongest_token, strongest_token_id"
    for statistic in ("count", "mean", "sd", "min", "max"):
        one, other = read_moments(found, statistic), read_moments(moments(every), statistic)
        for name in one.data_vars:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-12)
    assert read_moments(found, "count").massive_activation_ratio.max() == 7  # one token has no others
    xr.testing.assert_identical(mcr.load_moments(kept.table.path[0]), found)


@pytest.mark.once
def test_models_by_function(given, tiny):
    """A function is called for its model when its turn comes, and not asked for one that is no model."""
    calls: list[str] = []

    def loads(name):
        def load():
            calls.append(name)
            return tiny

        return load

    models = [{"name": n, "model": loads(n)} for n in "ab"]
    found = go(given | {"models": models})
    assert calls == ["a", "b"] and list(found.results) == ["a/p", "b/p"]
    with pytest.raises(SweepError, match="model 'c' is a int; pass what load_model or serve"):
        go(given | {"models": [{"name": "c", "model": lambda: 3}]})


@pytest.mark.once
def test_a_model_as_it_is_served(given, tmp_path):
    """Another door to the same weights: another part, measured as `serve` gives it."""
    folder = tmp_path / "ckpt"
    hugging_face("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    table = {"name": str(folder), "label": "m"}
    go(given | {"models": [table]})
    served = go(given | {"models": [table | {"served": True, "attention": "sdpa"}]})
    assert served.table.reused.tolist() == [0]
    model = mcr.serve(folder, dtype="float32", attention="sdpa", verbose=False)
    ds = mcr.measure(model, TEXTS, METRICS, batch_size=1, progress=False)
    xr.testing.assert_identical(bare(served.results["m/p"]), bare(ds))
    ready = go(given | {"out": tmp_path / "ready", "models": [{"name": "m", "model": model}]})
    xr.testing.assert_identical(bare(ready.results["m/p"]), bare(ds))


def test_one_failure_does_not_stop_the_others(given, tmp_path):
    """What cannot be loaded, read or measured is named; everything else is finished and stays."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine, as the first three are"}\n' * 3 + '{"txt": "x"}\n')
    models = [{"name": "no/such/model"}, *given["models"]]
    prompts = [
        {"name": "bad", "file": str(bad)},
        {"name": "short", "texts": ["ab" * 5, "a"]},
        *given["prompts"],
    ]
    with (
        pytest.raises(
            SweepError, match=r"5 of 6 results are not finished, the first of them no/such/model/bad: "
        ) as seen,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", mcr.PromptWarning)
        go(given | {"models": models, "prompts": prompts, "position": 3})
    table = seen.value.result.table.set_index("name")
    assert list(seen.value.result.results) == ["tiny/p"]
    assert "no such folder" in table.error["no/such/model/p"]
    assert "line 4 has no field 'text'" in table.error["tiny/bad"]
    assert table.error["tiny/short"].startswith(
        "in prompts 0 to 1, counted from 0: position=3, but the shortest"
    )
    assert "\n" not in str(seen.value)


def test_no_prompts_at_all(given, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(SweepError, match="there are no prompts; name a file or dataset that holds some"):
        go(given | {"prompts": [{"name": "e", "file": str(tmp_path / "empty.txt")}]})


def test_prompts_that_repeat_are_told_once(given):
    """Across parts too; they are counted each time and do not stop a sweep."""
    texts = [TEXTS[0], "x", TEXTS[1], TEXTS[0], TEXTS[0], TEXTS[1]]
    plan = given | {"prompts": [{"name": "p", "texts": texts}], "max_length": 40, "prepend_bos": False}
    with pytest.warns(mcr.PromptWarning) as seen:
        found = go(plan)
    assert [str(w.message) for w in seen] == [
        "tiny/p: 1 of 6 prompts have a single token, so that whatever compares it with others is NaN",
        "tiny/p: 3 of 6 prompts come more than once and are counted each time",
    ]
    assert found.results["tiny/p"].text.values.tolist() == texts


def test_prompts_longer_than_the_model_are_told(given):
    texts = ["far too long " * 20, *TEXTS[:4], "much too long " * 20]
    with pytest.warns(mcr.PromptWarning, match="2 of 6 prompts were longer than the model"):
        go(given | {"prompts": [{"name": "p", "texts": texts}]})


def test_a_second_sweep_waits_outside(given, tmp_path):
    """Two on one folder: one sentence; the lock goes with its holder, and half-written files with it."""
    out = tmp_path / "out"
    with (
        Store(out).held(),
        pytest.raises(SweepError, match=r"another sweep is writing to .*out; wait"),
    ):
        go(given)
    for litter in (out / "parts/tiny/p/.000000-x.nc.abc.part", out / "results/tiny/.p.nc.abc.part"):
        litter.parent.mkdir(parents=True, exist_ok=True)
        litter.write_bytes(b"half")
    go(given)
    assert list(out.rglob("*.part")) == []


def test_places_that_are_no_folder(given, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file; name a folder in out"):
        go(given, out=tmp_path / "file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(given, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        go(given)


@pytest.mark.slow
def test_names_stay_in_the_folder(given, tiny, tmp_path):
    """Whatever models and prompts are called, their files lie under out, each its own."""
    names = ["../../up", "/root/x", "..", "a/b", "a--b", "A", "a", "ü", "x" * 300, ".hidden", "c:d\\e"]
    models = [{"name": "tiny", "label": name, "model": tiny} for name in names]
    found = go(given | {"models": models, "prompts": [{"name": "../p", "texts": TEXTS[:2]}]})
    written = [p for p in tmp_path.rglob("*.nc")]
    assert all(p.is_relative_to(tmp_path / "out") for p in written) and len(written) == 2 * len(names)
    assert sorted(found.results) == sorted(f"{name}/../p" for name in names)
    assert len({file_name(name).lower() for name in names}) == len(names)


class Counting:
    """Stands for a worker: no model, and a note of how far the prompts were read when a part was made."""

    read = 0
    ahead = 0

    def __init__(self, threads):
        self.made = 0

    def make(self, task):
        self.made += len(task.texts)
        Counting.ahead = max(Counting.ahead, Counting.read - self.made)
        values = ("prompt", np.arange(len(task.texts), dtype=float), {"units": "1"})
        ds = xr.Dataset({"x": values}, attrs={"schema": 1}).assign_coords(
            n_tokens=("prompt", [2] * len(task.texts))
        )
        return Outcome(task, moments(ds))


@pytest.mark.slow
@pytest.mark.once
def test_many_prompts_are_never_held(given, monkeypatch):
    """Twenty thousand prompts of a generator: read when wanted, kept as moments, in little memory."""
    monkeypatch.setattr("mcr_lens.sweep_engines.Worker", Counting)
    n, size = 20_000, 1000

    def texts():
        for i in range(n):
            Counting.read = i + 1
            yield f"{i} " + "x" * size

    plan = given | {"prompts": [{"name": "p", "texts": texts}], "keep": "moments", "chunk": 500}
    go(
        plan | {"out": given["out"] / "warm", "prompts": [{"name": "p", "texts": TEXTS}]}
    )  # imports and caches
    tracemalloc.start()
    found = go(plan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.results["tiny/p"].n_prompts == n and Counting.ahead == 0
    assert peak < n * size / 4
    assert read_moments(found.results["tiny/p"]).x == pytest.approx(249.5)


def test_threads_are_put_back(given):
    before = torch.get_num_threads()
    go(given, threads=2)
    assert torch.get_num_threads() == before


def test_warnings_of_a_model_are_told_once(given, monkeypatch):
    """What `measure` warns about reaches the caller, once for all parts, from where it came."""

    def measure(*_args, **_options):
        warnings.warn("mind this", mcr.ObservationWarning, stacklevel=1)
        return real(*_args, **_options)

    real = mcr.measure
    monkeypatch.setattr("mcr_lens.sweep_engines.measure", measure)
    with pytest.warns(mcr.ObservationWarning, match="mind this") as seen:
        go(given)
    assert len(seen) == 1
