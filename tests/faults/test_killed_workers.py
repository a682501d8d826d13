"""Does a sweep end with the bits of one process when Ray's workers are killed? Which part kills them?"""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from sweeps.running import assert_same_bits

import mcr_lens as mcr
from mcr_lens.sweep_engines import Worker
from mcr_lens.sweep_store import SweepError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mcr-lens[ray]'")
from mcr_lens import sweep_ray

pytestmark = [pytest.mark.demo, pytest.mark.slow]

TEXTS = [f"Sentence number {i} has its own end." for i in range(6)]


def plan(out: Path, **changes) -> dict:
    return {
        "out": out, "metrics": ["bos_norm", "sink_score"], "chunk": 2, "models": ["demo"],
        "prompts": [{"name": "s", "texts": TEXTS}], **changes,
    }  # fmt: skip


def killed_over(part: int, marks: Path, times: int) -> type:
    """A worker that is killed while it measures one part, so many times; otherwise the ordinary one."""

    class Killed(Worker):
        def make(self, task):
            if task.number == part and len(list(marks.iterdir())) < times:
                (marks / str(os.getpid())).touch()
                super().make(task)  # the work is done, and lost
                os.kill(os.getpid(), signal.SIGKILL)
            return super().make(task)

    return Killed


def test_killed_workers_cost_no_part_and_change_no_bit(tmp_path, monkeypatch):
    """Two workers are killed over the same part; a third measures it, with the bits of one process."""
    alone = mcr.sweep(plan(tmp_path / "alone"), progress=False).results["demo/s"]
    marks = tmp_path / "marks"
    marks.mkdir()
    worker = killed_over(1, marks, times=2)
    monkeypatch.setattr(sweep_ray, "RayEngine", partial(sweep_ray.RayEngine, worker=worker))
    found = mcr.sweep(plan(tmp_path / "ray", engine="ray", workers=2), progress=False)
    assert len(list(marks.iterdir())) == 2 and found.table.done.all()
    assert_same_bits(alone, found.results["demo/s"])


def test_a_part_that_always_kills_is_named(tmp_path, monkeypatch):
    """After three deaths the sweep ends with a sentence that says which prompts; the other parts are kept."""
    marks = tmp_path / "marks"
    marks.mkdir()
    worker = killed_over(1, marks, times=100)
    monkeypatch.setattr(sweep_ray, "RayEngine", partial(sweep_ray.RayEngine, worker=worker))
    with pytest.raises(SweepError) as seen:
        mcr.sweep(plan(tmp_path / "out", engine="ray", workers=2), progress=False)
    assert str(seen.value) == (
        "1 of 1 results are not finished, the first of them demo/s: in prompts 2 to 3, counted from 0: 3 "
        "workers died over it (is the memory too small?); lower batch_size or workers, or leave these "
        f"prompts out; what is finished is kept in {tmp_path / 'out'}"
    )
    assert len(list(marks.iterdir())) == sweep_ray.ATTEMPTS == 3
    assert len(list((tmp_path / "out" / "parts" / "demo" / "s").glob("*.nc"))) == 2
    assert not list((tmp_path / "out").rglob(".*.part"))
