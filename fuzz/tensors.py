"""How are metrics called by hand? With tensors of the shapes they declare, and any numbers in them."""

import inspect
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import torch

from fuzz.targets import Call
from mcr_lens import metrics

SIZES = {"batch": 2, "pos": 5, "d_model": 8, "head": 2, "query": 5, "key": 5, "d_head": 4, "vocab": 11}


def functions() -> dict[str, Callable[..., Any]]:
    """Every metric and intermediate quantity that is public, by name."""
    held = {
        name: f for name, f in vars(metrics).items() if inspect.isfunction(f) and not name.startswith("_")
    }
    others = ("get_metric", "list_metrics", "metric")
    return {f"metrics.{name}": f for name, f in held.items() if name not in others}


def draw(name: str, function: Callable[..., Any], rng: Random) -> Call | None:
    """A call with tensors by the names of the axes; None where it takes what cannot be made of them."""
    sizes = SIZES | {"batch": rng.randint(1, 3), "d_model": rng.choice([3, 8, 33])}
    sizes["pos"] = sizes["query"] = sizes["key"] = rng.choice([1, 2, 3, 5, 12])
    fill = rng.choice([*FILLS])
    named = _arguments(function, sizes, fill, rng)
    return None if named is None else Call(name, partial(_call, function, named), f"{name}({fill}, {sizes})")


def _call(function: Callable[..., Any], named: dict[str, Any]) -> Any:
    return function(**{key: value() if callable(value) else value for key, value in named.items()})


def _arguments(
    function: Callable[..., Any], sizes: dict[str, int], fill: str, rng: Random
) -> dict[str, Any] | None:
    """Tensors by name; several quantities together are computed as the function of that name does."""
    named: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        dims = getattr(parameter.annotation, "dim_str", None)
        if dims is not None:
            shape = [_size(axis, sizes) for axis in dims.split()]
            named[parameter.name] = _tensor(parameter.annotation, shape, FILLS[fill], rng)
        elif parameter.name == "position":
            named["position"] = rng.randrange(sizes["pos"])
        elif (other := functions().get(f"metrics.{parameter.name}")) is not None:
            inner = _arguments(other, sizes, fill, rng)
            if inner is None:
                return None
            named[parameter.name] = partial(_call, other, inner)
        elif parameter.default is parameter.empty:
            return None
    return named


def _size(axis: str, sizes: dict[str, int]) -> int:
    return int(axis) if axis.isdecimal() else sizes.get(axis.lstrip("*"), 3)


def _tensor(
    annotation: Any, shape: list[int], fill: Callable[[list[int]], torch.Tensor], rng: Random
) -> torch.Tensor:
    kinds = annotation.dtypes if isinstance(annotation.dtypes, (list, tuple)) else ["float32"]
    if "bool" in kinds:
        return torch.ones(shape).bool().tril() if len(shape) == 2 else torch.ones(shape).bool()
    if not any("float" in kind for kind in kinds):
        return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(rng.randrange(99)))
    tensor = fill(shape)
    return tensor if "float32" in kinds else tensor.double()


FILLS: dict[str, Callable[[list[int]], torch.Tensor]] = {
    "random": torch.rand,
    "normal": torch.randn,
    "zeros": torch.zeros,
    "equal": torch.ones,
    "NaN": lambda shape: torch.full(shape, torch.nan),
    "one NaN": lambda shape: torch.rand(shape).index_fill(-1, torch.tensor([0]), torch.nan),
    "infinity": lambda shape: torch.full(shape, torch.inf),
    "huge": lambda shape: torch.rand(shape) * 1e38,
    "tiny": lambda shape: torch.rand(shape) * 1e-40,
    "half": lambda shape: torch.rand(shape).half(),
    "one column": lambda shape: torch.zeros(shape).index_fill(-1, torch.tensor([0]), 1e4),
}
"""Numbers to fill a tensor with."""
