"""What does each parameter make of each odd value, while the others get good ones? `python -m fuzz each`."""

import inspect
from collections.abc import Iterator
from random import Random
from typing import Any

from world import World

from fuzz import targets
from fuzz import values as v

SHARE = 0.1
"""Of the odd values, for functions that take seconds."""


def calls(world: World, slow: set[str], seed: int) -> Iterator[targets.Call]:
    """Every public function with one odd argument after the other."""
    odd = [*v.ANYTHING, *(make() for make in v.TENSORS), *(getattr(world, kind) for kind in set(v.KINDS))]
    for name, function in targets.public().items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name == "progress":
                continue
            for number, value in enumerate(odd):
                rng = Random(f"{seed} {name} {parameter.name} {number}")
                if name in slow and rng.random() > SHARE:
                    continue
                call = _drawn(name, function, rng, world, (parameter.name, value))
                if call is not None:
                    yield call


def _drawn(name: str, function: Any, rng: Random, world: World, odd: targets.Odd) -> targets.Call | None:
    try:
        return targets.draw(name, function, rng, world, odd)
    except (ValueError, TypeError):  # a value that could not be made, such as an edit at no layer
        return None
