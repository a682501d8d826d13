"""What is to be measured in a sweep? A TOML file or a mapping, read into values that cannot change."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from mcr_lens._checks import as_shown, path_of
from mcr_lens.intervention_tables import read_intervention
from mcr_lens.interventions import Intervention
from mcr_lens.metrics._registry import select
from mcr_lens.plan_tables import Table, kind_of, read_toml
from mcr_lens.prompt_files import FIELD
from mcr_lens.prompt_sources import DatasetPrompts, FilePrompts, Source, TextPrompts

BUNDLED = "demo"
"""Name of the model, and of the prompt file, that come with the package."""

KEYS = (
    "out", "models", "prompts", "conditions", "metrics", "batch_size", "max_length", "prepend_bos",
    "position", "keep", "chunk", "engine", "workers", "gpus_per_worker", "threads", "address",
)  # fmt: skip
MODEL_KEYS = ("name", "label", "revisions", "dtype", "device", "device_map", "served", "attention", "model")
PROMPT_KEYS = (
    "name", "file", "dataset", "texts", "field", "limit", "config", "split", "revision", "streaming",
)  # fmt: skip
OF_LOADING = ("dtype", "device", "device_map", "served")
OF_DATASETS = ("config", "split", "revision", "streaming")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelPlan:
    """One model at one revision; `model` is one in memory, or a function that loads it."""

    label: str
    name: str
    revision: str | None = None
    dtype: str = "float32"
    device: str | None = None
    device_map: Any = None
    served: bool = False  # as `mcr_lens.serve` loads it, with this attention
    attention: str | None = None
    model: Any = field(default=None, repr=False)
    commit: str | None = None  # what the revision of a hub model meant when the sweep began

    @property
    def title(self) -> str:
        """What it is called in results: label@revision."""
        return self.label if self.revision is None else f"{self.label}@{self.revision}"


@dataclass(frozen=True)
class PromptPlan:
    """A named set of prompts, at most `limit` of them."""

    name: str
    source: Source = field(repr=False)
    limit: int | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that `sweep` does; made by `read_plan`."""

    out: Path
    models: tuple[ModelPlan, ...]
    prompts: tuple[PromptPlan, ...]
    conditions: Mapping[str, tuple[Intervention, ...]]
    metrics: tuple[str, ...]
    batch_size: int | Literal["auto"] = "auto"
    max_length: int | None = None
    prepend_bos: bool | Literal["auto"] = "auto"
    position: int = 0
    keep: Literal["prompts", "moments"] = "prompts"
    chunk: int = 256
    engine: Literal["local", "ray"] = "local"
    workers: int | None = None
    gpus_per_worker: float | None = None
    threads: int | None = None
    address: str | None = None


