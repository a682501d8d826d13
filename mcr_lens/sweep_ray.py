"""Who measures the parts of a sweep when one process is not enough? Ray workers, here or on other machines.

A worker keeps its model from part to part. The parts of a model go to the worker that has it loaded, those of
a model not yet begun to the next free one, and when all have begun the free ones help. The driver reads the
prompts and writes the files, so workers need no folder in common; they must find the models by name.
"""

import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mcr_lens._checks import first_line
from mcr_lens._optional import require
from mcr_lens.sweep_engines import Outcome, Task, Worker, versions
from mcr_lens.sweep_plan import Plan
from mcr_lens.sweep_store import SweepError

ATTEMPTS = 3
"""How often a part is tried when workers die over it."""

GIVEN_UP = (
    f"{ATTEMPTS} workers died over it (is the memory too small?); lower batch_size or workers, or leave "
    "these prompts out"
)


@dataclass
class _Seat:
    """A place for a worker: the actor in it, the group it works on, what it does now."""

    actor: Any
    ready: bool = False
    group: int | None = None
    task: Task | None = None


class RayEngine:
    """Workers that Ray starts: on this machine, or on the cluster at `address`.

    Raises:
        ImportError: ray is not installed.
        SweepError: too few GPUs, or workers with other versions than this process.
    """

    def __init__(self, plan: Plan, threads: int, worker: type = Worker) -> None:
        self._ray = require("ray", extra="ray")
        self._plan, self._threads, self._worker = plan, threads, worker
        self._gpus = 0.0
        self._seats: dict[Any, _Seat] = {}  # by the future that it owes
        self._again: list[tuple[int, Task]] = []  # tasks whose worker died, with their group
        self._deaths: dict[tuple[int, int], int] = {}

    def run(self, groups: Sequence[Iterator[Task]]) -> Iterator[Outcome]:
        """Outcomes as they come."""
        with self._cluster():
            queue = _Queue(groups)
            n_workers, self._gpus = self._sizes()
            self._seats = {}
            for _ in range(n_workers):
                self._seat(_Seat(None))
            try:
                while self._seats:
                    (future,), _ = self._ray.wait(list(self._seats), num_returns=1)
                    seat = self._seats.pop(future)
                    outcome = self._received(future, seat)
                    if outcome is not None:
                        yield outcome
                    if seat.ready:
                        self._employ(seat, queue)
                    else:
                        self._seat(seat)
            finally:
                for seat in self._seats.values():
                    self._ray.kill(seat.actor)

    def _seat(self, seat: _Seat) -> None:
        """Put a new worker into a place."""
        remote = self._ray.remote(self._worker).options(num_cpus=1, num_gpus=self._gpus)
        seat.actor, seat.ready = remote.remote(self._threads), False
        self._seats[seat.actor.versions.remote()] = seat

    def _employ(self, seat: _Seat, queue: "_Queue") -> None:
        """Give a free worker its next task, or let it go."""
        seat.group, seat.task = self._again.pop(0) if self._again else queue.next(seat.group)
        if seat.task is not None:
            self._seats[seat.actor.make.remote(self._placed(seat.task))] = seat
        # Without a task the worker is let go of: Ray ends an actor that nobody holds.

    def _placed(self, task: Task) -> Task:
        """A worker that was given no GPU takes none, whatever it may see."""
        model = task.model
        if self._gpus or model.device is not None or model.device_map is not None:
            return task
        return replace(task, model=replace(model, device="cpu"))

    def _received(self, future: Any, seat: _Seat) -> Outcome | None:
        task, seat.task = seat.task, None
        try:
            answer = self._ray.get(future)
        except self._ray.exceptions.RayActorError as error:
            seat.ready = False
            return self._died(task, seat, error)
        except self._ray.exceptions.RayTaskError as error:
            if task is None:
                raise SweepError(
                    f"a Ray worker could not start: {first_line(error.cause or error)}"
                ) from None
            return Outcome(task, error=first_line(error.cause or error))
        if task is None:
            self._check(answer)
            seat.ready = True
            return None
        return answer

    def _died(self, task: Task | None, seat: _Seat, error: Exception) -> Outcome | None:
        key = (-1, -1) if task is None else (task.job, task.number)
        self._deaths[key] = self._deaths.get(key, 0) + 1
        if self._deaths[key] < ATTEMPTS:
            if task is not None:
                self._again.append((seat.group or 0, task))
            return None
        if task is None:
            raise SweepError(f"Ray workers die before they begin ({first_line(error)})")
        return Outcome(task, error=GIVEN_UP)

    def _check(self, theirs: dict[str, str]) -> None:
        ours = versions()
        for package, version in ours.items():
            if theirs.get(package) != version:
                raise SweepError(
                    f"a Ray worker has {package} {theirs.get(package)} and this process {version}; install "
                    "the same versions on all machines"
                )

    def _sizes(self) -> tuple[int, float]:
        """How many workers, and how many GPUs for each."""
        there = self._ray.cluster_resources()
        cpus, gpus = int(there.get("CPU", 1)), there.get("GPU", 0.0)
        each = self._plan.gpus_per_worker
        if each is None:
            each = 1.0 if gpus and any(m.device != "cpu" for m in self._plan.models) else 0.0
        fitting = int(gpus // each) if each else max(1, cpus // self._threads)
        wanted = self._plan.workers or max(1, fitting)
        if each and fitting < wanted:
            raise SweepError(
                f"{wanted} workers with {each:g} GPUs each need more than the {gpus:g} GPUs there are; lower "
                "workers or gpus_per_worker"
            )
        if not each and cpus < wanted:
            raise SweepError(f"{wanted} workers need more than the {cpus} CPUs of the cluster; lower workers")
        return wanted, each

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """Ray as it runs already, at an address, or started for this sweep and stopped after it."""
        if self._ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._plan.address is None:
            cpus = max(os.cpu_count() or 1, self._plan.workers or 1)
            options |= {"include_dashboard": False, "num_cpus": cpus, "address": "local"}
        else:
            options |= {"address": self._plan.address}
            _check_reachable(self._plan.address)
        with warnings.catch_warnings():
            # Ray tells that workers without a GPU will see all of them; ours are told to take none.
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
            try:
                self._ray.init(**options)
            except Exception as error:  # a node that does not start in time is no more than that
                raise SweepError(f"Ray could not be started or reached: {first_line(error)}") from None
            try:
                yield
            finally:
                self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself knocks for minutes where nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" and the like
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise SweepError(
            f"Ray could not be reached at {address} ({first_line(error)}); start it there, or leave "
            "address out"
        ) from None


class _Queue:
    """Which task comes next for a worker that has the model of a group loaded?"""

    def __init__(self, groups: Sequence[Iterator[Task]]) -> None:
        self._groups = dict(enumerate(groups))
        self._begun: dict[int, int] = {}  # how many times somebody came for it

    def next(self, group: int | None) -> tuple[int | None, Task | None]:
        """The next task and its group; none when all are done."""
        while self._groups:
            at = self._choose(group)
            self._begun[at] = self._begun.get(at, 0) + (at != group)
            task = next(self._groups[at], None)
            if task is not None:
                return at, task
            del self._groups[at]
        return None, None

    def _choose(self, group: int | None) -> int:
        if group is not None and group in self._groups:
            return group
        fresh = [g for g in self._groups if g not in self._begun]
        return fresh[0] if fresh else min(self._groups, key=lambda g: self._begun[g])
