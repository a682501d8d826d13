"""What does each parameter make of each odd value, while the others get good ones? `python -m fuzz each`."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, product
from random import Random
from typing import Any

from world import World

from fuzz import targets
from fuzz import values as v

SHARE = 0.1
"""Of the odd values, for functions that take seconds."""

TRIES = 4
"""Calls by which it is learned which Datasets a function takes."""


def calls(world: World, slow: set[str], seed: int) -> Iterator[targets.Call]:
    """Every public function with one odd argument after the other."""
    kinds = list(dict.fromkeys(v.KINDS))
    odd = [*v.ANYTHING, *(make() for make in v.TENSORS), *(getattr(world, kind) for kind in kinds)]
    for name, function in targets.public().items():
        good = _good(name, function, kinds, world)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name == "progress":
                continue
            for number, value in enumerate(chain(odd, _damaged(name, parameter.name, kinds, world))):
                rng = Random(f"{seed} {name} {parameter.name} {number}")
                if name in slow and rng.random() > SHARE:
                    continue
                fixed = {**rng.choice(good), parameter.name: value}
                call = targets.draw_if_possible(name, function, rng, world, fixed)
                if call is not None:
                    yield call


def names() -> list[str]:
    """What takes arguments at all."""
    return [name for name, f in targets.public().items() if inspect.signature(f).parameters]


def _damaged(name: str, parameter: str, kinds: list[str], world: World) -> Iterator[Any]:
    """For what reads a Dataset, each kind of Dataset with each damage."""
    if _reads(name, parameter):
        for kind in kinds:
            yield from v.damages(getattr(world, kind))


def _good(name: str, function: Callable[..., Any], kinds: list[str], world: World) -> list[dict[str, Any]]:
    """The Datasets that this function gives a result with: others would hide its other arguments."""
    read = [p for p in inspect.signature(function).parameters if _reads(name, p)]
    found: list[dict[str, Any]] = []
    for chosen in product(kinds, repeat=len(read)) if read else ():
        fixed = {parameter: getattr(world, kind) for parameter, kind in zip(read, chosen, strict=True)}
        for number in range(TRIES):
            call = targets.draw_if_possible(name, function, Random(number), world, fixed)
            with suppress(Exception):  # what is wrong with a call is found when it is judged
                if call is not None:
                    call.made()
                    found.append(fixed)
                    break
    return found or [{}]


def _reads(name: str, parameter: str) -> bool:
    """Whether a function takes a Dataset by this name."""
    made = targets.pool(name, parameter)
    return (made.func if isinstance(made, partial) else made) is v.dataset
