"""Which numbers do the judges of a diagnosis go by, and how are effects computed from them?"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens.claims import Claim, Verdict
from mcr_lens.conditions import condition, condition_names
from mcr_lens.findings import Phenomena, Place, Valley, entropy_valley, find_massive, phenomena
from mcr_lens.phases import Phases
from mcr_lens.reading import number, subject
from mcr_lens.resampling import Interval, bootstrap
from mcr_lens.summaries import normalized_entropy, sink_rate
from mcr_lens.theorem import bounds

CONTROLS = ("other token", "other layer", "attention instead")
"""Conditions that should do nothing. A random direction of the same norm is no control: it keeps the norm."""

SINK_SHARE = 0.25
"""Sinks are present where a quarter of the heads of some layer are sinks."""


HALF = 0.5
"""Most of something begins here."""


@dataclass(frozen=True)
class Findings:
    """Everything that was measured for a diagnosis: what the judges read.

    `experiments` holds the conditions "clean", "cut", the matched controls and, where other rows are massive
    too, "all rows cut"; `moved` holds "clean", "cut" and "moved", read at the position `moved_to`; `null` is
    read at other positions, and `neurons` are those of the block that writes most. What is None was not
    measured, and `why_not` says why, by the name of what is missing.
    """

    clean: xr.Dataset
    phases: Phases | None = None
    cut_layers: tuple[int, ...] = ()
    null: xr.Dataset | None = None
    mlp_share: xr.DataArray | None = None
    neurons: xr.Dataset | None = None
    experiments: xr.Dataset | None = None
    moved: xr.Dataset | None = None
    moved_to: int | None = None
    why_not: Mapping[str, str] = field(default_factory=dict)


class Evidence:
    """The numbers behind the claims of one model, and the verdicts so far: a later claim may need them."""

    def __init__(
        self, findings: Findings, *, ratio: float, threshold: float, valley: float, short: str
    ) -> None:
        self.findings: Findings = findings
        self.short: str = short
        self.ratio: float = ratio
        self.threshold: float = threshold
        self.valley: float = valley
        self.name: str = subject(findings.clean)
        self.seen: Phenomena = phenomena(findings.clean, ratio=ratio, threshold=threshold, valley=valley)
        self.entropy: np.ndarray = rows(normalized_entropy(findings.clean))
        self.rate: np.ndarray = self.rate_of(findings.clean)
        self.low: Valley | None = entropy_valley(findings.clean)
        self.sink_layers: np.ndarray = np.flatnonzero(np.nan_to_num(over_prompts(self.rate)) >= SINK_SHARE)
        self.claims: dict[str, Claim] = {}

    def verdict(self, name: str) -> Verdict:
        """The verdict on an earlier claim."""
        return self.claims[name].verdict

    @property
    def others(self) -> list[Place]:
        """The other tokens whose rows are massive."""
        position = int(self.findings.clean.attrs["position"])
        return [place for place in self.seen.massive if place.position != position]

    def still_massive(self, ds: xr.Dataset) -> float:
        """In which share of the prompts of a condition some row is massive, at the lowest depth."""
        assert self.low is not None
        left = find_massive(ds, ratio=self.ratio)
        there = left[(left.first_depth <= self.low.depth) & (left.last_depth >= self.low.depth)]
        return there.prompt.nunique() / ds.sizes["prompt"]

    def condition(self, name: str) -> xr.Dataset | None:
        """One condition of the experiments, where it was run."""
        ds = self.findings.experiments
        return condition(ds, name) if ds is not None and name in condition_names(ds) else None

    def controls(self, effect: Callable[[xr.Dataset], Interval]) -> dict[str, Interval]:
        """The same effect under every control that was run."""
        made = {name: self.condition(name) for name in CONTROLS}
        return {name: effect(ds) for name, ds in made.items() if ds is not None}

    def rate_of(self, ds: xr.Dataset) -> np.ndarray:
        """Sink rate by prompt and layer."""
        return rows(sink_rate(ds, self.threshold))

    def regained(self, after: np.ndarray) -> Interval:
        """Which share of the drop at the lowest depth is gone under other conditions."""
        assert self.low is not None
        depth = self.low.depth

        def share(clean: np.ndarray, edited: np.ndarray) -> float:
            mean = over_prompts(clean)
            return ratio_of(over_prompts(edited)[depth] - mean[depth], drop(mean, depth))

        return bootstrap(share, self.entropy, after)

    def regained_under(self, ds: xr.Dataset) -> Interval:
        """As `regained`, for a condition."""
        return self.regained(rows(normalized_entropy(ds)))

    def lost_under(self, ds: xr.Dataset) -> Interval:
        """Which share of the sinks, over the layers that have them, is gone under other conditions."""
        at = self.sink_layers

        def share(before: np.ndarray, after: np.ndarray) -> float:
            return 1 - ratio_of(over_prompts(after)[at].sum(), over_prompts(before)[at].sum())

        return bootstrap(share, self.rate, self.rate_of(ds))

    def guaranteed(self) -> str:
        """What the theorem says at the lowest depth."""
        assert self.low is not None
        if not all(name in self.findings.clean for name in ("bos_energy", "rest_energy", "bos_alignment")):
            return ""
        at = bounds(self.findings.clean.sel(depth=[self.low.depth]))
        bound, row = (float(at[v].mean()) for v in ("normalized_entropy_upper_bound", "bos_part"))
        if not bound <= self.low.before - self.valley:
            return ""  # NaN, or a bound that leaves room for no valley at all
        why = "its norm keeps" if row > HALF else "the alignment of the others with it keeps"
        return f", and by Theorem 1 {why} entropy at or below {number(bound, -2)} there"

    def why(self, what: str) -> str:
        """Why something was not measured."""
        return self.findings.why_not.get(what, "it was not measured")


def rows(array: xr.DataArray) -> np.ndarray:
    """Numbers with prompts first."""
    return array.transpose("prompt", ...).values.astype(float)


def over_prompts(values: np.ndarray) -> np.ndarray:
    """Mean over prompts; NaN is left out, and nothing left is NaN."""
    whole = np.asarray(values.sum(0))
    if not np.isnan(whole).any():  # the usual case, thousands of times in a bootstrap
        return np.asarray(whole / len(values))
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def drop(entropy: np.ndarray, depth: int | None = None) -> float:
    """How far the lowest depth (or this one) lies below the lower of its sides."""
    at = int(np.nanargmin(entropy)) if depth is None else depth
    # fmax leaves NaN out as nanmax does, and is much faster on so few numbers.
    before, after = np.fmax.reduce(entropy[: at + 1]), np.fmax.reduce(entropy[at:])
    return float(min(before, after) - entropy[at])


def ratio_of(part: Any, whole: Any) -> float:
    """A share; NaN of nothing."""
    return float(part / whole) if whole else math.nan


def listed(layers: Any) -> str:
    """Layers in words."""
    return ", ".join(map(str, layers)) or "none"
