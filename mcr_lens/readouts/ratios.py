"""How sure is a mean over units of different size, such as windows of different numbers of tokens?"""

import numpy as np

from mcr_lens.resampling import student_quantile


def ratio_interval(
    sums: np.ndarray, counts: np.ndarray, level: float = 0.95, *, follows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over all tokens, r = Σᵢ sᵢ / Σᵢ nᵢ, with its confidence interval over units, for each column.

    r ± t √(m/(m − 1) Σᵢ eᵢ²) / Σᵢ nᵢ with eᵢ = sᵢ − r nᵢ, m units and Student's t of m − 1 degrees. With
    equal counts it is Student's interval of the mean. NaN bounds for a single unit. Units that follow each
    other in one text go up and down together: where they do, 2 Σ_k (1 − k/(K + 1)) Σᵢ eᵢ eᵢ₊ₖ is added to
    the sum of squares, over the next K = ∛m units of the text.

    Args:
        sums: [unit, column], sums over the tokens of each unit.
        counts: [unit], how many tokens; positive.
        level: stated coverage.
        follows: [unit], the number of the text each unit is of, units in the order of the text; None for
            units that have nothing to do with each other.

    Source: Cochran 1977, section 2.11 (variance of a ratio of means); Newey and West 1987 (what follows).

    >>> [float(x[0]) for x in ratio_interval(np.array([[2.0], [4.0]]), np.array([2.0, 2.0]))]
    [1.5, -4.853102368087..., 7.853102368087...]
    """
    total = counts.sum()
    ratio = sums.sum(0) / total
    m = len(counts)
    if m < 2:
        nothing = np.full_like(ratio, np.nan)
        return ratio, nothing, nothing.copy()
    off = sums - ratio * counts[:, None]
    spread = (off**2).sum(0)
    if follows is not None:
        spread = spread + np.maximum(_together(off, follows), 0)
    half = student_quantile((1 + level) / 2, m - 1) * np.sqrt(m / (m - 1) * spread) / total
    return ratio, ratio - half, ratio + half


def _together(off: np.ndarray, follows: np.ndarray) -> np.ndarray:
    """What neighbours add to the variance of a sum, by column."""
    reach = round(len(off) ** (1 / 3))
    added = np.zeros(off.shape[1])
    for k in range(1, min(reach, len(off) - 1) + 1):
        same = follows[k:] == follows[:-k]
        added += 2 * (1 - k / (reach + 1)) * (off[k:] * off[:-k])[same].sum(0)
    return added
