"""What can be changed in a forward pass, as a value that is written into the result?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor

from mcr_lens.hookpoints import READS, HookedModel, check_model, hook_names

EDITABLE = ("mlp_out", "attn_out")


@dataclass(frozen=True)
class ZeroAblation:
    """Set what some blocks write to zero at some positions; everything else stays as it is.

    Positions count from the first position of the batch, so give it batches without left padding.
    Decoding steps with a key-value cache (one new position per call) are not touched.
    """

    site: str
    layers: tuple[int, ...]
    positions: tuple[int, ...] | None  # None: everywhere

    def fwd_hooks(self, model: HookedModel) -> list[tuple[str, Any]]:
        """Pairs (hook name, callback) for `run_with_hooks`, `model.hooks` or `measure`.

        Raises:
            ValueError: a layer that the model does not have, or a missing hook point.
        """
        check_model(model)
        names = hook_names(model, self.site)
        wrong = [layer for layer in self.layers if not 0 <= layer < len(names)]
        if wrong:
            raise ValueError(f"layer {wrong[0]} does not exist: the model has layers 0..{len(names) - 1}")
        return [(names[layer], partial(_zero, positions=self.positions)) for layer in self.layers]

    def describe(self) -> dict[str, Any]:
        """The intervention as JSON values."""
        return {"kind": "zero_ablation", **asdict(self)}


def _zero(tensor: Tensor, hook: Any = None, *, positions: tuple[int, ...] | None) -> Tensor:
    # With a key-value cache each new token arrives alone and would be taken for position 0. A prompt of
    # one token is the same shape; it has no other tokens that the edit could reach, bar the first.
    edited = tensor.clone()
    if positions is None:
        return edited.zero_()
    here = [p for p in positions if p < tensor.shape[1]]
    edited[:, here] = 0
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


def zero_bos_mlp(layers: int | Sequence[int]) -> ZeroAblation:
    """The paper's own ablation, x₀ ← x₀ + Attn(x)₀: zero the MLP output at BOS, attention kept.

    Other tokens are not touched. Source: arXiv 2510.06477, ablation at the emergence layer.

    >>> zero_bos_mlp(1) == zero_ablation("mlp_out", layers=[1], positions=0)
    True
    """
    return zero_ablation("mlp_out", layers=layers, positions=0)


def _integers(what: str, given: int | Sequence[int]) -> tuple[int, ...]:
    numbers = (given,) if isinstance(given, int) else tuple(given)
    if not numbers or any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers):
        raise ValueError(f"{what}={given!r}: pass one or more numbers counted from 0")
    return tuple(sorted(set(numbers)))
