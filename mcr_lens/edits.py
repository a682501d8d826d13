"""What can be done to the rows of a tensor: each edit is a value, applied to the selected rows only.

Rows come as [..., d_model], or [..., head, d_head] for head outputs; an edit acts along the last axis.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

Where: TypeAlias = Callable[[], list[tuple[int, int]]]
"""(prompt, absolute position) of every row, for the edits that must know."""

Apply: TypeAlias = Callable[[Tensor, Where], Tensor]


@dataclass(frozen=True)
class Edit:
    """Base of all edits: what is written down, and what is done to rows."""

    kind: ClassVar[str] = ""

    def describe(self) -> dict[str, Any]:
        """Its settings as JSON values."""
        return {}

    def bind(self, layers: Sequence[int], width: int, collect: Callable[[], Mapping[int, Tensor]]) -> Any:
        """The function for each layer; `collect` gives the rows of reference prompts to those that need them.

        Raises:
            ValueError: a vector of another width.
        """
        return dict.fromkeys(layers, lambda rows, where: self.apply(rows))

    def apply(self, rows: Tensor) -> Tensor:
        """The rows as they should be."""
        raise NotImplementedError

    @property
    def reference(self) -> tuple[Any, ...]:
        """Prompts whose activations it needs."""
        return ()


@dataclass(frozen=True)
class Vector:
    """A vector as a value: equal to another if every number is."""

    numbers: Tensor = field(compare=False, repr=False)
    digest: str = ""

    @staticmethod
    def of(what: str, given: Any) -> "Vector":
        """Read a tensor, array or list of numbers.

        Raises:
            ValueError: not one row of finite numbers.
        """
        try:
            tensor = torch.as_tensor(given).detach().cpu()
            if tensor.is_complex():
                raise TypeError
            numbers = tensor.float().clone()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{what} must be one row of numbers, got {type(given).__name__}") from None
        if numbers.ndim != 1 or not len(numbers) or not bool(numbers.isfinite().all()):
            raise ValueError(
                f"{what} must be one row of finite numbers, got shape {tuple(numbers.shape)}"
                f"{'' if bool(numbers.isfinite().all()) else ' with NaN or infinity'}"
            )
        return Vector(numbers, hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16])

    def describe(self) -> dict[str, Any]:
        """Size, length and identity."""
        return {"size": len(self.numbers), "norm": float(self.numbers.norm()), "sha256": self.digest}

    def check(self, width: int) -> None:
        """Refuse a width that the tensor does not have."""
        if len(self.numbers) != width:
            raise ValueError(f"the vector has {len(self.numbers)} numbers and the rows there have {width}")


def _wide(rows: Tensor) -> Tensor:
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()


def _norms(rows: Tensor) -> Tensor:
    """Norms along the last axis; never zero, so that they can divide."""
    wide = _wide(rows)
    return wide.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)


@dataclass(frozen=True)
class Zero(Edit):
    """Nothing is written."""

    kind: ClassVar[str] = "zero_ablation"

    def apply(self, rows: Tensor) -> Tensor:
        return torch.zeros_like(rows)


@dataclass(frozen=True)
class Scale(Edit):
    """Everything is written λ times as large."""

    factor: float
    kind: ClassVar[str] = "scale"

    def describe(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def apply(self, rows: Tensor) -> Tensor:
        return rows * self.factor if self.factor else torch.zeros_like(rows)  # no −0


@dataclass(frozen=True)
class ClampNorm(Edit):
    """What is longer is shortened."""

    limit: float
    kind: ClassVar[str] = "clamp_norm"

    def describe(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def apply(self, rows: Tensor) -> Tensor:
        norms = _norms(rows)
        shorter = (_wide(rows) * (self.limit / norms)).to(rows.dtype)
        return torch.where(norms > self.limit, shorter, rows)


@dataclass(frozen=True)
class SetNorm(Edit):
    """The direction stays and the length is chosen; a zero row stays zero."""

    norm: float
    kind: ClassVar[str] = "inject"

    def describe(self) -> dict[str, Any]:
        return {"norm": self.norm}

    def apply(self, rows: Tensor) -> Tensor:
        return (_wide(rows) * (self.norm / _norms(rows))).to(rows.dtype)


@dataclass(frozen=True)
class Add(Edit):
    """A vector is written on top."""

    vector: Vector
    kind: ClassVar[str] = "inject"

    def describe(self) -> dict[str, Any]:
        return {"vector": self.vector.describe()}

    def bind(self, layers: Sequence[int], width: int, collect: Any) -> Any:
        self.vector.check(width)
        return super().bind(layers, width, collect)

    def apply(self, rows: Tensor) -> Tensor:
        return rows + self.vector.numbers.to(rows)


@dataclass(frozen=True)
class RemoveDirection(Edit):
    """What lies along a direction is taken out."""

    direction: Vector
    kind: ClassVar[str] = "remove_direction"

    def describe(self) -> dict[str, Any]:
        return {"direction": self.direction.describe()}

    def bind(self, layers: Sequence[int], width: int, collect: Any) -> Any:
        self.direction.check(width)
        return super().bind(layers, width, collect)

    def apply(self, rows: Tensor) -> Tensor:
        wide = _wide(rows)
        unit = torch.nn.functional.normalize(self.direction.numbers, dim=0).to(wide)
        return (wide - (wide @ unit)[..., None] * unit).to(rows.dtype)


@dataclass(frozen=True)
class RandomDirection(Edit):
    """The length stays, and the direction is a random one, the same for every row of a layer."""

    seed: int
    kind: ClassVar[str] = "random_direction"

    def describe(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def bind(self, layers: Sequence[int], width: int, collect: Any) -> Any:
        found = {}
        for layer in layers:
            number = (int(self.seed) * 1009 + layer) % 2**63
            draw = torch.randn(width, generator=torch.Generator().manual_seed(number))
            unit = torch.nn.functional.normalize(draw, dim=0)
            found[layer] = lambda rows, where, unit=unit: (_norms(rows) * unit.to(_wide(rows))).to(rows.dtype)
        return found


@dataclass(frozen=True)
class Mean(Edit):
    """The mean of the same place over reference prompts."""

    prompts: tuple[Any, ...] = field(repr=False)
    kind: ClassVar[str] = "mean_ablation"

    @property
    def reference(self) -> tuple[Any, ...]:
        return self.prompts

    def describe(self) -> dict[str, Any]:
        return {"reference": _identity(self.prompts)}

    def bind(self, layers: Sequence[int], width: int, collect: Any) -> Any:
        found = {}
        for layer, rows in collect().items():
            mean = rows.double().mean(0)
            found[layer] = lambda rows, where, mean=mean: mean.to(rows).expand_as(rows)
        return found


@dataclass(frozen=True)
class Resample(Edit):
    """The same place of another prompt, drawn for every prompt and position."""

    prompts: tuple[Any, ...] = field(repr=False)
    seed: int
    kind: ClassVar[str] = "resample_ablation"

    @property
    def reference(self) -> tuple[Any, ...]:
        return self.prompts

    def describe(self) -> dict[str, Any]:
        return {"reference": _identity(self.prompts), "seed": self.seed}

    def bind(self, layers: Sequence[int], width: int, collect: Any) -> Any:
        def draw(rows: Tensor, where: Where, pool: Tensor) -> Tensor:
            # By prompt and position, so that batches make no difference; the same donor in every layer.
            chosen = [random.Random(f"{self.seed} {p} {at}").randrange(len(pool)) for p, at in where()]
            return pool[chosen].to(rows).view_as(rows)

        return {
            layer: lambda rows, where, pool=pool: draw(rows, where, pool) for layer, pool in collect().items()
        }


def _identity(prompts: Sequence[Any]) -> dict[str, Any]:
    return {"prompts": len(prompts), "sha256": hashlib.sha256(repr(prompts).encode()).hexdigest()[:16]}
