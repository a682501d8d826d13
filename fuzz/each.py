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
    kinds = list(dict.fromkeys(v.KINDS))
    odd = [*v.ANYTHING, *(make() for make in v.TENSORS), *(getattr(world, kind) for kind in kinds)]
    for name, function in targets.public().items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name == "progress":
                continue
            damaged = _damaged(name, parameter.name, kinds, Random(f"{seed} {name} {parameter.name}"), world)
            for number, value in enumerate([*odd, *damaged]):
                rng = Random(f"{seed} {name} {parameter.name} {number}")
                if name in slow and rng.random() > SHARE:
                    continue
                call = targets.draw_if_possible(name, function, rng, world, (parameter.name, value))
                if call is not None:
                    yield call


def names() -> list[str]:
    """What takes arguments at all."""
    return [name for name, f in targets.public().items() if inspect.signature(f).parameters]


def _damaged(name: str, parameter: str, kinds: list[str], rng: Random, world: World) -> list[Any]:
    """For what reads a Dataset, each kind of Dataset with each kind of damage, twice."""
    if targets.pool(name, parameter) not in (v.dataset, v.array):
        return []
    return [damage(rng, getattr(world, kind)) for kind in kinds for damage in (*v.DAMAGE, *v.DAMAGE)]
