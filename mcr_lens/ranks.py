"""How do two rankings of the same prompts go together, and what is left of it when a third is held fixed?"""

import numpy as np

from mcr_lens.resampling import bootstrap

EXPLAINED = 1e-9
"""What the third leaves of a ranking, as 1 − ρ², below which it leaves nothing but rounding."""


def correlate(
    x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None, *,
    level: float = 0.95, resamples: int = 1000, seed: int = 0,
) -> tuple[float, float, float]:  # fmt: skip
    """Spearman's ρ over prompts, partial where something is given, with its interval; NaN for a constant.

    Source: as `spearman`, `partial_spearman` and `bootstrap`.
    """
    if not np.isfinite(y).all():
        return np.nan, np.nan, np.nan
    # Places among the different values: as good as the values, and quick to rank again in every resample.
    held = [_places(values) for values in ((x, y) if given is None else (x, y, given))]
    function = _spearman_of_places if given is None else _partial_of_places
    found = bootstrap(function, *held, level=level, resamples=resamples, seed=seed)
    return found.value, found.low, found.high


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the ranks; NaN where one side is all the same.

    Source: Spearman 1904; ties by their mean rank.

    >>> spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40]))
    0.8
    """
    return _spearman_of_places(_places(x), _places(y))


def partial_spearman(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """Spearman's ρ of x and y at equal z, (ρ_xy − ρ_xz ρ_yz)/√((1 − ρ_xz²)(1 − ρ_yz²)).

    ρ_xy where z is all the same; 0 where z explains x or y wholly; NaN where x or y is all the same.

    Source: standard (partial correlation, of ranks).

    >>> partial_spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40]), np.array([1.0, 2, 3, 4]))
    0.0
    """
    return _partial_of_places(_places(x), _places(y), _places(z))


def _partial_of_places(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    xy, xz, yz = _spearman_of_places(x, y), _spearman_of_places(x, z), _spearman_of_places(y, z)
    if np.isnan(xy) or np.isnan(xz):  # a constant; if it is z, there is nothing to match
        return xy
    left = (1 - xz**2, 1 - yz**2)
    return (
        0.0 if min(left) < EXPLAINED else float(np.clip((xy - xz * yz) / np.sqrt(left[0] * left[1]), -1, 1))
    )


def _spearman_of_places(x: np.ndarray, y: np.ndarray) -> float:
    a, b = _ranks(x), _ranks(y)
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip((a @ b) / scale, -1, 1)) if scale > 0 else np.nan


def _places(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def _ranks(places: np.ndarray) -> np.ndarray:
    """Ranks around their mean; `places` are whole numbers from 0, equal ones get their mean rank."""
    counts = np.bincount(places)
    return (np.cumsum(counts) - (counts - 1) / 2)[places] - (len(places) + 1) / 2
