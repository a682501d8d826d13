"""Which tensors must be read for these metrics, in which order is everything computed, what is kept?"""

from collections.abc import Collection, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from mcr_lens._checks import as_shown
from mcr_lens.hookpoints import (
    READS,
    Axis,
    HookedModel,
    MissingHookPointError,
    hook_names,
    model_name,
    output_projection,
)
from mcr_lens.metrics._registry import (
    STATIC,
    Joint,
    Metric,
    get_derived,
    get_joint,
    list_metrics,
    select,
)
from mcr_lens.sites import Step

COUNTED = ("visible_keys", "visible_queries", "seeing_queries")
"""Intermediate quantities that follow from the layer alone, without the mask whose sums they are."""


@dataclass(frozen=True)
class Plan:
    """What to read and compute; the same for every prompt."""

    metrics: tuple[Metric, ...]
    steps: Mapping[Axis, tuple[Step, ...]]
    hooks: Mapping[str, tuple[str, ...]]  # read -> hook names along its axis
    statics: frozenset[str]
    skipped: Mapping[str, str]  # metric -> why this model does not have it


def make_plan(model: HookedModel, metrics: Any, *, position: int = 0) -> Plan:
    """Resolve what the user asked for against what the model has.

    Metrics that need the output projection are left out, with the reason, when nobody named them and
    the model does not expose it (quantised or offloaded weights).

    Raises:
        UnknownMetricError: see `select`.
        MissingHookPointError: the model lacks a hook point.
        ValueError: the position is not a non-negative integer, or a metric cannot be had.
    """
    if not isinstance(position, int) or isinstance(position, bool) or position < 0:
        raise ValueError(
            f"position={as_shown(position)}: pass the index of the token to take for BOS, counted from 0 at "
            "the first real token"
        )
    chosen, skipped = select(metrics), {}
    has = _names(model)
    for m in chosen:
        reason = _obstacle(model, m, has.keys())
        if reason is not None:
            skipped[m.name] = reason
    if skipped and metrics is not None:
        reason = next(iter(skipped.values()))
        raise ValueError(f"{', '.join(skipped)} cannot be measured: {reason}; leave it out of metrics")
    kept = [m for m in chosen if m.name not in skipped]
    steps: dict[Axis, dict[str, Step]] = {"depth": {}, "layer": {}, "pass": {}}
    reads: dict[str, None] = {}
    statics: set[str] = set()
    for m in kept:
        _add(m, steps[m.site], reads, statics, {"position": position}, has.keys(), keeps=True)
    # Always watched: a NaN in the stream must never pass for a result.
    _add(get_derived()["token_norms"], steps["depth"], reads, statics, {}, has.keys(), keeps=False)
    return Plan(
        metrics=tuple(kept),
        steps={site: _steps(found.values()) for site, found in steps.items()},
        hooks={
            read: has[read] if read in has else tuple(hook_names(model, read))  # raises: what is missing
            for read in READS
            if read in reads
        },
        statics=frozenset(statics),
        skipped=skipped,
    )


def _add(
    item: Any,
    steps: dict[str, Step],
    reads: dict[str, None],
    statics: set[str],
    options: Mapping[str, Any],
    has: Set[str],
    *,
    keeps: bool,
) -> None:
    """Add one metric or intermediate quantity behind everything it needs."""
    key = item.name if keeps else f"({item.name})"
    # A function of the user's own may have the name of a registered metric.
    known = not keeps or item in list_metrics()
    together = next((j for j in get_joint(item.name) if _reads_of(j) <= has), None) if known else None
    kept = frozenset([item.name]) if together and keeps else frozenset[str]()
    if together is not None:
        item, key, keeps = together, f"({together.name})", False
    if key in steps:
        steps[key] = replace(steps[key], kept=steps[key].kept | kept)
        return
    names = []
    for name in item.inputs:
        if name in READS:
            reads[name] = None
        elif name in STATIC or name in COUNTED:
            statics.add(name)
        else:
            _add(get_derived()[name], steps, reads, statics, options, has, keeps=False)
        names.append(f"({name})" if name in get_derived() else name)
    given = {name: options[name] for name in item.options if name in options}
    gives = tuple(f"({name})" for name in together.gives) if together else ()
    steps[key] = Step(key, item.function, tuple(names), given, keeps, gives, kept)


def _reads_of(item: Joint) -> set[str]:
    return {name for name in item.inputs if name in READS}


def _steps(found: Collection[Step]) -> tuple[Step, ...]:
    needed = {name for step in found for name in step.inputs}
    urgent: set[str] = set()  # what is read along with an activation
    steps: list[Step] = []
    for step in reversed([*found]):
        # Others may look at all of their prompts; what was made by `exec` may have no module.
        ours = str(step.function.__module__).startswith("mcr_lens.")
        light = ours and not READS.keys() & {*step.inputs} and not urgent & {*step.gives, step.name}
        urgent |= set() if light else {*step.inputs}
        steps.append(replace(_told(step, needed), light=light))
    return tuple(reversed(steps))


def _told(step: Step, needed: Set[str]) -> Step:
    """A joint computation with the names of what the others need of it."""
    wanted = step.kept | {name.strip("()") for name in step.gives if name in needed}
    return replace(step, options={**step.options, "wanted": wanted}) if step.gives else step


def _obstacle(model: HookedModel, item: Metric, has: Set[str]) -> str | None:
    """Why a model that is known to lack something does not have this metric."""
    needs = _needs(item, has)
    lacks: Mapping[str, str] = getattr(model, "lacks", {})
    if "output_gram" in needs and not _has_projection(model):
        return f"{model_name(model)} does not expose W_O as [head, d_head, d_model]"
    return next(
        (f"{model_name(model)} has no {name!r}: {lacks[name]}" for name in needs if name in lacks), None
    )


def _needs(item: Any, has: Set[str]) -> list[str]:
    """The tensors that a metric comes from in the end, however they are reached in this model."""
    found: list[str] = []
    for name in item.inputs:
        if name in get_derived():
            through = next((j for j in get_joint(name) if _reads_of(j) <= has), get_derived()[name])
            found += _needs(through, has)
        else:
            found.append(name)
    return found


def _names(model: HookedModel) -> dict[str, tuple[str, ...]]:
    """The hook names of every kind of tensor that the model has."""
    found, points = {}, model.hook_dict
    for read in READS:
        with suppress(MissingHookPointError):
            found[read] = tuple(hook_names(model, read, points))
    return found


def _has_projection(model: HookedModel) -> bool:
    weight = output_projection(model, 0)
    return weight is not None and not weight.is_meta and weight.is_floating_point()
