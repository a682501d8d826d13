"""Which calls are made? Every public function, with arguments by the names of its parameters."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np
import torch
from world import PLAN, TEXTS, World

import mcr_lens as mcr
from fuzz import values as v
from mcr_lens.prompt_files import read_prompt_file
from mcr_lens.sweep_plan import read_plan

ODD, GIVEN = 0.12, 0.5
"""How often a value is one that the parameter does not take; how often an optional one is given at all."""

POOLS: dict[str, v.Make] = {
    "model": v.models,
    "prompts": v.prompts,
    "prompt": v.text,
    "texts": v.prompts,
    "test_texts": v.prompts,
    "train_texts": v.prompts,
    "metrics": v.of(None, "norms", "sinks", "all", "loss", ["bos_norm", "sink_score"]),
    "ds": v.dataset,
    "closeup": v.dataset,
    "close_up": v.dataset,
    "results": v.dataset,
    "null": v.dataset,
    "embedding": partial(v.dataset, kinds=v.READOUTS),
    "generation": partial(v.dataset, kinds=v.READOUTS),
    "readouts": partial(v.dataset, kinds=v.READOUTS),
    "parts": partial(v.dataset, kinds=("moments", "ds")),
    "values": v.array,
    "a": v.array,
    "b": v.array,
    "arrays": v.of([1.0, 2.0, 4.0], [0.0], [[1.0, 2.0], [3.0, 4.0]]),
    "function": v.of(lambda *x: float(x[0].size), lambda *x: float("nan"), lambda *x: None),
    "complexity": v.of(None, [1.0, 2.0, 3.0], [1, 2, 3, 4, 5, 6], ["a", "b", "c"]),
    "interventions": v.intervention,
    "condition": v.intervention,
    "cut": v.intervention,
    "conditions": v.conditions,
    "site": v.of(*v.SITES),
    "layers": v.of(0, 1, [0, 3], 4),
    "layer": v.of(0, 1, 3, 4),
    "depth": v.of(None, 0, 4, 5),
    "positions": v.of(*v.PLACES),
    "position": v.of(0, 1, 2),
    "heads": v.of(None, 0, [1, 2], [(1, 0)], 4),
    "source": v.of(0, 1),
    "factor": v.of(0, 0.5, 1e30),
    "factors": v.of((1.0, 0.0), (2.0,)),
    "limit": v.of(None, 1, 5),
    "vector": v.of(None, [1.0] * 32, [0.0] * 8),
    "direction": v.of([1.0] * 32, [0.0] * 32, torch.ones(8)),
    "norm": v.of(None, 0, 2.5),
    "tokens": v.of(5, "a", 127, 0),
    "seed": v.of(0, 1, 12345),
    "seeds": v.of(1, 2, (0, 1)),
    "kind": v.of("initialised", "shuffled"),
    "count": v.of(1, 2, 4),
    "top": v.of(1, 3, 100),
    "shown": v.of(0, 1),
    "level": v.of(0.95, 0.5),
    "resamples": v.of(100, 150),
    "threshold": v.of(0.0, 0.3, 1.0),
    "ratio": v.of(1.5, 10.0),
    "valley": v.of(0.05, 0.2, 0.99),
    "drop": v.of(0.01, 0.08),
    "rate": v.of(0.1, 1.0),
    "rounding": v.of(None, 0, 1e-9),
    "absolute": v.of(0, 100),
    "min_mass": v.of(0.0, 0.05, 1),
    "thresholds": v.of(None, [0.3], [0, 0.5, 1]),
    "variable": v.of("sink_score", "strongest_sink_score", "matrix_entropy", "bos_norm", "sink_identity"),
    "variables": v.of(None, "bos_norm", ["matrix_entropy", "sink_rate"], "accuracy", ["cross_entropy"]),
    "names": v.of("bos_norm", "sink_score"),
    "by": v.of("rank", "tokens", "width"),
    "stat": v.of("max_colsum"),
    "statistic": v.of("mean", "sd", "count"),
    "baseline": v.of("clean", "cut"),
    "batch_size": v.of("auto", 1, 2),
    "max_length": v.of(None, 5, 64),
    "max_tokens": v.of(4, 64),
    "prepend_bos": v.of("auto", True, False),
    "tokenizer": v.tokenizer,
    "labels": v.labels,
    "test_labels": v.labels,
    "pooling": v.of("mean", "last", ["bos"]),
    "pairs": lambda rng, w: rng.choice([v.PAIRS, v.PAIRS[:3], [(v.text(rng, w), " b")]]),
    "scores": v.of(v.SCORES, None),
    "items": v.of(*v.RECORDS_AND_ITEMS),
    "lens": v.lens,
    "style": v.of(None, "query"),
    "task": v.of("a task"),
    "test_share": v.of(0.2, 0.5),
    "validation_share": v.of(0.2, 0.5),
    "train_share": v.of(0.5, 0.8),
    "steps": v.of(1, 2),
    "tokens_per_step": v.of(8, 64),
    "learning_rate": v.of(0.003, 1e3),
    "window": v.of(None, 8, 64),
    "weight_decay": v.of(0.0, 0.1),
    "held_out": v.of(0.1, 0.5),
    "stride": v.of(None, 4, 16),
    "target": v.of(0.5, 1),
    "embedding_score": v.of(None, "accuracy"),
    "generation_score": v.of(None, "cross_entropy", "accuracy"),
    "phases": v.of(None, "auto"),
    "attention_mask": v.of(None, torch.ones(2, 3)),
    "wanted": v.of(None),
    "checkpoints": lambda rng, w: {1: w.llama, rng.choice([2, 2, -1]): w.llama},
    "revisions": v.of(None, ["a"]),
    "dtype": v.of(None, "float32", "bfloat16"),
    "device": v.of(None, "cpu"),
    "device_map": v.of(None),
    "revision": v.of(None, "main"),
    "verbose": v.of(False),
    "attention": v.of(None, "sdpa", "eager"),
    "every": v.of(1, 500),
    "prefix": v.of("mcr/", ""),
    "trainer": v.of(None),
    "diagnosis": v.of(None, {}),
    "path": lambda rng, w: w.folder / rng.choice(["out.nc", "out.html", "none/out.nc", "."]),
    "name": v.of("cut", "clean", "bos_norm", "queipo2025", "sun2024"),
    "plan": lambda rng, w: _plan(rng, w),
    "streaming": v.of(True),
    "split": v.of("train"),
    "config": v.of(None),
    "delimiter": v.of(None, " "),
    "contexts": v.of(("a", "a")),
    "continuations": v.of((" b", " c")),
    "gold": v.of(0, 1),
    "lengths": v.of((), (1, 2)),
    "weight": v.of(torch.zeros(4, 32, 32), torch.ones(1, 2, 2)),
    "bias": v.of(torch.zeros(4, 32), torch.zeros(1, 2)),
    "training": v.of({}),
    "text": v.of(None, "text"),
    "label": v.of(None, "label"),
    "first": v.of(None),
    "second": v.of(None),
    "score": v.of(None),
    "relative": v.of(None, True),
    "changes": v.of(None),
    "field": v.of(None, "text"),
}
"""What a parameter of this name takes; flags that are not here are drawn as such."""

OWN: dict[str, dict[str, v.Make]] = {
    "load": {"path": lambda rng, w: w.result_file},
    "load_moments": {"path": lambda rng, w: w.result_file},
    "serve": {"model": v.of("demo", ""), "verbose": v.of(False)},
    "load_model": {"model": v.of("demo", " ", "a/b/c")},
    "random_twin": {"seed": v.of(0, 3)},
    "dose_response": {"options": v.of({})},
    "early_exit": {"scores": v.of(None)},
    "join_steps": {"results": lambda rng, w: {1: v.dataset(rng, w), 2: v.dataset(rng, w)}},
    "merge": {"results": v.dataset},
    "matched_controls": {"cut": v.zeroed},
    "null_share": {"name": v.of("bos_norm", "sink_score", "median_norm")},
    "close_up": {"heads": v.of(None, [(0, 1), (3, 3)], [(4, 0)])},
    "attention_view": {"heads": v.of(None, [0, 3])},
    "get_metric": {"name": v.of("bos_norm", "bosnorm")},
    "metric": {"function": v.of(None), "units": v.of("1"), "source": v.of("x")},
    "save": {"ds": v.dataset},
    "ServedModel": {"model": lambda rng, w: w.raw},
    "read_plan": {"plan": lambda rng, w: _plan(rng, w)},
    "read_choices": {"source": v.of(*v.RECORDS_AND_ITEMS)},
    "read_labelled": {"source": v.of("none.tsv")},
    "read_pairs": {"source": v.of("none.tsv")},
    "tuned_lens": {"save": v.of(None)},
    "TunedLens": {},
    "read_prompt_file": {"path": lambda rng, w: w.file("prompts.txt", "a\n\nb\n")},
    "training_callback": {"at_start": v.of(True), "at_end": v.of(True)},
}
"""Where one function means something else by a name."""

MANY = ("resamples", "steps", "tokens_per_step", "count", "seeds", "top")
"""How often something is done: a million times takes as long as it takes."""

CLASSES = ("Observer", "ServedModel", "ChoiceItem", "TunedLens")
"""Classes that are called by users; the others are results, errors and warnings."""

BLOCKS = ("observe", "intervene")

EDITS = {"interventions", "conditions", "condition", "cut", "factors", "lens", "dose_response"}
"""What may make a model compute NaN: a factor of 1e30, a vector of infinity, a lens that was not trained."""


@dataclass(frozen=True)
class Call:
    """One call that has been drawn."""

    name: str
    made: Callable[[], Any]
    shown: str
    models: tuple[Any, ...] = ()
    apart: bool = False
    finite: bool = False


def public() -> dict[str, Callable[..., Any]]:
    """What is called, by name."""
    held = {name: getattr(mcr, name) for name in mcr.__all__}
    found = {n: f for n, f in held.items() if inspect.isfunction(f) or n in CLASSES}
    return found | {"read_plan": read_plan, "read_prompt_file": read_prompt_file}


Fixed = Mapping[str, Any]
"""Values of some parameters; all others then get what they take."""


def draw(
    name: str, function: Callable[..., Any], rng: Random, world: World, fixed: Fixed | None = None
) -> Call:
    """A call of this function with drawn arguments."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    drawn: set[str] = set()
    for parameter in inspect.signature(function).parameters.values():
        many, only = parameter.kind is parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.name == "progress":
            named["progress"] = False
            continue
        optional = parameter.default is not parameter.empty
        asked = parameter.name in (fixed or {})
        if (
            optional
            and not asked
            and rng.random() > (1 if parameter.name in ("resamples", "steps", "verbose") else GIVEN)
        ):
            continue
        pick = partial(_value, name, parameter, rng, world, fixed)
        drawn.add(parameter.name)
        if many:
            positional += [pick() for _ in range(rng.randint(0, 3))]
        elif parameter.kind is parameter.KEYWORD_ONLY or (optional and parameter.kind is not only):
            named[parameter.name] = pick()
        else:
            positional.append(pick())
    shown = ", ".join([*map(_short, positional), *(f"{key}={_short(value)}" for key, value in named.items())])
    given = [*positional, *named.values()]
    models = tuple(m for m in (getattr(world, n) for n in _made(world)) if any(m is g for g in given))
    made = partial(_enter if name in BLOCKS else _call, function, positional, named)
    return Call(name, made, f"{name}({shown})", models, finite=bool(models) and not {name, *drawn} & EDITS)


