"""Do the same inputs give the same files, byte by byte, whatever hashes, folders and clocks are like?"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from handmade import result

import mcr_lens
from mcr_lens._netcdf import netcdf_bytes
from mcr_lens.provenance import describe

pytestmark = pytest.mark.once

SCRIPT = Path(__file__).with_name("writer.py")
FILES = {
    "out/result.nc", "out/conditions.nc", "out/close_up.nc", "out/verdicts.json", "out/report.html",
    "out/lens.nc", "out/lens.safetensors", "sweep/.lock", "sweep/results/demo/p.nc",
}  # fmt: skip


def started(folder: Path, seed: int) -> subprocess.Popen:
    folder.mkdir(parents=True)
    changed = {"PYTHONHASHSEED": str(seed), "SOURCE_DATE_EPOCH": "1700000000", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", SCRIPT], cwd=folder, env={**os.environ, **changed},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.demo
def test_two_processes_write_the_same_bytes(tmp_path):
    """Another hash seed, another folder: results, verdicts, pages, lenses, parts of sweeps are the same."""
    pytest.importorskip("plotly"), pytest.importorskip("circuitsvis")
    folders = [tmp_path / "one", tmp_path / "another" / "deeper"]
    running = [started(folder, seed) for seed, folder in enumerate(folders, start=1)]
    for process in running:
        _, said = process.communicate(timeout=280)
        assert process.returncode == 0, said
    one, other = (
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders
    )
    assert set(one) == set(other)
    parts = {name for name in one if name.startswith("sweep/parts/demo/p/")}
    assert set(one) - parts == FILES and len(parts) == 2
    assert [name for name in one if one[name] != other[name]] == []
    ds = mcr_lens.load(folders[0] / "out" / "result.nc")
    assert ds.attrs["created"] == "2023-11-14T22:13:20+00:00"


def test_only_the_time_differs_without_a_fixed_clock(llama, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    rows = torch.randint(3, 128, (3, 9), generator=torch.Generator().manual_seed(0))
    one, other = (mcr_lens.measure(llama, rows, progress=False) for _ in range(2))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", one.attrs["created"])
    one.attrs["created"] = other.attrs["created"] = "then"
    assert bytes(netcdf_bytes(one)) == bytes(netcdf_bytes(other))


@pytest.mark.parametrize("given", ["yesterday", "1e9", "9" * 30])
def test_a_clock_that_is_none(llama, monkeypatch, given):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", given)
    with pytest.raises(
        ValueError, match=rf"^SOURCE_DATE_EPOCH='{given}' in the environment: set it to seconds"
    ):
        describe(llama)


def test_a_lens_is_the_same_file_each_time(tmp_path):
    """By itself, safetensors draws the order of the names in its header anew each time."""
    training = {"steps": 3, "model": "ünïcode"}
    lens = mcr_lens.TunedLens(torch.ones(2, 4, 4), torch.zeros(2, 4), training)
    files = {lens.save(tmp_path / f"{i}.safetensors").read_bytes() for i in range(20)}
    assert len(files) == 1
    again = mcr_lens.TunedLens.load(tmp_path / "0.safetensors")
    assert again.training == training and torch.equal(again.weight, lens.weight)


def test_what_is_read_and_written_again_is_the_same_file(tmp_path):
    """A file is a function of the result alone, not of the file that the result came from."""
    first = mcr_lens.save(result(), tmp_path / "a.nc")
    second = mcr_lens.save(mcr_lens.load(first), tmp_path / "b.nc")
    third = mcr_lens.save(mcr_lens.load(second), tmp_path / "c.nc")
    assert second.read_bytes() == third.read_bytes()
    assert mcr_lens.load(first).identical(mcr_lens.load(third))
