"""Where does a curve fall, where does it come back, and is that more than noise? Arrays in, numbers out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

Shape = Literal["valley", "stays", "none"]

CHANCE = 0.02
"""Share of the curves that are noise alone which may show a shape by accident, before other conditions."""

OBVIOUS = 3
"""In a single curve of few points, so many times the smallest step is taken at its word."""

DRAWS = 1000
"""Curves of noise alone that a curve is held against."""

CELLS = 4_000_000
"""Numbers per temporary array: what is fitted at once is cut so that memory stays small."""


@dataclass(frozen=True)
class Segments:
    """A curve in three constant pieces: before, inside and after.

    `shape` is "valley" (lower inside than on both sides), "stays" (falls at `start` and does not come back;
    `stop` is then the number of points) or "none" (`start` and `stop` are None). `levels` are the means of
    the three pieces that fit best, whether or not they pass; NaN for a piece that is not there.
    `without_last` says that the valley shows only if the last point is left out, `rests_on_last` that
    it shows only if the last point is kept.
    """

    shape: Shape
    start: int | None = None
    stop: int | None = None
    levels: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    without_last: bool = False
    rests_on_last: bool = False

    @property
    def drop(self) -> float:
        """How far the middle lies below the lower of its sides; below the first side if it stays down."""
        before, inside, after = self.levels
        return before - inside if self.shape == "stays" else min(before, after) - inside


class Curve(NamedTuple):
    """One signal for a joint fit: values that fall inside, by draw and point; which points exist."""

    values: np.ndarray
    seen: np.ndarray
    weight: float = 1.0
    decides: bool = True


@np.errstate(over="ignore", invalid="ignore")  # numbers whose squares are infinite have no segments
def segment(values: np.ndarray, *, smallest: float = 0.08, inside: float = np.inf) -> Segments:
    """Split a curve at the two points where it falls and comes back, if it does.

    Least squares over all pairs of boundaries of three constant pieces whose middle is the lowest. The pair
    counts if the mean of the middle lies `smallest` below both others, and if the smaller of the two steps,
    over its standard error, is larger than in 98 % of the curves of noise alone. The noise is what is left of
    the values without the means by prompt and by point; also curves with the same correlation between points
    are tried. A single prompt has only its own scatter between neighbouring points, taken as independent;
    with three or four points there is too little of it, and `smallest` alone decides, and below sixteen a
    step of three times `smallest` is taken at its word: measure more prompts if they scatter by as much.

    A valley that shows only without the last point is a valley (`without_last`): a last point that stands
    apart hides none. Without a valley, two pieces are tried in the same way: "stays", over two points at
    least.

    Args:
        values: by prompt and point, or by point.
        smallest: the smallest step, in the units of the values.
        inside: a level that the middle must reach and that the sides must not reach.

    Raises:
        ValueError: values that are not finite, of another shape, fewer than three points or no prompts.

    >>> found = segment(np.array([0.8, 0.8, 0.8, 0.1, 0.2, 0.1, 0.7, 0.8]))
    >>> found.shape, found.start, found.stop
    ('valley', 3, 6)

    Source: this library; the noise of the largest step follows arXiv 1212.6906 (multiplier bootstrap).
    """
    given = np.atleast_2d(np.asarray(values, float))
    if given.ndim != 2 or given.shape[1] < 3 or not len(given):
        raise ValueError(
            f"values of shape {np.shape(values)}: pass one curve, or one per prompt, of at least three points"
        )
    if not np.isfinite(given).all():
        prompt, point = (int(i) for i in np.argwhere(~np.isfinite(given))[0])
        raise ValueError(f"curve {prompt} is {given[prompt, point]} at point {point}; leave such prompts out")
    points = given.shape[1]
    found = _passing(given, "valley", smallest, inside)
    shorter = _passing(given[:, :-1], "valley", smallest, inside) if points > 4 else None
    if found.shape == "valley":
        alone = shorter is not None and shorter.shape != "valley" and found.stop == points - 1
        return _replaced(found, rests_on_last=alone or (shorter is None and found.stop == points - 1))
    if shorter is not None and shorter.shape == "valley":
        return _replaced(shorter, without_last=True)
    down = _passing(given, "stays", smallest, inside)
    if down.shape == "stays" and down.start is not None and down.start <= points - 2:
        return down
    return _replaced(found, shape="none", start=None, stop=None)


def boundaries(curves: Sequence[Curve], shape: Shape, near: tuple[int, int] | None = None) -> np.ndarray:
    """The two boundaries that fit several curves at once, by draw: where they fall and where they come back.

    Largest weighted sum of the explained squares; of each curve that decides, the middle is the lowest where
    any pair of boundaries makes it so. With `near`, only boundaries one point away from these or less.

    Source: this library.
    """
    points = curves[0].values.shape[1]
    first, second = _pairs(points, shape)
    if near is not None:
        close = (abs(first - near[0]) <= 1) & (abs(second - near[1]) <= 1)
        first, second = first[close], second[close]
    draws = len(curves[0].values)
    step = max(1, CELLS // max(1, len(first)))
    found = np.empty((draws, 2), int)
    for start in range(0, draws, step):
        part = slice(start, start + step)
        total, falls = 0.0, True
        for c in curves:
            fit = _fit(c.values[part], c.seen, first, second)
            total = total + c.weight * fit.explained
            falls = falls & fit.falls if c.decides else falls
        best = _best(np.asarray(total), np.asarray(falls))
        found[part, 0], found[part, 1] = first[best], second[best]
    return found


class _Fit(NamedTuple):
    """Means of the pieces, and what they explain, by draw and pair of boundaries."""

    before: np.ndarray
    inside: np.ndarray
    after: np.ndarray
    explained: np.ndarray

    @property
    def falls(self) -> np.ndarray:
        # NaN: a piece that is not there, or has no point that exists, forbids nothing.
        return ~(self.inside >= self.before) & ~(self.inside >= self.after)


def _pairs(points: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    if shape == "valley":
        first, second = np.triu_indices(points - 2, 0)
        return first + 1, second + 2
    first = np.arange(1, points)
    return first, np.full_like(first, points)


def _fit(values: np.ndarray, seen: np.ndarray, first: np.ndarray, second: np.ndarray) -> _Fit:
    """Three constant pieces for every pair of boundaries, from running sums."""
    known = np.where(seen, values, 0.0)
    centre = known.sum(1, keepdims=True) / max(1, seen.sum())
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(np.where(seen, values - centre, 0.0), axis=1, out=sums[:, 1:])
    counts = np.concatenate([[0], np.cumsum(seen)])
    one, two = sums[:, first], sums[:, second]
    pieces = (one, counts[first]), (two - one, counts[second] - counts[first])
    pieces = *pieces, (sums[:, -1:] - two, counts[-1] - counts[second])
    before, inside, after = (total / np.where(n, n, np.nan) for total, n in pieces)
    means = before, inside, after
    explained = sum(total * np.nan_to_num(mean) for (total, _), mean in zip(pieces, means, strict=True))
    return _Fit(before + centre, inside + centre, after + centre, np.asarray(explained))


def _best(explained: np.ndarray, falls: np.ndarray) -> np.ndarray:
    """Where the most is explained among the pairs with a low middle; among all if there is none."""
    among = falls | ~falls.any(1, keepdims=True)
    return np.where(among, explained, -np.inf).argmax(1)


def _passing(values: np.ndarray, shape: Shape, smallest: float, inside: float) -> Segments:
    """The best pieces of this shape; shape "none" if they do not pass."""
    curve, points = values.mean(0, keepdims=True), values.shape[1]
    first, second = _pairs(points, shape)
    noise = _noise(values)
    (at,), (size,), means = _largest(curve, shape, noise)
    before, within, after = (float(m[0]) for m in means)
    levels = before, within, after
    found = Segments(shape, int(first[at]), int(second[at]), levels)
    sides = [levels[0]] if shape == "stays" else [levels[0], levels[2]]
    rounding = 1e-9 * (1 + abs(smallest))
    reached = np.isinf(inside) or (levels[1] <= inside and min(sides) > inside)
    obvious = bool(found.drop >= OBVIOUS * smallest)
    large = found.drop >= smallest - rounding
    if large and reached and _beyond_noise(values, shape, noise, float(size), obvious):
        return found
    return _replaced(found, shape="none")


def _largest(
    curves: np.ndarray, shape: Shape, noise: float | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Of each curve: the best pair, its smaller step over the standard error, the means of its pieces.

    Without `noise`, that of each curve is taken from its own neighbouring points. No valley at all is −∞.
    """
    points = curves.shape[1]
    first, second = _pairs(points, shape)
    fit = _fit(curves, np.ones(points, bool), first, second)
    best = _best(fit.explained, fit.falls)
    rows = np.arange(len(curves))
    means = [m[rows, best] for m in (fit.before, fit.inside, fit.after)]
    a, b = first[best], second[best]
    spread = _scatter(curves, a, b) if noise is None else noise
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (means[0] - means[1]) / np.sqrt(1 / a + 1 / (b - a))
        up = (means[2] - means[1]) / np.sqrt(1 / (points - b) + 1 / (b - a)) if shape == "valley" else down
        size = np.minimum(down, up) / spread
    return best, np.where(fit.falls[rows, best], np.nan_to_num(size, nan=-np.inf), -np.inf), means