def draw_if_possible(
    name: str, function: Callable[..., Any], rng: Random, world: World, fixed: Fixed | None = None
) -> Call | None:
    """The same, or None where a value could not be made, such as an edit at no layer."""
    try:
        return draw(name, function, rng, world, fixed)
    except (ValueError, TypeError):
        return None


def _value(name: str, parameter: inspect.Parameter, rng: Random, world: World, fixed: Fixed | None) -> Any:
    if fixed is None and rng.random() < ODD:
        return _odd(parameter, v.anything(rng, world))
    if parameter.name in (fixed or {}):
        return _odd(parameter, (fixed or {})[parameter.name])
    made = pool(name, parameter.name)
    if made is not None:
        return made(rng, world)
    if isinstance(parameter.default, bool):
        return rng.random() < 0.5
    raise LookupError(f"fuzz: no values for {parameter.name!r} of {name}; add them to fuzz/targets.py")


def pool(name: str, parameter: str) -> v.Make | None:
    """What makes values that a parameter takes."""
    return OWN.get(name, {}).get(parameter) or POOLS.get(parameter)


def _odd(parameter: inspect.Parameter, value: Any) -> Any:
    if (isinstance(parameter.default, bool) or parameter.name == "relative") and hasattr(value, "shape"):
        return None  # whether an array is true is not for us to say
    if parameter.name == "function" and callable(value):
        return None  # what a function of the user raises is the user's
    return value if parameter.name not in MANY or not _is_large(value) else -1


