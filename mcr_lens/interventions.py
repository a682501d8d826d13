"""What can be changed in a forward pass, as a value that is written into the result?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mcr_lens.hookpoints import READS, HookedModel, check_model, hook_names
from mcr_lens.liveness import check_edit, warn_indirect

EDITABLE = ("mlp_out", "attn_out")


@dataclass(frozen=True)
class ZeroAblation:
    """Set what some blocks write to zero at some positions; everything else stays as it is.

    Positions are absolute, counted from the first position of the batch, so give it batches without left
    padding. With a key-value cache a decoding step holds later positions only, and is edited there or not
    at all.
    """

    site: str
    layers: tuple[int, ...]
    positions: tuple[int, ...] | None  # None: everywhere

    def fwd_hooks(self, model: HookedModel) -> list[tuple[str, Any]]:
        """Pairs (hook name, callback) for `run_with_hooks`, `model.hooks` or `measure`.

        Every hook point is first tried out on two tokens (see `check_edit`).

        Warns:
            IndirectEditWarning: the model normalises behind the hook point.

        Raises:
            ValueError: a layer that the model does not have, or a missing hook point.
            SwallowedEditError: the model drops edits there.
        """
        check_model(model)
        names = hook_names(model, self.site)
        wrong = [layer for layer in self.layers if not 0 <= layer < len(names)]
        if wrong:
            raise ValueError(f"layer {wrong[0]} does not exist: the model has layers 0..{len(names) - 1}")
        if check_edit(model, self.site, self.layers) != "exact":
            warn_indirect(model, self.site)
        hooks: list[tuple[str, Any]] = []
        for layer in self.layers:
            edit = _Zero(self.positions)
            pattern = READS["pattern"].template.format(layer=layer)
            if self.positions is not None and pattern in model.hook_dict:
                hooks.append((pattern, edit.watch))
            hooks.append((names[layer], edit))
        return hooks

    def describe(self) -> dict[str, Any]:
        """The intervention as JSON values."""
        return {"kind": "zero_ablation", **asdict(self)}


class _Zero:
    """The callback of one layer; the pattern tells it how many positions the cache already holds."""

    def __init__(self, positions: tuple[int, ...] | None) -> None:
        self._positions, self._cached = positions, 0

    def watch(self, pattern: Tensor, hook: Any = None) -> None:
        self._cached = pattern.shape[-1] - pattern.shape[-2]

    def __call__(self, tensor: Tensor, hook: Any = None) -> Tensor:
        if self._positions is None:
            return torch.zeros_like(tensor)
        edited = tensor.clone()
        here = [p - self._cached for p in self._positions]
        edited[:, [p for p in here if 0 <= p < tensor.shape[1]]] = 0
        return edited


def zero_ablation(
    site: str, *, layers: int | Sequence[int], positions: int | Sequence[int] | None = 0
) -> ZeroAblation:
    """Zero what `site` ("mlp_out" or "attn_out") writes in `layers` at `positions` (None: everywhere).

    >>> zero_ablation("mlp_out", layers=1, positions=0).describe()["layers"]
    (1,)

    Raises:
        ValueError: an unknown site, no layers, or a negative layer or position.
    """
    if site not in EDITABLE:
        known = f"{', '.join(EDITABLE)}" + (" (it can be read)" if site in READS else "")
        raise ValueError(f"site {site!r} cannot be ablated; pass one of {known}")
    return ZeroAblation(
        site,
        _integers("layers", layers),
        None if positions is None else _integers("positions", positions),
    )


def zero_bos_mlp(layers: int | Sequence[int], *, position: int = 0) -> ZeroAblation:
    """The paper's own ablation, x₀ ← x₀ + Attn(x)₀: zero the MLP output at BOS, attention kept.

    Other tokens are not touched; `position` is the token that is taken for BOS. Source: arXiv 2510.06477,
    ablation at the emergence layer.

    >>> zero_bos_mlp(1) == zero_ablation("mlp_out", layers=[1], positions=0)
    True
    """
    return zero_ablation("mlp_out", layers=layers, positions=position)


def _integers(what: str, given: int | Sequence[int]) -> tuple[int, ...]:
    numbers = (given,) if isinstance(given, int) else tuple(given)
    if not numbers or any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers):
        raise ValueError(f"{what}={given!r}: pass one or more numbers counted from 0")
    return tuple(sorted(set(numbers)))
