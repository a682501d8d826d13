"""At which depths does a model mix, compress and refine, as far as the numbers say?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, check_seed, check_threshold, is_number
from mcr_lens.phase_signals import (
    ENTROPY,
    RATIO,
    SINKS,
    check,
    segment_seen,
    signals_that_decide,
    signals_that_support,
)
from mcr_lens.segments import Curve, Segments, Shape, boundaries, segment

PAPER = {"mix": (0.0, 0.2), "compress": (0.2, 0.85), "refine": (0.85, 1.0)}
"""Where arXiv 2510.06477 places the phases, in relative depth: for comparison, never assumed."""


@dataclass(frozen=True)
class SignalPhase:
    """What one signal says by itself.

    `shape` is "valley" (the phase begins and ends), "stays" (it begins and does not end) or "none";
    `depths` are those of the phase. `decides` is True for entropy and ratio. `levels` are the means before,
    inside and after (geometric means for the ratio; NaN where there is nothing), `agrees` whether shape and
    boundaries (within one depth) are those of the result.
    """

    name: str
    decides: bool
    shape: Shape
    depths: range
    levels: tuple[float, float, float]
    agrees: bool

    def __str__(self) -> str:
        """One line."""
        if self.shape == "none":
            return f"{self.name}: no such phase"
        if self.shape == "stays":
            return f"{self.name}: from depth {self.depths.start} to the end"
        return f"{self.name}: depths {_span(self.depths)}"


@dataclass(frozen=True)
class Phases:
    """Mix, compress and refine as ranges of depths, with what they rest on.

    All three are empty without a compression phase; `refine` alone is empty where compression runs to the
    last depth. `reason` says why the three phases were not found, "" if they were. `start_interval` and
    `stop_interval` are the intervals of `compress.start` and `compress.stop` over resampled prompts; None
    for a single prompt or where there is no such boundary. `remarks` name what to keep in mind.

    >>> phases = mcr.detect_phases(ds)
    >>> isinstance(phases, mcr.Phases), phases.found, phases.label(2)
    (True, True, 'compress')
    """

    mix: range
    compress: range
    refine: range
    start_interval: tuple[int, int] | None
    stop_interval: tuple[int, int] | None
    signals: tuple[SignalPhase, ...]
    reason: str
    remarks: tuple[str, ...]
    n_prompts: int
    n_depths: int
    level: float = 0.95

    @property
    def found(self) -> bool:
        """Are there three phases: does compression begin and end?"""
        return bool(self.mix and self.compress and self.refine)

    @property
    def agreement(self) -> dict[str, bool]:
        """Signal → does it, alone, give the same phase within one depth at both boundaries?"""
        return {s.name: s.agrees for s in self.signals}

    @property
    def disagreements(self) -> tuple[str, ...]:
        """What the signals say that do not agree, a sentence each."""
        return tuple(str(s) for s in self.signals if not s.agrees)

    @property
    def fractions(self) -> dict[str, tuple[float, float]]:
        """Phase → where it begins and ends in relative depth, d / L; only phases that are there.

        Compare with `PAPER`, 0–20 %, 20–85 % and 85–100 %.
        """
        last = self.n_depths - 1
        return {name: (depths.start / last, min(depths.stop, last) / last)
                for name, depths in self._named().items() if depths}  # fmt: skip

    def label(self, depth: int) -> str:
        """The phase of a depth: "mix", "compress", "refine", or "" where no phases were found.

        Raises:
            ValueError: no depth of this result.
        """
        if not 0 <= depth < self.n_depths:
            raise ValueError(f"depth={as_shown(depth)}: this result has depths 0 to {self.n_depths - 1}")
        return next((name for name, depths in self._named().items() if depth in depths), "")

    def labels(self) -> xr.DataArray:
        """The phase of every depth, by depth: for selecting, grouping and shading."""
        names = [self.label(d) for d in range(self.n_depths)]
        about = {"units": "phase", "long_name": "Phase", "source": "this library, after arXiv 2510.06477"}
        return xr.DataArray(
            names, dims="depth", coords={"depth": np.arange(self.n_depths)}, name="phase", attrs=about
        )

    def __str__(self) -> str:
        """The phases, their intervals and fractions beside the paper's, and what every signal says."""
        verdict = "three phases" if self.found else "not three phases"
        prompts = f"{self.n_prompts} prompt{'' if self.n_prompts == 1 else 's'}"
        lines = [f"{verdict}: {self.n_depths} depths, {prompts}"]
        lines += [f"  {self.reason}"] if self.reason else []
        for name, (low, high) in self.fractions.items():
            paper = "–".join(f"{x:.0%}" for x in PAPER[name])
            depths = _span(self._named()[name])
            lines.append(f"  {name:8} depths {depths:>7}  {low:.0%}–{high:.0%} of the depth (paper {paper})")
        for what, interval in (("begins at", self.start_interval), ("ends before", self.stop_interval)):
            if interval is not None:
                low, high = interval
                lines.append(f"  compress {what} depth {low} to {high} ({self.level:.0%} interval)")
        lines += [f"  {s}{'' if s.agrees else ' (disagrees)'}" for s in self.signals]
        return "\n".join(lines + [f"  note: {remark}" for remark in self.remarks])

    def _named(self) -> dict[str, range]:
        return {"mix": self.mix, "compress": self.compress, "refine": self.refine}


