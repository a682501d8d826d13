"""Does a sweep measure what `measure` measures, once, and whatever happens in between?"""

import os
import shutil
import tracemalloc
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from models import hugging_face, tokenizer

import mcr_lens as mcr
from mcr_lens import SweepError, SweepWarning, load_model, moments, read_moments, sweep
from mcr_lens.sweep_engines import Outcome
from mcr_lens.sweep_store import CHECKSUM, DIGEST, Store, file_name

TEXTS = [f"sentence {i} of a few" for i in range(10, 17)]
METRICS = ["bos_norm", "massive_activation_ratio", "sink_score", "strongest_token"]


@pytest.fixture(scope="module")
def tiny():
    return load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)


@pytest.fixture
def given(tmp_path, tiny):
    """A plan: one model, seven prompts of one length, three in a part."""
    return {
        "out": tmp_path / "out", "metrics": METRICS, "chunk": 3, "batch_size": 1,
        "models": [{"name": "tiny", "model": tiny}], "prompts": [{"name": "p", "texts": TEXTS}],
    }  # fmt: skip


def go(plan, **changes):
    return sweep(plan, progress=False, **changes)


def bare(ds: xr.Dataset) -> xr.Dataset:
    """Without what differs between a sweep and `measure`, or between two runs."""
    out = ds.copy()
    gone = ("created", DIGEST, CHECKSUM, "prompt_set")
    out.attrs = {k: v for k, v in ds.attrs.items() if k not in gone}
    return out


def parts(out: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(out.glob("parts/*/*/*.nc"))}


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


def test_nothing_is_measured_twice(given, monkeypatch):
    """A second run reads what is there; a lost result is put together again from its parts."""
    first = go(given)
    before = parts(first.out)
    monkeypatch.setattr("mcr_lens.sweep_engines.measure_part", lambda *_: pytest.fail("measured again"))
    again = go(given)
    assert again.table.reused.tolist() == [3] and parts(first.out) == before
    result = Path(first.table.path[0])
    whole = xr.load_dataset(result, engine="h5netcdf")  # older HDF5 writes the second into the bytes
    result.unlink()
    xr.testing.assert_identical(go(given).results["tiny/p"], first.results["tiny/p"])
    xr.testing.assert_identical(xr.load_dataset(result, engine="h5netcdf"), whole)


def test_a_result_is_enough(given, monkeypatch):
    """Parts may go once the result is there."""
    first = go(given)
    shutil.rmtree(first.out / "parts")
    monkeypatch.setattr("mcr_lens.sweep_engines.measure_part", lambda *_: pytest.fail("measured again"))
    assert go(given).table.done.all()


@pytest.mark.once
@pytest.mark.parametrize(
    "damage", ["cut", "flipped", *(pytest.param(d, marks=pytest.mark.slow) for d in ("emptied", "other"))]
)
def test_a_damaged_part_is_made_anew(given, damage):
    """Whatever happened to a file, it is noticed, said by name, and only that part is measured again."""
    first = go(given)
    before, result = parts(first.out), Path(first.table.path[0])
    part = sorted(first.out.glob("parts/*/*/*.nc"))[1]
    whole = part.read_bytes()
    if damage == "flipped":  # the values of a variable, where HDF5 itself sees nothing
        ds = xr.load_dataset(part, engine="h5netcdf")
        at = whole.index(ds.bos_norm.values[0].tobytes())
        part.write_bytes(whole[: at + 3] + bytes([whole[at + 3] ^ 1]) + whole[at + 4 :])
    elif damage == "other":
        shutil.copy(sorted(first.out.glob("parts/*/*/*.nc"))[0], part)
    else:
        part.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    damaged = part.read_bytes()
    result.unlink()
    if damage == "other":  # whole, but of other prompts
        again = go(given)
    else:
        with pytest.warns(SweepWarning, match=rf"{part.name} .*; it is made anew"):
            again = go(given)
    assert part.read_bytes() != damaged and again.table.reused.tolist() == [2]
    after = parts(first.out)
    assert [n for n in before if before[n] != after[n]] == [part.name]
    xr.testing.assert_identical(bare(again.results["tiny/p"]), bare(mcr.load(result)))


