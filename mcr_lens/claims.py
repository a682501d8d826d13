"""What is a claim, and how does a number with its interval become a verdict?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mcr_lens.reading import number
from mcr_lens.resampling import Interval, mean_interval

Verdict = Literal["holds", "fails", "untestable"]


@dataclass(frozen=True)
class Claim:
    """One claim about a model, what speaks for or against it, and the verdict.

    `effect` is the number the verdict goes by, with its 95 % interval over prompts, and `measure` says what
    it is; None where there is nothing to measure. "untestable": this model or these prompts do not decide.

    >>> claim = Claim("sinks", "there are sinks", "untestable", "one prompt gives no interval")
    >>> claim.to_json()["verdict"]
    'untestable'
    """

    name: str
    statement: str
    verdict: Verdict
    evidence: str
    effect: Interval | None = None
    measure: str = ""

    def to_json(self) -> dict[str, Any]:
        """The claim as JSON values: NaN becomes null."""
        e = self.effect
        return {
            "claim": self.name,
            "statement": self.statement,
            "verdict": self.verdict,
            "evidence": self.evidence,
            "effect": None if e is None else _finite(e.value),
            "measure": self.measure,
            "ci": None if e is None or math.isnan(e.low) else [_finite(e.low), _finite(e.high)],
            "n": 0 if e is None else e.n,
        }


@dataclass(frozen=True)
class Statement:
    """A claim before the verdict: its name and what it states."""

    name: str
    text: str

    def untestable(self, why: str) -> Claim:
        """It cannot be told here."""
        return Claim(self.name, self.text, "untestable", why)

    def fails(self, why: str) -> Claim:
        """It fails without a number: what it speaks of is not there."""
        return Claim(self.name, self.text, "fails", why)

    def decided(
        self, effect: Interval, cut_off: float, said: str, measure: str, *, below: bool = False
    ) -> Claim:
        """Holds from the cut-off on (or below it), fails on the other side, untestable astride."""
        if math.isnan(effect.low):
            why = "one prompt gives no interval" if effect.n < 2 else "no interval can be given"
            return Claim(self.name, self.text, "untestable", f"{said}; {why}", effect, measure)
        above, under = effect.low >= cut_off, effect.high < cut_off
        if not above and not under:
            said = f"{said}; the interval includes the cut-off {cut_off:g}: more prompts would tell"
            return Claim(self.name, self.text, "untestable", said, effect, measure)
        return Claim(self.name, self.text, "holds" if above != below else "fails", said, effect, measure)


def specific(claim: Claim, controls: Mapping[str, Interval], *, nothing: float = 0.0) -> Claim:
    """The claim beside its controls: it holds only if none of them does half as much.

    From end to end: the upper end of a control's interval against the lower end of the effect's, both counted
    from `nothing`, what an edit without any effect gives.
    """
    if not controls or claim.effect is None:
        return claim
    listed = ", ".join(f"{name} {number(e.value, -2)}" for name, e in controls.items())
    said = f"{claim.evidence}; controls: {listed}"
    half = (claim.effect.low + nothing) / 2
    loud = [name for name, e in controls.items() if not e.high < half]
    if claim.verdict == "holds" and loud:
        return replace(claim, verdict="fails", evidence=f"{said}: not specific, see {' and '.join(loud)}")
    return replace(claim, evidence=said)


def mean_of(values: np.ndarray) -> Interval:
    """Mean of one number per prompt, with its 95 % interval."""
    mean, low, high, n = mean_interval(values[:, None], level=0.95, resamples=2000, seed=0)
    return Interval(float(mean[0]), float(low[0]), float(high[0]), 0.95, int(n[0]))


def say(effect: Interval) -> str:
    """A number and its interval for reading.

    >>> say(Interval(0.6189, 0.6101, 0.63, 0.95, 16)), say(Interval(48.61, 48.4, 48.8, 0.95, 16))
    ('0.62 [0.61, 0.63]', '48.6 [48.4, 48.8]')
    """
    digits = -2 if abs(effect.value) < 10 else 3
    text = number(effect.value, digits)
    return (
        text
        if math.isnan(effect.low)
        else f"{text} [{number(effect.low, digits)}, {number(effect.high, digits)}]"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
