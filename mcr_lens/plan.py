"""Which tensors must be read for these metrics, in which order is everything computed, what is kept?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcr_lens.hookpoints import READS, Axis, HookedModel, hook_names, model_name, output_projection
from mcr_lens.metrics._registry import STATIC, Metric, get_derived, select


@dataclass(frozen=True)
class Step:
    """One computation at a hook: an intermediate quantity or a metric."""

    name: str
    function: Any
    inputs: tuple[str, ...]
    options: Mapping[str, Any]
    keeps: bool  # a metric's value goes into the result


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
            f"position={position!r}: pass the index of the token to take for BOS, counted from 0 at "
            "the first real token"
        )
    chosen, skipped = select(metrics), {}
    if any("output_gram" in m.inputs for m in chosen) and not _has_projection(model):
        reason = f"{model_name(model)} does not expose W_O as [head, d_head, d_model]"
        skipped = {m.name: reason for m in chosen if "output_gram" in m.inputs}
        if metrics is not None:
            raise ValueError(f"{', '.join(skipped)} cannot be measured: {reason}; leave it out of metrics")
    kept = [m for m in chosen if m.name not in skipped]
    steps: dict[Axis, dict[str, Step]] = {"depth": {}, "layer": {}, "pass": {}}
    reads: dict[str, None] = {}
    statics: set[str] = set()
    for m in kept:
        _add(m, steps[m.site], reads, statics, {"position": position}, keeps=True)
    # Always watched: a NaN in the stream must never pass for a result.
    _add(get_derived()["token_norms"], steps["depth"], reads, statics, {}, keeps=False)
    return Plan(
        metrics=tuple(kept),
        steps={site: tuple(found.values()) for site, found in steps.items()},
        hooks={read: tuple(hook_names(model, read)) for read in READS if read in reads},
        statics=frozenset(statics),
        skipped=skipped,
    )


def _add(
    item: Any,
    steps: dict[str, Step],
    reads: dict[str, None],
    statics: set[str],
    options: Mapping[str, Any],
    *,
    keeps: bool,
) -> None:
    """Add one metric or intermediate quantity behind everything it needs."""
    key = item.name if keeps else f"({item.name})"
    if key in steps:
        return
    names = []
    for name in item.inputs:
        if name in READS:
            reads[name] = None
        elif name in STATIC:
            statics.add(name)
        else:
            _add(get_derived()[name], steps, reads, statics, options, keeps=False)
        names.append(f"({name})" if name in get_derived() else name)
    given = {name: options[name] for name in item.options}
    steps[key] = Step(key, item.function, tuple(names), given, keeps)


def _has_projection(model: HookedModel) -> bool:
    weight = output_projection(model, 0)
    return weight is not None and not weight.is_meta and weight.is_floating_point()


class Site:
    """The computation at one place (one depth or one layer) for prompts of one length.

    Tensors arrive one by one, in the order of the forward pass. Each step runs as soon as it can, and a
    tensor that no waiting step needs is let go at once: nothing outlives its layer.
    """

    def __init__(self, steps: Sequence[Step], statics: Mapping[str, Any]) -> None:
        self._waiting = list(steps)
        self._known: dict[str, Any] = dict(statics)
        self.results: dict[str, Any] = {}

    def receive(self, name: str, value: Any) -> None:
        """Take one tensor, run every step that has become possible, forget what is used up."""
        self._known[name] = value
        still = []
        for step in self._waiting:  # ordered: whatever a step needs comes before it
            if all(i in self._known for i in step.inputs):
                arguments = [self._known[i] for i in step.inputs]
                outcome = _call(step, arguments)
                if step.keeps:
                    self.results[step.name] = outcome
                else:
                    self._known[step.name] = outcome
                    if step.name == "(token_norms)":
                        self.results["(finite)"] = outcome.isfinite().all(-1)
            else:
                still.append(step)
        self._waiting = still
        needed = {i for step in still for i in step.inputs}
        self._known = {k: v for k, v in self._known.items() if k in needed}


def _call(step: Step, arguments: Sequence[Any]) -> Any:
    names = [i.strip("()") for i in step.inputs]
    return step.function(**dict(zip(names, arguments, strict=True)), **step.options)
