"""Who measures the parts of a sweep? This process, or Ray workers: the same worker, the same bits."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import xarray as xr

from mcr_lens._checks import first_line
from mcr_lens.comparison import compare
from mcr_lens.measurement import PromptWarning, measure
from mcr_lens.models import load_model
from mcr_lens.provenance import LOADED
from mcr_lens.running_moments import moments
from mcr_lens.serving import serve
from mcr_lens.sweep_plan import ModelPlan


@dataclass(frozen=True)
class Task:
    """One part: a model, a chunk of prompts, and how to measure them."""

    job: int
    number: int
    model: ModelPlan
    texts: list[str] = field(repr=False)
    options: dict[str, Any]
    conditions: dict[str, Any]
    keep: str


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a Dataset, or what went wrong."""

    task: Task
    ds: xr.Dataset | None = field(default=None, repr=False)
    error: str | None = None
    loading: bool = False  # whether the model could not be loaded, so that none of its parts can be made
    notes: tuple[tuple[str, type[Warning], str, int], ...] = ()


class Worker:
    """Measures parts and keeps the model that it loaded last."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._loaded: tuple[ModelPlan, Any] | None = None

    def versions(self) -> dict[str, str]:
        """What computes here."""
        return versions()

    def make(self, task: Task) -> Outcome:
        """Measure a part; whatever goes wrong is told, not raised."""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", PromptWarning)  # told once, of all parts together
            try:
                model = self._model(task.model)
            except Exception as error:
                return Outcome(task, error=first_line(error), loading=True)
            try:
                ds = measure_part(model, task)
            except Exception as error:
                return Outcome(task, error=first_line(error))
        notes = tuple((str(w.message), w.category, w.filename, w.lineno) for w in seen)
        return Outcome(task, ds, notes=notes)

    def _model(self, wanted: ModelPlan) -> Any:
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # before the next one is loaded: two may not fit
            _collect()
            self._loaded = (wanted, load(wanted))
        return self._loaded[1]


def load(plan: ModelPlan) -> Any:
    """The model of a plan, ready to be measured.

    Raises:
        ModelLoadError, CannotServeError: as `load_model` and `serve`.

    Source: this library.
    """
    if plan.model is not None:
        return plan.model
    place = {"device": plan.device} if plan.device_map is None else {"device_map": plan.device_map}
    options: dict[str, Any] = {"dtype": plan.dtype, "verbose": False, **place}
    if plan.commit or plan.revision:
        options["revision"] = plan.commit or plan.revision
    if plan.served:
        model = serve(plan.name, attention=plan.attention, **options)
    else:
        model = load_model(plan.name, **options)
    if plan.commit is not None:  # a result calls the revision by the name that it was asked for
        LOADED[model] |= {"revision": plan.revision or plan.commit, "commit": plan.commit}
    return model


def measure_part(model: Any, task: Task) -> xr.Dataset:
    """Measure a chunk, under all conditions, and reduce it to moments if nothing else is kept.

    Raises:
        As `measure` and `compare`.

    Source: this library.
    """
    if task.conditions:
        ds = compare(model, task.texts, task.conditions, progress=False, **task.options)
    else:
        ds = measure(model, task.texts, progress=False, **task.options)
    return moments(ds) if task.keep == "moments" else ds


def versions() -> dict[str, str]:
    """Versions of what makes the numbers.

    Source: this library.
    """
    from importlib.metadata import version

    return {name: version(name) for name in ("mcr-lens", "torch", "transformer-lens", "transformers")}


def _collect() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@runtime_checkable
class Engine(Protocol):
    """Makes tasks come true, in any order; takes the next one only when somebody is free for it."""

    def run(self, groups: Sequence[Iterator[Task]]) -> Iterator[Outcome]:
        """Outcomes of all tasks; a group holds those of one model."""
        ...


class LocalEngine:
    """One part after the other, in this process."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def run(self, groups: Sequence[Iterator[Task]]) -> Iterator[Outcome]:
        """Outcomes in the order of the tasks."""
        import torch

        before = torch.get_num_threads()
        worker = Worker(self._threads)
        try:
            for group in groups:
                for task in group:
                    yield worker.make(task)
        finally:
            torch.set_num_threads(before)
