"""Many models on many prompts, part by part: what is finished stays finished, whatever happens.

A part is one model at one revision on one chunk of prompts, under all conditions. Results are put together in
the order of the prompts, never in the order of completion: who measured what makes no difference.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from mcr_lens._checks import as_shown, first_line
from mcr_lens.conditions import condition, condition_names, join_conditions
from mcr_lens.measurement import PromptWarning
from mcr_lens.plan_tables import nearest
from mcr_lens.prompt_sources import in_chunks, texts_digest
from mcr_lens.results import merge
from mcr_lens.running_moments import merge_stream
from mcr_lens.sweep_engines import Engine, LocalEngine, Outcome, Task
from mcr_lens.sweep_identity import prepared, settings
from mcr_lens.sweep_plan import ModelPlan, Plan, PromptPlan, read_plan
from mcr_lens.sweep_store import CHECKSUM, DIGEST, Store, SweepError, SweepWarning, digest_of, read, write

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    plan: str | os.PathLike[str] | Mapping[str, Any],
    *,
    progress: bool | Callable[[str], None] = True,
    **changes: Any,
) -> "SweepResult":
    """Measure models × revisions × prompt sets × conditions, and go on where the last run stopped.

    Every finished part is a whole file in the folder `out` of the plan; a sweep that was stopped, by
    whatever, is started again with the same words and measures what is missing. A part is used again only if
    model, prompts, options and versions are the same. One model that fails does not stop the others.

    Args:
        plan: path of a TOML file, or a mapping with the same keys; see `examples/sweep_plan.toml`.
        progress: whether to show a bar; or a function that gets a line for every finished result.
        changes: keys of the plan with other values, such as engine="ray", workers=2.

    Warns:
        SweepWarning: a damaged file, which is made anew.
        PromptWarning: prompts that were cut, are too short, or come twice, once for every result.

    Raises:
        ValueError, TypeError, FileNotFoundError: what is wrong with the plan, before anything is measured.
        SweepError: another sweep writes there, or some results could not be finished (after all others are).
        ImportError: engine="ray" without ray.
        OSError: the folder cannot be written.

    Source: this library.
    """
    made = read_plan(plan, changes)
    with Store(made.out).held() as store:
        return _Run(made, store, progress).go()


class SweepResult:
    """What a sweep has measured: `table`, a row for each result, and `results`, which loads them by name."""

    def __init__(self, out: Path, table: "pd.DataFrame") -> None:
        self.out: Path = out
        self.table: pd.DataFrame = table
        self.results: Mapping[str, xr.Dataset] = Results(table)

    def __repr__(self) -> str:
        done = int(self.table.done.sum())
        return f"SweepResult({done} of {len(self.table)} results in {self.out}; see .table and .results)"


class Results(Mapping[str, xr.Dataset]):
    """Finished results by name, MODEL@REVISION/PROMPTS; each is read from its file when it is asked for.

    Raises:
        KeyError: no such result, or one that is not finished.
        ValueError: its file was damaged since.
    """

    def __init__(self, table: "pd.DataFrame") -> None:
        rows: list[Any] = table.loc[table.done].to_dict("records")
        self._files = {str(row["name"]): Path(row["path"]) for row in rows}

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in self._files:
            raise KeyError(
                f"no result {as_shown(name)}; {nearest(name, self._files)}there are {', '.join(self._files)}"
            )
        return read(self._files[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass
class _Job:
    """One result to be: a model on a set of prompts."""

    index: int
    model: ModelPlan
    prompts: PromptPlan
    path: Path
    about: dict[str, Any] = field(default_factory=dict)
    parts: list[tuple[Path, str]] = field(default_factory=list)
    n_prompts: int = 0
    reused: int = 0
    waiting: int = 0
    exhausted: bool = False
    done: bool = False
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.model.title}/{self.prompts.name}"

    @property
    def digest(self) -> str:
        return digest_of([digest for _, digest in self.parts])


class _Run:
    def __init__(self, plan: Plan, store: Store, progress: bool | Callable[[str], None]) -> None:
        from tqdm.auto import tqdm

        self._plan, self._store = plan, store
        self._settings = settings(plan)
        self._options = {
            "metrics": list(plan.metrics), "batch_size": plan.batch_size, "max_length": plan.max_length,
            "prepend_bos": plan.prepend_bos, "position": plan.position,
        }  # fmt: skip
        pairs = [(m, p) for m in plan.models for p in plan.prompts]
        self._jobs = [_Job(i, m, p, store.result(m.title, p.name)) for i, (m, p) in enumerate(pairs)]
        self._say = progress if callable(progress) else None
        self._bar: Any = tqdm(
            unit="prompt", disable=progress is not True, delay=1, leave=False, file=sys.stderr
        )
        self._told: set[str] = set()

    def go(self) -> SweepResult:
        width = len(self._plan.prompts)
        groups = [self._tasks(self._jobs[i : i + width]) for i in range(0, len(self._jobs), width)]
        with self._bar:
            for outcome in self._engine().run(groups):
                self._receive(outcome)
                self._finish()
            self._finish()
        result = SweepResult(self._plan.out, self._table())
        failed = [job for job in self._jobs if not job.done]
        if failed:
            error = SweepError(
                f"{len(failed)} of {len(self._jobs)} results are not finished, the first of them "
                f"{failed[0].name}: {failed[0].error}; what is finished is kept in {self._plan.out}"
            )
            error.result = result
            raise error
        return result

    def _engine(self) -> Engine:
        import torch

        threads = self._plan.threads or torch.get_num_threads()
        if self._plan.engine == "local":
            return LocalEngine(threads)
        from mcr_lens.sweep_ray import RayEngine

        return RayEngine(self._plan, threads)

    def _tasks(self, jobs: list[_Job]) -> Iterator[Task]:
        """The parts of one model that are not there yet, made one by one as somebody asks for them."""
        try:
            model, about = prepared(jobs[0].model)
        except Exception as error:  # of one model, which need not stop the others
            for job in jobs:
                job.error = first_line(error)
            return
        for job in jobs:
            job.about = {"model": about, **self._settings}
            try:
                if job.error is None and not self._is_finished(job):
                    yield from self._missing(job, model)
            except (ValueError, TypeError, OSError, ImportError) as error:  # of the prompts
                job.error = first_line(error)

    def _chunks(self, job: _Job) -> Iterator[tuple[int, list[str], Path, str]]:
        """Chunks of prompts with their file and digest, noted down in the job."""
        job.parts, job.n_prompts, job.reused = [], 0, 0
        source = in_chunks(job.prompts.source, self._plan.chunk, job.prompts.limit)
        for number, texts in enumerate(source):
            digest = digest_of(job.about, texts_digest(texts))
            path = self._store.part(job.model.title, job.prompts.name, number, digest)
            job.parts.append((path, digest))
            job.n_prompts += len(texts)
            yield number, texts, path, digest
        if not job.parts:
            raise ValueError("there are no prompts; name a file or dataset that holds some")

    def _is_finished(self, job: _Job) -> bool:
        """Whether the result is there and was made from the very same."""
        if not job.path.is_file():
            return False
        for _ in self._chunks(job):
            pass
        job.done = self._is_whole(job.path, job.digest)
        if job.done:
            job.reused = len(job.parts)
            self._advance(job, job.n_prompts)
            self._tell(f"{job.name}: {job.n_prompts} prompts, finished before")
        return job.done

    def _missing(self, job: _Job, model: ModelPlan) -> Iterator[Task]:
        for number, texts, path, digest in self._chunks(job):
            if job.error is not None:
                return
            if path.is_file() and self._is_whole(path, digest):
                job.reused += 1
                self._advance(job, len(texts))
                continue
            job.waiting += 1
            yield Task(
                job.index, number, model, texts, self._options, dict(self._plan.conditions), self._plan.keep
            )
        job.exhausted = True

    def _is_whole(self, path: Path, digest: str) -> bool:
        try:
            ds = read(path)
        except ValueError as error:
            warnings.warn(f"{error}; it is made anew", SweepWarning, stacklevel=2)
            return False
        return ds.attrs.get(DIGEST) == digest  # otherwise it is of an earlier plan

    def _receive(self, outcome: Outcome) -> None:
        job = self._jobs[outcome.task.job]
        for text, category, file, line in outcome.notes:
            if text not in self._told:
                self._told.add(text)
                warnings.warn_explicit(text, category, file, line)
        job.waiting -= 1
        if outcome.ds is not None:
            path, digest = job.parts[outcome.task.number]
            write(outcome.ds, path, digest)
            self._advance(job, len(outcome.task.texts))
            return
        first = outcome.task.number * self._plan.chunk
        where = f"in prompts {first} to {first + len(outcome.task.texts) - 1}, counted from 0: "
        for other in self._jobs if outcome.loading else [job]:
            if other.model == job.model and not other.done and other.error is None:
                other.error = f"{'' if outcome.loading else where}{outcome.error}"

    def _finish(self) -> None:
        """Put together what has become complete."""
        for job in self._jobs:
            if job.done or job.error is not None or not job.exhausted or job.waiting:
                continue
            try:
                ds = self._joined(job)
            except ValueError as error:
                job.error = f"{first_line(error)}; run the sweep again"
                continue
            write(ds, job.path, job.digest)
            job.done = True
            _warn(job, ds, asked=self._plan.max_length is not None)
            self._tell(f"{job.name}: {job.n_prompts} prompts → {job.path}")

    def _joined(self, job: _Job) -> xr.Dataset:
        parts = (read(path, digest) for path, digest in job.parts)
        ds = merge_stream(parts) if self._plan.keep == "moments" else merge_parts(parts)
        kept = {k: v for k, v in ds.attrs.items() if k not in (DIGEST, CHECKSUM)}
        ds.attrs = {**kept, "prompt_set": job.prompts.name}
        return ds

    def _advance(self, job: _Job, n: int) -> None:
        self._bar.set_description(job.name, refresh=False)
        self._bar.update(n)

    def _tell(self, line: str) -> None:
        if self._say is not None:
            self._say(line)

    def _table(self) -> "pd.DataFrame":
        import pandas as pd

        rows = [
            {
                "name": job.name, "model": job.model.label, "revision": job.model.revision or "",
                "prompts": job.prompts.name, "n_prompts": job.n_prompts, "parts": len(job.parts),
                "reused": job.reused, "done": job.done, "path": str(job.path),
                "error": job.error or "",
            }
            for job in self._jobs
        ]  # fmt: skip
        return pd.DataFrame(rows)


def merge_parts(parts: Iterable[xr.Dataset]) -> xr.Dataset:
    """Results of consecutive prompts as one, whether they hold one condition or several; prompts may repeat.

    Raises:
        ResultSchemaError: as `merge`.

    Source: this library.
    """
    every = list(parts)
    if "condition" not in every[0].dims:
        return merge(*every, repeated=True)
    names = condition_names(every[0])
    merged = {n: merge(*(condition(p, n) for p in every), repeated=True) for n in names}
    joined = join_conditions(merged)
    joined.attrs.pop("condition", None)  # the name of the first
    return joined


def _warn(job: _Job, ds: xr.Dataset, *, asked: bool) -> None:
    """What `measure` says about prompts, once for all parts."""
    if "prompt" in ds.dims:
        cut, single = int(ds.truncated.sum()), int((ds.n_tokens == 1).sum())
        twice = ds.sizes["prompt"] - len(set(ds.prompt_hash.values.tolist()))
    else:
        cut, single, twice = int(ds.attrs["n_truncated"]), int(ds.attrs["n_single_token"]), 0
    notes = {
        "were longer than the model's context and were cut": 0 if asked else cut,
        "have a single token, so that whatever compares it with others is NaN": single,
        "come more than once and are counted each time": twice,
    }
    for what, n in notes.items():
        if n:
            warnings.warn(f"{job.name}: {n} of {job.n_prompts} prompts {what}", PromptWarning, stacklevel=2)
