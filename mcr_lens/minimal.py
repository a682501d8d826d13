"""Which blocks must be cut, together, for a massive activation to be gone?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mcr_lens._checks import as_shown, check_ratio
from mcr_lens.ablations import zero_ablation
from mcr_lens.culprit import BatchSize, PrependBos, mean_ratio, run_options
from mcr_lens.hookpoints import HookedModel
from mcr_lens.interventions import Intervention
from mcr_lens.measurement import measure
from mcr_lens.prompts import items_of

SITES = ("mlp_out", "attn_out")


@dataclass(frozen=True)
class Trial:
    """What was cut, and the largest mean ratio over depths that was left."""

    layers: tuple[int, ...]
    ratio: float


@dataclass(frozen=True)
class MinimalAblation:
    """The blocks that must be cut, together, for a massive activation to be gone.

    `layers` is minimal by inclusion: with any one of them back, the massive activation is back. If there was
    none (`found` is False) it is empty and `removed` is False: nothing was removed. If there was one and it
    stays whatever is cut, `removed` is False and `layers` is all that was cut in vain. `ratio_before` and
    `ratio_after` are the largest mean massive activation ratios over depths, and `path` every trial in order.
    """

    site: str
    position: int
    threshold: float
    layers: tuple[int, ...]
    ratio_before: float
    ratio_after: float
    removed: bool
    path: tuple[Trial, ...]

    @property
    def found(self) -> bool:
        """Whether the untouched model had a massive activation."""
        return self.ratio_before >= self.threshold

    @property
    def interventions(self) -> list[Intervention]:
        """The cut as `measure` takes it; empty where no block was cut."""
        return [_cut(self.site, self.layers, self.position)] if self.layers else []

    def __str__(self) -> str:
        """One sentence."""
        where = f"{self.site} at position {self.position}"
        if not self.found:
            return (
                f"no massive activation: the largest mean ratio is {self.ratio_before:.1f}, below "
                f"{self.threshold:g}; nothing was cut"
            )
        blocks = f"layer{'s' * (len(self.layers) > 1)} {', '.join(map(str, self.layers))}"
        where += f" of {blocks if self.layers else 'no layer'}"
        change = f"ratio {self.ratio_before:.1f} → {self.ratio_after:.1f}"
        if self.removed:
            return f"gone without {where} ({change})"
        return f"stays without {where} ({change}): these writes do not make it"


def minimal_ablation(
    model: HookedModel,
    prompts: Any,
    *,
    ratio: float = 10.0,
    site: Literal["mlp_out", "attn_out"] = "mlp_out",
    position: int = 0,
    batch_size: BatchSize = "auto",
    max_length: int | None = None,
    prepend_bos: PrependBos = "auto",
    progress: bool = True,
) -> MinimalAblation:
    """Find a minimal set of blocks whose joint zero-ablation removes the massive activation at `position`.

    Removed: the mean massive activation ratio over prompts is below `ratio` at every depth. Among the blocks
    below the depth where it is largest, the one behind which it rises most is cut, in the model as cut so
    far: another block may write instead (Qwen2). Then every block that is not needed is given back. The set
    is minimal by inclusion, not the smallest there is, and there may be others. One run over the prompts
    for each trial.

    Args:
        ratio: what counts as massive, above 1.
        site: "mlp_out" or "attn_out".
        position: the token, counted from the first; it is cut there only.
        batch_size, max_length, prepend_bos, progress: as in `measure`.

    Raises:
        ValueError: a ratio not above 1, an unknown site, or prompts whose ratio is not a finite number.
        As `measure` and `zero_ablation` for the rest.

    Source: this library, after arXiv 2510.06477 (ablation at the emergence layer; joint ablation in Qwen2).

    >>> found = mcr.minimal_ablation(model, prompts, progress=False)
    >>> isinstance(found, mcr.MinimalAblation), found.layers
    (True, (0,))
    """
    check_ratio(ratio)
    if str(site) not in SITES:
        raise ValueError(f"site={as_shown(site)}: pass one of {', '.join(SITES)}, what a block writes with")
    options = run_options(position, batch_size, max_length, prepend_bos, progress)
    trials = _Trials(model, items_of(prompts), site, options)
    cut: tuple[int, ...] = ()
    while not trials.removed(cut, ratio):
        block = trials.next_block(cut, ratio)
        if block is None:
            break
        cut = tuple(sorted((*cut, block)))
    removed = bool(cut) and trials.removed(cut, ratio)
    spare: int | None = -1
    while removed and spare is not None:  # again from the start: what was needed may be needed no longer
        rest = {block: tuple(b for b in cut if b != block) for block in cut}
        spare = next((block for block in cut if trials.removed(rest[block], ratio)), None)
        cut = cut if spare is None else rest[spare]
    return MinimalAblation(
        site=site,
        position=position,
        threshold=ratio,
        layers=cut,
        ratio_before=trials.largest(()),
        ratio_after=trials.largest(cut),
        removed=removed,
        path=tuple(Trial(layers, trials.largest(layers)) for layers in trials.profiles),
    )


class _Trials:
    """The mean ratio by depth for every set of blocks that was cut, each measured once."""

    def __init__(self, model: HookedModel, prompts: Any, site: str, options: Mapping[str, Any]) -> None:
        self._model, self._prompts, self._site, self._options = model, prompts, site, options
        self.profiles: dict[tuple[int, ...], np.ndarray] = {}

    def profile(self, cut: tuple[int, ...]) -> np.ndarray:
        if cut not in self.profiles:
            edits = [_cut(self._site, cut, self._options["position"])] if cut else []
            ds = measure(
                self._model, self._prompts, ["massive_activation_ratio"], interventions=edits, **self._options
            )
            self.profiles[cut] = mean_ratio(ds)
        return self.profiles[cut]

    def largest(self, cut: tuple[int, ...]) -> float:
        return float(self.profile(cut).max())

    def removed(self, cut: tuple[int, ...], ratio: float) -> bool:
        return self.largest(cut) < ratio

    def next_block(self, cut: tuple[int, ...], ratio: float) -> int | None:
        """The uncut block below the peak behind which the ratio rises most; None: nothing is left."""
        profile = self.profile(cut)
        if profile[0] >= ratio:  # the embedding itself
            return None
        # What a block writes cannot change a depth before it.
        left = [block for block in range(int(profile.argmax())) if block not in cut]
        return max(left, key=lambda block: float(np.diff(profile)[block])) if left else None


def _cut(site: str, layers: tuple[int, ...], position: int) -> Intervention:
    return zero_ablation(site, layers=layers, positions=position)
