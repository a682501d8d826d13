"""Do Ray workers give the bits of one process, and does a worker that dies cost no part?"""

import os

import pytest
import torch

import mcr_lens as mcr
from mcr_lens.sweep_engines import Outcome, Task
from mcr_lens.sweep_plan import ModelPlan, read_plan
from mcr_lens.sweep_store import SweepError
from sweeps.running import assert_same_bits

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mcr-lens[ray]'")
from mcr_lens import sweep_ray  # noqa: E402

pytestmark = [pytest.mark.demo, pytest.mark.once]

PLAN = {
    "metrics": ["norms", "sink_score", "matrix_entropy"], "chunk": 3,
    "models": ["demo", {"name": "demo", "label": "half", "dtype": "bfloat16"}],
    "prompts": [{"name": "a", "file": "demo", "limit": 10}, {"name": "b", "texts": ["One more.", "And one"]}],
    "conditions": {"clean": [], "cut": [{"kind": "zero_ablation", "site": "mlp_out", "layers": [0]}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """Ray as somebody else started it, so that a sweep must leave it running."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_two_workers_give_the_bits_of_one_process(tmp_path):
    """All results of a plan, attributes included, but for the time; what was started is stopped."""
    alone = mcr.sweep(PLAN, out=tmp_path / "alone", progress=False)
    both = mcr.sweep(PLAN, out=tmp_path / "both", progress=False, engine="ray", workers=2)
    assert not ray.is_initialized()
    assert list(alone.results) == list(both.results) == ["demo/a", "demo/b", "half/a", "half/b"]
    for name in alone.results:
        assert_same_bits(alone.results[name], both.results[name])
    # What one engine has begun, the other goes on with: their parts are the same.
    (tmp_path / "both" / "results" / "demo" / "a.nc").unlink()
    again = mcr.sweep(PLAN, out=tmp_path / "both", progress=False)
    assert (again.table.reused == again.table.parts).all()


def tasks(folder, n: int) -> list[Task]:
    model = ModelPlan("m", str(folder))
    return [Task(0, i, model, [f"text {i}"], {}, {}, "prompts") for i in range(n)]


def engine(worker, **changes) -> sweep_ray.RayEngine:
    given = {"out": "o", "models": ["demo"], "prompts": [{"name": "p", "texts": ["x"]}], "engine": "ray"}
    return sweep_ray.RayEngine(read_plan(given | {"workers": 2} | changes), 1, worker)


def dying_over(part: int, *, once: bool):
    """A worker that ends its process over one part: the first time, or always."""

    class Dying:
        def __init__(self, threads):
            pass

        def versions(self):
            from mcr_lens.sweep_engines import versions

            return versions()

        def make(self, task):
            from pathlib import Path

            deaths = Path(task.model.name)
            if task.number == part and not (once and list(deaths.iterdir())):
                (deaths / str(os.getpid())).touch()
                os._exit(1)
            return Outcome(task)

    return Dying


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(cluster, tmp_path):
    """Its part is measured by another; nothing is lost or made twice, and Ray still runs afterwards."""
    found = list(engine(dying_over(2, once=True)).run([iter(tasks(tmp_path, 6))]))
    assert sorted(o.task.number for o in found) == list(range(6))
    assert [o.error for o in found] == [None] * 6 and len(list(tmp_path.iterdir())) == 1
    assert ray.is_initialized()


@pytest.mark.slow
def test_a_part_that_kills_every_worker_is_given_up(cluster, tmp_path):
    """After three deaths the part is told as failed, and the others are made."""
    workers = engine(dying_over(1, once=False))
    found = {o.task.number: o.error for o in workers.run([iter(tasks(tmp_path, 4))])}
    assert found[1].startswith("3 workers died over it (is the memory too small?); lower batch_size or ")
    assert [found[i] for i in (0, 2, 3)] == [None] * 3 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
def test_workers_of_other_versions(cluster, tmp_path):
    """A machine with another torch would give other bits."""

    class Old:
        """Says that its torch is old."""

        def __init__(self, threads):
            pass

        def versions(self):
            from mcr_lens.sweep_engines import versions

            return versions() | {"torch": "1.0"}

    with pytest.raises(
        SweepError, match=rf"a Ray worker has torch 1\.0 and this process {torch.__version__[0]}"
    ):
        list(engine(Old).run([iter(tasks(tmp_path, 1))]))


def test_more_than_there_is(monkeypatch):
    """Asked for at once, before a worker waits for ever."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(SweepError, match="3 workers need more than the 2 CPUs of the cluster; lower workers"):
        list(engine(object, workers=3).run([]))
    with pytest.raises(SweepError, match="2 workers with 1 GPUs each need more than the 0 GPUs there are"):
        list(engine(object, gpus_per_worker=1).run([]))


def test_an_address_where_nothing_is(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(
        SweepError, match=r"Ray could not be reached at 127\.0\.0\.1:1 \(.*refused\); start it there"
    ):
        mcr.sweep(PLAN, out=tmp_path, progress=False, engine="ray", address="127.0.0.1:1")


def test_models_stay_with_their_worker():
    """A worker goes on with its model, begins a new one when that is done, and helps when all have begun."""
    three = tasks("a", 3)
    queue = sweep_ray._Queue([iter(three), iter(three[:2]), iter(three[:1])])
    assert queue.next(None) == (0, three[0])  # first worker
    assert queue.next(None) == (1, three[0])  # second worker
    assert queue.next(0) == (0, three[1]) and queue.next(1) == (1, three[1])
    assert queue.next(1) == (2, three[0])  # the second model is done, the third not begun
    assert queue.next(2) == (0, three[2])  # that is done too, so it helps
    assert queue.next(0) == (None, None)


def test_ray_is_asked_for_in_words(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(
        ImportError, match=r'needs ray, which is not installed: pip install "mcr-lens\[ray\]"'
    ):
        mcr.sweep(PLAN, out=tmp_path, progress=False, engine="ray")