def _is_large(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and value > 1000


def _call(function: Callable[..., Any], positional: list[Any], named: dict[str, Any]) -> Any:
    return function(*positional, **named)


def _enter(function: Callable[..., Any], positional: list[Any], named: dict[str, Any]) -> Any:
    with function(*positional, **named):
        pass


def _made(world: World) -> list[str]:
    return [name for name in World.MODELS if name in world.__dict__]


def _plan(rng: Random, world: World) -> dict[str, Any]:
    """The mapping of a plan, with one or two of its values replaced."""
    plan = world.plan(
        models=[{"name": "m", "model": world.reader}], metrics=["bos_norm"],
        prompts=[{"name": "p", "texts": rng.sample(TEXTS, 2)}], out=str(world.folder / f"s{rng.random()}"),
    )  # fmt: skip
    for _ in range(rng.randint(0, 2)):
        key = rng.choice(
            [*PLAN, "metrics", "batch_size", "conditions", "keep", "chunk", "position", "max_length", "x"]
        )
        plan[key] = v.anything(rng, world)
    return plan


def _short(value: Any) -> str:
    kind = type(value).__name__
    if kind in ("Dataset", "DataArray"):
        return f"<{kind} {dict(value.sizes)}>"
    if isinstance(value, torch.nn.Module) or kind == "ServedModel":
        return f"<{kind}>"
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else f"{text[:77]}…"