@pytest.mark.once
def test_a_damaged_result_is_made_anew(given):
    first = go(given)
    result = Path(first.table.path[0])
    held, whole = first.results["tiny/p"], result.read_bytes()
    result.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        first.results["tiny/p"]
    with pytest.warns(SweepWarning, match=r"p\.nc cannot be read .*; it is made anew"):
        again = go(given)
    if version("h5netcdf") != "1.5.0":  # which writes the time of day into the header
        assert result.read_bytes() == whole
    xr.testing.assert_identical(again.results["tiny/p"], held)


CHANGES = {
    "metrics": ["bos_norm", "sink_score"],
    "max_length": 20,
    "prepend_bos": False,
    "position": 1,
    "batch_size": 2,
    "keep": "moments",
    "conditions": {"clean": [], "cut": [mcr.zero_bos_mlp(1)]},
    "prompts": [{"name": "p", "texts": [t.upper() for t in TEXTS]}],
}


@pytest.mark.once
@pytest.mark.parametrize(
    "key", [pytest.param(k, marks=[] if k in ("metrics", "keep") else pytest.mark.slow) for k in CHANGES]
)
def test_a_changed_plan_uses_nothing_old(given, key):
    """Every option that makes the numbers makes new parts, and the old ones stay for the old plan."""
    first = go(given)
    before = parts(first.out)
    changed = go(given | {key: CHANGES[key]})
    assert changed.table.reused.tolist() == [0] and before.items() < parts(first.out).items()
    assert go(given).table.reused.tolist() == [3]


@pytest.mark.slow
def test_other_weights_use_nothing_old(given):
    """A model of the same name whose weights or tokenizer differ is another model."""
    go(given)
    other = load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    assert go(given | {"models": [{"name": "tiny", "model": other}]}).table.reused.tolist() == [3]
    with torch.no_grad():
        next(other.original_model.parameters()).view(-1)[5] += 1e-3
    assert go(given | {"models": [{"name": "tiny", "model": other}]}).table.reused.tolist() == [0]
    bos = load_model(hugging_face("llama"), tokenizer=tokenizer(bos=False), verbose=False)
    assert go(given | {"models": [{"name": "tiny", "model": bos}]}).table.reused.tolist() == [0]


@pytest.mark.once
def test_more_prompts_cost_only_the_new_ones(given):
    """Whole chunks at the beginning are used again."""
    go(given)
    longer = given | {"prompts": [{"name": "p", "texts": [*TEXTS, "and one more at the end"]}]}
    assert go(longer).table.reused.tolist() == [2]
    assert go(given | {"prompts": [{"name": "p", "texts": TEXTS, "limit": 6}]}).table.reused.tolist() == [2]


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


@pytest.mark.slow
@pytest.mark.once
def test_a_folder_of_weights(tmp_path, given):
    """A checkpoint by its path: changed files are another model, and the folder's own name is the label."""
    folder = tmp_path / "ckpt"
    hugging_face("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    plan = given | {"models": [{"name": str(folder), "label": "ckpt"}]}
    first = go(plan)
    assert first.results["ckpt/p"].model == str(folder) and go(plan).table.reused.tolist() == [3]
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config + "\n")
    assert go(plan).table.reused.tolist() == [0]


@pytest.mark.once
def test_a_hub_model_is_pinned_to_its_commit(tmp_path, given, monkeypatch):
    """A revision that moves between two runs is another model; the result says what it was called and was."""
    commits = ["a" * 40, "b" * 40]
    cache = tmp_path / "hub" / "models--acme--tiny"
    (cache / "refs").mkdir(parents=True)
    for commit in commits:
        folder = cache / "snapshots" / commit
        hugging_face("llama").save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    plan = given | {"models": [{"name": "acme/tiny", "revisions": ["main"]}]}
    for commit in commits:
        (cache / "refs" / "main").write_text(commit)
        found = go(plan)
        assert found.table.reused.tolist() == [0]
        ds = found.results["acme/tiny@main/p"]
        assert (ds.attrs["model"], ds.attrs["revision"], ds.attrs["commit"]) == ("acme/tiny", "main", commit)
    assert go(plan).table.reused.tolist() == [3]


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


@pytest.mark.once
def test_interrupted_by_hand(given, monkeypatch):
    """Ctrl-C in the middle passes through, keeps what is finished and lets go of the folder."""
    count = 0
    real = mcr.measure

    def measure(*args, **options):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr("mcr_lens.sweep_engines.measure", measure)
    with pytest.raises(KeyboardInterrupt):
        go(given)
    assert len(parts(given["out"])) == 2
    assert go(given).table.reused.tolist() == [2]