def detect_phases(
    ds: xr.Dataset,
    *,
    drop: float = 0.08,
    ratio: float = 10.0,
    threshold: float = 0.3,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Phases:
    """Find the depths at which a compression phase begins and ends, from all signals that a result has.

    Each signal is split where three constant pieces fit best, Σ_d (y_d − mean of its piece)² smallest over
    all pairs of boundaries, and counts if the steps are large and more than noise between prompts
    (`mcr_lens.segments.segment`). Normalised entropy must fall and come back; the massive activation ratio,
    on a log scale, must rise to `ratio` and go below it again. Where both do, both are fitted at once, each
    divided by its standard deviation over depths. The entropy decides whether there is compression: a valley
    that no massive row makes is one, a massive row in a stream that stays wide is not. It needs both sides,
    but where entropy falls and a massive row appears and neither comes back, `compress` runs to the last
    depth. Without the entropy the ratio decides. Sink rate and mixing score move a boundary by one
    depth at most. Signals that say something else are reported, not averaged away.

    Args:
        ds: a result with `matrix_entropy` or `massive_activation_ratio`; `sink_score` and `mixing_score` are
            used where they are.
        drop: the smallest fall and recovery of normalised entropy, between means of phases.
        ratio: BOS norm over the median norm of the others from which a row is massive, geometric mean over
            prompts and depths of the phase.
        threshold: of the sink rate.
        resamples: how often prompts are drawn anew for the intervals (percentiles).
        level: of the intervals.
        seed: of the resampling.

    Raises:
        ResultSchemaError: not a result, no prompts, neither of the two, an axis `condition`, or depths that
            do not count from 0.
        ValueError: an argument out of range, fewer than three depths, or a prompt whose entropy or ratio is
            not finite.

    Source: arXiv 2510.06477 (phases; boundaries are the appearance and dissipation of the massive
    activation); the detection is this library's.

    >>> mcr.detect_phases(ds).compress
    range(1, 4)
    """
    _check(drop, ratio, threshold, resamples, level)
    check_seed(seed)
    depths, remarks = check(ds), list[str]()
    deciding, supporting = signals_that_decide(ds), signals_that_support(ds, threshold, remarks)
    own: dict[str, Segments] = {}
    if ENTROPY in deciding:
        own[ENTROPY] = segment(deciding[ENTROPY], smallest=drop)
    if RATIO in deciding:
        own[RATIO] = segment(deciding[RATIO], smallest=np.log(2), inside=-np.log(float(ratio)))
    own |= {name: segment_seen(curve) for name, curve in supporting.items()}
    shape, used, reason = _decide(own, deciding, drop, ratio)
    intervals: list[tuple[int, int] | None] = [None, None]
    start = stop = end = 0
    prompts = ds.sizes["prompt"]
    if shape != "none":
        curves = [_standard(deciding[name], own[name].without_last) for name in used]
        helping = [curve for name, curve in supporting.items() if own[name].shape != "none"]
        draws = np.random.default_rng(seed).multinomial(
            prompts, np.full(prompts, 1 / prompts), size=resamples
        )
        weights = np.concatenate([np.ones((1, prompts)), draws]) / prompts
        found = _boundaries(curves, helping, shape, weights)
        start, stop, end = int(found[0, 0]), int(found[0, 1]), depths
        if prompts > 1:
            intervals = _intervals(found[1:], level, shape)
    return Phases(
        mix=range(start),
        compress=range(start, stop),
        refine=range(stop, end),
        start_interval=intervals[0],
        stop_interval=intervals[1],
        signals=tuple(
            _signal(name, alone, shape, range(start, stop), depths, depths - (name in supporting))
            for name, alone in own.items()
        ),
        reason=reason,
        remarks=(*remarks, *_remarks(own, used, shape, depths, prompts)),
        n_prompts=prompts,
        n_depths=depths,
        level=level,
    )


def _check(drop: float, ratio: float, threshold: float, resamples: int, level: float) -> None:
    if not is_number(drop) or not 0 < drop < 1:
        raise ValueError(
            f"drop={as_shown(drop)}: normalised entropy lies between 0 and 1; pass a number in between"
        )
    if not is_number(ratio) or not 1 < ratio < np.inf:
        raise ValueError(
            f"ratio={as_shown(ratio)}: a massive row is longer than the others; pass a number above 1"
        )
    check_threshold(threshold)
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise ValueError(f"resamples={as_shown(resamples)}: pass a whole number of at least 1")
    if not is_number(level) or not 0 < level < 1:
        raise ValueError(f"level={as_shown(level)}: pass a share between 0 and 1, for example 0.95")


def _decide(
    own: dict[str, Segments], deciding: dict[str, np.ndarray], drop: float, ratio: float
) -> tuple[Shape, list[str], str]:
    """Which shape, from which signals, and why not three phases."""
    names = list(deciding)  # entropy first
    massive = own.get(RATIO)
    if own[names[0]].shape == "valley":
        return "valley", [n for n in names if own[n].shape == "valley"], ""
    stays = ""
    if massive is not None:
        last = deciding[RATIO].shape[1] - 1
        stays = f"a massive row appears at depth {massive.start} and is still there at depth {last}"
    if names[0] == RATIO:
        if own[RATIO].shape == "stays":
            return "stays", names, f"no refine phase: {stays}"
        always = (deciding[RATIO].mean(0) <= -np.log(float(ratio))).all()
        what = "BOS is massive at every depth" if always else "no massive row comes and goes"
        return "none", [], f"no compression phase: {what} (ratio of {ratio:g})"
    fall = own[ENTROPY]
    if fall.shape == "stays":
        what = f"normalised entropy falls at depth {fall.start} and does not come back"
        if massive is None or massive.shape == "none":
            return "none", [], f"no compression phase: {what}"
        if massive.shape == "stays":
            return "stays", names, f"no refine phase: {stays}, and {what}"
        gone = f"though the massive row goes at depth {massive.stop}"
        return "stays", [ENTROPY], f"no refine phase: {what}, {gone}"
    reason = f"no compression phase: normalised entropy has no fall of at least {drop:g} beyond noise"
    if massive is not None and massive.shape != "none":
        reason += f", though a massive row appears at depth {massive.start}"
    return "none", [], reason


def _standard(values: np.ndarray, without_last: bool) -> Curve:
    """A signal over the standard deviation of its mean curve: none outvotes the other by its units."""
    seen = np.ones(values.shape[1], bool)
    seen[-1] = not without_last
    return Curve(values / values.mean(0)[seen].std(), seen)


def _boundaries(
    deciding: list[Curve], supporting: list[Curve], shape: Shape, weights: np.ndarray
) -> np.ndarray:
    """The two boundaries by resample, the first row all prompts as they are."""

    def means(c: Curve) -> Curve:
        known = np.where(c.seen, c.values, 0.0)
        spread = 1.0 if c.decides else known.mean(0)[c.seen].std()
        return c._replace(values=weights @ known / spread)

    first = [means(c) for c in deciding]
    found = boundaries(first, shape)
    if not supporting:
        return found
    both = first + [means(c) for c in supporting]
    for pair in np.unique(found, axis=0):
        rows = (found == pair).all(1)
        near = (int(pair[0]), int(pair[1]))
        found[rows] = boundaries([c._replace(values=c.values[rows]) for c in both], shape, near)
    return found


def _intervals(found: np.ndarray, level: float, shape: Shape) -> list[tuple[int, int] | None]:
    tail = (1 - level) / 2
    low = np.quantile(found, tail, axis=0, method="lower")
    high = np.quantile(found, 1 - tail, axis=0, method="higher")
    both: list[Any] = [(int(a), int(b)) for a, b in zip(low, high, strict=True)]
    return both if shape == "valley" else [both[0], None]


def _signal(
    name: str, alone: Segments, shape: Shape, compress: range, depths: int, visible: int
) -> SignalPhase:
    """One signal beside the result; it has numbers at `visible` depths and may not see the end."""
    own = range(0) if alone.start is None or alone.stop is None else range(alone.start, alone.stop)
    if alone.shape == "stays":
        own = range(own.start, depths)
    agrees = alone.shape == shape == "none"
    if "none" not in (alone.shape, shape):
        starts = abs(own.start - compress.start) <= 1
        stops = compress.stop >= visible if alone.shape == "stays" else abs(own.stop - compress.stop) <= 1
        agrees = starts and stops
    before, inside, after = ((-x if name in (RATIO, SINKS) else x) for x in alone.levels)
    if name == RATIO:
        before, inside, after = (float(np.exp(x)) for x in (before, inside, after))
    decides = name in (ENTROPY, RATIO)
    return SignalPhase(name, decides, alone.shape, own, (before, inside, after), agrees)


def _remarks(own: dict[str, Segments], used: list[str], shape: Shape, depths: int, prompts: int) -> list[str]:
    remarks = []
    last = depths - 1
    if used and shape == "valley" and any(own[n].rests_on_last for n in used):
        remarks.append(f"the refine phase is depth {last} alone: without that depth nothing comes back")
    for name in used:
        if own[name].without_last:
            remarks.append(f"{name} shows the phases only without depth {last}, which stands apart")
    if prompts == 1:
        remarks.append("one prompt: no intervals, and noise is judged by the scatter along depth alone")
    return remarks


def _span(depths: range) -> str:
    if not depths:
        return "none"
    return f"{depths.start}" if len(depths) == 1 else f"{depths.start}–{depths.stop - 1}"
