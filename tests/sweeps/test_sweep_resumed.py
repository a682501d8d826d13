"""Is everything measured once, whatever happens in between, and anew where something changed?"""

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import xarray as xr
from models import hugging_face, tokenizer

import mcr_lens as mcr
from mcr_lens import SweepWarning, load_model
from sweeps.running import TEXTS, bare, go, parts


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