def _scatter(curves: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Standard deviation from the differences of neighbours within the pieces: a slow drift is no noise."""
    steps = np.diff(curves, axis=1) ** 2
    place = np.arange(1, curves.shape[1])
    within = (place != a[:, None]) & (place != b[:, None])
    return np.sqrt((steps * within).sum(1) / (2 * np.maximum(within.sum(1), 1)))


def _noise(values: np.ndarray) -> float | None:
    """Standard deviation of a point of the mean curve, from the prompts; None for a single one."""
    prompts, points = values.shape
    if prompts < 2:
        return None
    square = (_residuals(values) ** 2).sum() / ((prompts - 1) * (points - 1))
    return float(np.sqrt(square / prompts))


def _residuals(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    return centred - centred.mean(1, keepdims=True)


def _beyond_noise(values: np.ndarray, shape: Shape, noise: float | None, size: float, obvious: bool) -> bool:
    """Is this size of a step one that noise alone rarely reaches?"""
    prompts, points = values.shape
    if noise is None:
        taken = points <= 4 or (obvious and points < 16)  # too few points to know the noise from
        return (taken and bool(np.isfinite(size))) or size > _by_chance(points, shape, 0)
    if noise < 1e-12 * (1 + abs(values).max()):
        return size > 0  # prompts that are copies of each other: no noise to be fooled by
    if size <= _by_chance(points, shape, (prompts - 1) * (points - 1)):
        return False
    draws = np.random.default_rng(0).standard_normal((DRAWS // 4, prompts)) @ _residuals(values)
    _, alike, _ = _largest(draws / np.sqrt(prompts * (prompts - 1)), shape, noise)
    return size > float(np.quantile(alike, 1 - CHANCE, method="higher"))


def _by_chance(points: int, shape: Shape, freedom: int) -> float:
    """What independent noise reaches in 2 % of the curves; `freedom` 0: noise from the curve itself."""
    sizes = _sizes_by_chance(points, shape, not freedom)
    if freedom:  # the noise of the values is itself an estimate
        sizes = sizes / np.sqrt(np.random.default_rng(1).chisquare(freedom, len(sizes)) / freedom)
    return float(np.quantile(sizes, 1 - CHANCE, method="higher"))


@lru_cache(maxsize=256)
def _sizes_by_chance(points: int, shape: Shape, from_itself: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    step = max(1, CELLS // points**2)
    parts = [rng.standard_normal((min(step, DRAWS - i), points)) for i in range(0, DRAWS, step)]
    return np.concatenate([_largest(part, shape, None if from_itself else 1.0)[1] for part in parts])


def _replaced(found: Segments, **changes: object) -> Segments:
    return Segments(**{**found.__dict__, **changes})  # type: ignore[arg-type]
