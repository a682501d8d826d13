"""What is computed at one place of the model: as a tensor comes by, or for all places together at the end?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mcr_lens.hookpoints import READS
from mcr_lens.workers import Pending


@dataclass(frozen=True)
class Step:
    """One computation at a hook: an intermediate quantity or a metric."""

    name: str
    function: Any
    inputs: tuple[str, ...]
    options: Mapping[str, Any]
    keeps: bool  # a metric's value goes into the result
    gives: tuple[str, ...] = ()  # a joint computation: the quantities that come out of it
    kept: frozenset[str] = frozenset()  # those of them that are metrics and go into the result
    light: bool = False  # neither it nor what follows from it reads an activation


class Site:
    """The computation at one place (one depth or one layer) for prompts of one length.

    Tensors arrive one by one, in the order of the forward pass. Each step that reads one runs as soon as it
    can, and a tensor that no waiting step needs is let go at once: no activation outlives its layer. Light
    steps, and those whose input is being computed elsewhere, run at the end, in `settle_together`.
    """

    def __init__(self, steps: Sequence[Step], statics: Mapping[str, Any]) -> None:
        self._waiting = list(steps)
        self._known: dict[str, Any] = dict(statics)
        self._statics = frozenset(statics)
        self.results: dict[str, Any] = {}

    def receive(self, name: str, value: Any) -> None:
        """Take one tensor, run every step that has become possible, forget what is used up."""
        self._known[name] = value
        self._run(wait=False)

    @property
    def waits(self) -> bool:
        """Whether a step waits for anything."""
        return bool(self._waiting)

    @property
    def held(self) -> int:
        """Bytes of what light steps wait with; 0 while an activation is still to come."""
        if not all(step.light for step in self._waiting):
            return 0
        return sum(_bytes(value) for name, value in self._known.items() if name not in self._statics)

    @property
    def alike(self) -> tuple[Any, ...]:
        """What sites must share to be settled together: steps, and masks where they are the same."""
        inputs = {name for step in self._waiting for name in step.inputs} & self._statics
        names = tuple(step.name for step in self._waiting)
        return names, tuple(sorted((name, id(self._known.get(name))) for name in inputs))

    @staticmethod
    def settle_together(sites: "Sequence[Site]") -> None:
        """Run the steps that wait, in one go for sites that are alike.

        A metric gives one row per prompt, so the prompts of all places may stand below each other.
        """
        first = sites[0]
        names = {name for step in first._waiting for name in step.inputs if name in first._known}
        known = {
            name: first._known[name] if name in first._statics
            else _stacked([_value(site._known[name]) for site in sites])
            for name in names
        }  # fmt: skip
        whole = Site(first._waiting, known)
        whole._run(wait=True)
        for name, value in whole.results.items():
            for site, part in zip(sites, value.chunk(len(sites)), strict=True):
                site.results[name] = part
        for site in sites:
            site._waiting, site._known = [], {}

    def _run(self, *, wait: bool) -> None:
        still = []
        for step in self._waiting:  # ordered: whatever a step needs comes before it
            late = [i for i in step.inputs if isinstance(self._known.get(i), Later)]
            # Beside an activation, what is computed elsewhere is waited for.
            early = wait or not (step.light or (late and not any(i in READS for i in step.inputs)))
            if early and all(i in self._known for i in step.inputs):
                for name in late:
                    self._known[name] = _value(self._known[name])
                self._keep(step, _call(step, [self._known[i] for i in step.inputs]))
            else:
                still.append(step)
        self._waiting = still
        needed = {i for step in still for i in step.inputs}
        self._known = {k: v for k, v in self._known.items() if k in needed}

    def _keep(self, step: Step, outcome: Any) -> None:
        if step.keeps:
            self.results[step.name] = outcome
        elif step.gives:
            for name in step.gives:
                field = name.strip("()")
                later = isinstance(outcome, Pending)
                self._known[name] = Later(outcome, field) if later else getattr(outcome, field)
                if field in step.kept:
                    self.results[field] = getattr(outcome.result() if later else outcome, field)
        else:
            self._known[step.name] = outcome
            if step.name == "(token_norms)":
                self.results["(finite)"] = outcome.isfinite().all(-1)


@dataclass(frozen=True)
class Later:
    """One field of what is being computed elsewhere."""

    source: Pending[Any]
    field: str

    def value(self) -> Any:
        return getattr(self.source.result(), self.field)


def _value(known: Any) -> Any:
    return known.value() if isinstance(known, Later) else known


def _stacked(values: Sequence[Any]) -> Any:
    """Tensors, or records of them, of several sites, one behind the other along the prompts."""
    if len(values) == 1:
        return values[0]
    if torch.is_tensor(values[0]):
        device = values[0].device  # layers may be on several
        return torch.cat([value.to(device) for value in values])
    return type(values[0])(*map(_stacked, zip(*values, strict=True)))


def _bytes(value: Any) -> int:
    if torch.is_tensor(value):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, tuple) else 0


def _call(step: Step, arguments: Sequence[Any]) -> Any:
    names = [i.strip("()") for i in step.inputs]
    return step.function(**dict(zip(names, arguments, strict=True)), **step.options)