def read_plan(
    plan: str | os.PathLike[str] | Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> Plan:
    """Read a plan from a TOML file or a mapping with the same keys; `changes` take the place of its keys.

    Paths of a file are relative to its folder, those of a mapping and of `changes` to the working folder.

    Raises:
        FileNotFoundError: no such plan, or a prompt file that is not there.
        ValueError: not TOML, an unknown key (the nearest is suggested), or a value that is not allowed.
        UnknownMetricError: no such metric.

    Source: this library.
    """
    if changes is not None and not isinstance(changes, Mapping):
        raise TypeError(f"changes came as {type(changes).__name__}; pass a mapping from keys to values")
    changes = dict(changes or {})
    if isinstance(plan, Mapping):
        where, base, given = "plan", Path.cwd(), dict(plan)
    elif isinstance(plan, str | os.PathLike):
        path = path_of(plan)
        where, base = str(path), path.absolute().parent
        given = read_toml(path)
    else:
        raise TypeError(f"a plan is the path of a TOML file or a mapping, got {type(plan).__name__}")
    if "out" in changes:
        changes["out"] = str(Path(Table("sweep", changes, KEYS).text("out") or "").absolute())
    top = Table(where, given | changes, KEYS)
    engine = top.one_of("engine", ("local", "ray"), "local")
    for key in ("workers", "gpus_per_worker", "address"):
        if engine == "local" and top.has(key):
            raise top.wrong(key, 'it is for the engine ray; say engine = "ray" or leave it out')
    models = tuple(m for t in top.tables("models", MODEL_KEYS) for m in _models(t, base, engine))
    prompts = tuple(_prompts(t, base, engine) for t in top.tables("prompts", PROMPT_KEYS))
    _refuse_twins(where, "models", [m.title for m in models], "give one of them a label of its own")
    _refuse_twins(where, "prompts", [p.name for p in prompts], "give one of them another name")
    names = [f"{m.title}/{p.name}" for m in models for p in prompts]
    _refuse_twins(where, "results", names, "give a model or its prompts another name")
    return Plan(
        out=base / Path(top.needed("out")).expanduser(),
        models=models,
        prompts=prompts,
        conditions=_conditions(top),
        metrics=_metrics(top, engine),
        batch_size=top.number("batch_size", or_word="auto") if top.has("batch_size") else "auto",
        max_length=top.number("max_length"),
        prepend_bos=_bos(top),
        position=top.number("position", least=0) or 0,
        keep=top.one_of("keep", ("prompts", "moments"), "prompts"),
        chunk=top.number("chunk") or 256,
        engine=engine,
        workers=top.number("workers"),
        gpus_per_worker=top.real("gpus_per_worker"),
        threads=top.number("threads"),
        address=top.text("address"),
    )


def _models(table: Table, base: Path, engine: str) -> list[ModelPlan]:
    name, model = table.needed("name"), table.given.get("model")
    if model is not None and engine != "local":
        raise ValueError(
            f"{table.where}: a model in memory cannot be sent to Ray workers; name one that they can load"
        )
    folder = base / Path(name).expanduser()
    local = model is None and name != BUNDLED and folder.is_dir()
    revisions = table.given.get("revisions")
    if revisions is not None:
        fine = isinstance(revisions, Sequence) and not isinstance(revisions, str) and revisions
        if not fine or not all(isinstance(r, str) and r.strip() for r in revisions):
            raise table.wrong("revisions", 'pass a list of one or more names, such as ["step1000", "main"]')
        if model is not None or local or name == BUNDLED:
            raise table.wrong(
                "revisions", f"{as_shown(name)} is no hub model, so it has none; leave them out"
            )
    if table.has("device") and table.has("device_map"):
        raise table.wrong("device", "pass device or device_map, not both")
    chart = table.given.get("device_map")
    if chart is not None and not (isinstance(chart, str | Mapping) and chart):
        raise table.wrong("device_map", 'pass "auto" or a table from module to device')
    if model is not None and any(table.has(k) for k in (*OF_LOADING, "attention")):
        raise ValueError(
            f"{table.where}: a model in memory is loaded already; leave {', '.join(OF_LOADING)} out"
        )
    served = table.flag("served", False)
    if table.has("attention") and not served:
        raise table.wrong(
            "attention", "it is for models as they are served; say served = true or leave it out"
        )
    return [
        ModelPlan(
            label=table.text("label") or name,
            name=str(folder.resolve()) if local else name,
            revision=revision,
            dtype=table.one_of("dtype", DTYPES, "float32"),
            device=table.text("device"),
            device_map=dict(chart) if isinstance(chart, Mapping) else chart,
            served=served,
            attention=table.text("attention"),
            model=model,
        )
        for revision in (revisions or [None])
    ]


def _prompts(table: Table, base: Path, engine: str) -> PromptPlan:
    name = table.needed("name")
    chosen = [key for key in ("file", "dataset", "texts") if table.has(key)]
    if len(chosen) != 1:
        what = " and ".join(chosen) if chosen else "none"
        raise ValueError(f"{table.where}: pass one of file, dataset and texts, got {what}")
    for key in (*OF_DATASETS, "field"):
        if table.has(key) and chosen != ["dataset"] and not (key == "field" and chosen == ["file"]):
            raise table.wrong(key, f"it has no meaning for {chosen[0]}; leave it out")
    return PromptPlan(name, _source(table, chosen[0], base), table.number("limit"))


def _source(table: Table, kind: str, base: Path) -> Source:
    if kind == "file":
        file = table.needed("file")
        if file == BUNDLED:
            if (base / BUNDLED).is_file():
                raise table.wrong(
                    "file", f"it names the bundled prompts; for {base / BUNDLED} write ./{BUNDLED}"
                )
            return FilePrompts(str(files("mcr_lens").joinpath("demo/prompts.txt")))
        path = base / Path(file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{table.where}: {path} is not a file")
        return FilePrompts(str(path), table.text("field"))
    if kind == "dataset":
        folder = base / Path(table.needed("dataset")).expanduser()
        name = str(folder.resolve()) if folder.is_dir() else table.needed("dataset")
        return DatasetPrompts(
            name, table.text("config"), table.text("split") or "train", table.text("field") or FIELD,
            table.text("revision"), table.flag("streaming", True),
        )  # fmt: skip
    texts: Any = table.given["texts"]
    if callable(texts):
        make: Any = texts
        return TextPrompts(make)
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        advice = "pass a list of texts, or a function that makes them anew for each reading"
        raise ValueError(f"{table.where}: texts is {kind_of(texts)}; {advice}")
    source = TextPrompts(tuple(texts))
    try:
        list(source)
    except ValueError as error:
        raise ValueError(f"{table.where}: {error}") from None
    return source


def _conditions(top: Table) -> dict[str, tuple[Intervention, ...]]:
    """Conditions by name; none at all where there is only the model as it is."""
    given = top.given.get("conditions")
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        what = "empty" if isinstance(given, Mapping) else kind_of(given)
        raise ValueError(f"{top.where}: conditions is {what}; write a table [conditions] from names to lists")
    found: dict[str, tuple[Intervention, ...]] = {}
    for name, edits in given.items():
        where = f"{top.where}: condition {as_shown(name)}"
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: a condition needs a name")
        made = [edits] if isinstance(edits, Mapping | Intervention) else edits
        if isinstance(made, str) or not isinstance(made, Sequence):
            raise ValueError(
                f"{where} is {kind_of(edits)}; write a list of interventions, or [] for the model as it is"
            )
        try:
            found[name] = tuple(e if isinstance(e, Intervention) else read_intervention(e) for e in made)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return {} if len(found) == 1 and not any(found.values()) else found


def _metrics(top: Table, engine: str) -> tuple[str, ...]:
    """Names of metrics; None stands for the default ones."""
    given = top.given.get("metrics")
    names = [given] if isinstance(given, str) else given
    if names is not None and (not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names)):
        raise top.wrong(
            "metrics", "pass a list of names or groups; functions need a name by @mcr_lens.metric"
        )
    if names is not None and not names:
        raise top.wrong("metrics", "pass at least one name or group, or leave it out")
    chosen = select(names)
    own = [m.name for m in chosen if not m.function.__module__.startswith("mcr_lens.")]
    if own and engine == "ray":
        raise ValueError(
            f"{top.where}: the metric {own[0]!r} is not part of mcr_lens, so Ray workers do not know it; "
            'leave it out or say engine = "local"'
        )
    return tuple(m.name for m in chosen)


def _bos(top: Table) -> Any:
    value = top.given.get("prepend_bos", "auto")
    if not isinstance(value, bool) and value != "auto":
        raise top.wrong("prepend_bos", 'pass "auto", true or false')
    return value


def _refuse_twins(where: str, key: str, names: Sequence[str], advice: str) -> None:
    twins = [name for i, name in enumerate(names) if name in names[:i]]
    if twins:
        raise ValueError(f"{where}: two of the {key} are called {as_shown(twins[0])}; {advice}")
