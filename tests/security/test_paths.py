"""Do the files of a sweep stay in its folder, whatever models, prompts and labels are called?"""

import os
from pathlib import Path

import pytest
from handmade import result
from hypothesis import given
from hypothesis import strategies as st

import mcr_lens
from mcr_lens.sweep_store import Store, SweepError, file_name, write

pytestmark = pytest.mark.once

SMALL = {"bos_norm": 1.0}

NAMES = [
    "../../evil", "/etc/passwd", "..", ".", "...", "a/../../b", "~root/x", "C:\\Windows\\x",
    "\\\\host\\share", "..\\..\\evil", "a\0b", "n" * 5000, "é" * 300, "con", "NUL.txt", "lpt1", "-rf",
    "a\nb", " ", "$(id)", "`id`", "a;b", "<script>", ".hidden", "x.part", "\u202egpj.exe", "\ud800", "*",
    "?", "a:b", "%2e%2e%2f",
]  # fmt: skip


def is_plain(name: str) -> bool:
    """Whether it is a file name everywhere, and nothing else."""
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@+=-")
    return (
        0 < len(name) <= 90
        and set(name) <= allowed
        and not name.startswith((".", "-"))
        and name.split(".")[0].lower() not in ("con", "nul", "aux", "prn", "lpt1", "com1")
    )


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_become_file_names(tmp_path, name):
    store = Store(tmp_path / "out")
    for path in (store.part(name, name, 3, "0" * 64), store.result(name, name)):
        assert path.resolve().is_relative_to((tmp_path / "out").resolve())
        assert all(map(is_plain, path.relative_to(store.out).parts))
        write(result(SMALL), path, "digest")
        assert path.is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@given(st.text(), st.text())
def test_any_name_is_plain_and_two_names_stay_apart(one, other):
    assert is_plain(file_name(one))
    assert (file_name(one).lower() == file_name(other).lower()) == (one == other)


def plan(out: Path, **names: str) -> dict:
    model = {"name": "demo", "label": names.get("label", "demo")}
    prompts = {"name": names.get("prompts", "p"), "texts": ["A text."]}
    return {"out": out, "models": [model], "prompts": [prompts], "metrics": ["bos_norm"]}


@pytest.mark.demo
def test_a_sweep_of_hostile_names(tmp_path):
    """All of its files lie in its folder; in results the names stay as they were given."""
    out = tmp_path / "deep" / "out"
    found = mcr_lens.sweep(plan(out, label="../../../evil", prompts="..\\..\\evil"), progress=False)
    assert list(found.results) == ["../../../evil/..\\..\\evil"]
    every = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(every) == 3 and all(p.is_relative_to(out) for p in every)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize("place", ["results", "parts", "results/demo", "parts/demo", "parts/demo/p"])
def test_links_out_of_the_folder(tmp_path, place):
    """Somebody else put a link there: nothing is written through it, and nothing deleted behind it."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / place).parent.mkdir(parents=True)
    elsewhere.mkdir()
    inner = elsewhere / Path("demo/p/.x.part").relative_to(Path("demo/p" if place.count("/") > 1 else "."))
    inner.parent.mkdir(parents=True, exist_ok=True)
    inner.write_text("not ours")
    (out / place).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    with pytest.raises(SweepError, match=rf"is a link out of {out}, to {elsewhere}.*; take it away$"):
        mcr_lens.sweep(plan(out), progress=False)
    assert sorted(elsewhere.rglob("*")) == before and inner.read_text() == "not ours"


def test_a_folder_that_is_a_link_itself(tmp_path):
    """Where a sweep goes is the user's to say, a link included."""
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    path = Store(tmp_path / "out").result("demo", "p")
    write(result(SMALL), path, "digest")
    assert (tmp_path / "real" / "results" / "demo" / "p.nc").is_file()


def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path):
    """Not followed: what it led to stays as it is."""
    other, target = tmp_path / "other", tmp_path / "a.nc"
    other.write_text("not ours")
    target.symlink_to(other)
    mcr_lens.save(result(SMALL), target)
    assert other.read_text() == "not ours" and not target.is_symlink()
