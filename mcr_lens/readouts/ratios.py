"""How sure is a mean over units of different size, such as windows of different numbers of tokens?"""

import numpy as np

from mcr_lens.resampling import student_quantile


def ratio_interval(
    sums: np.ndarray, counts: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over all tokens, r = Σᵢ sᵢ / Σᵢ nᵢ, with its confidence interval over units, for each column.

    r ± t √(m/(m − 1) Σᵢ (sᵢ − r nᵢ)²) / Σᵢ nᵢ, with m units and Student's t of m − 1 degrees of freedom. With
    equal counts it is Student's interval of the mean. NaN bounds for a single unit.

    Args:
        sums: [unit, column], sums over the tokens of each unit.
        counts: [unit], how many tokens; positive.
        level: stated coverage.

    Source: Cochran 1977, section 2.11 (variance of a ratio of means).

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
    half = student_quantile((1 + level) / 2, m - 1) * np.sqrt(m / (m - 1) * (off**2).sum(0)) / total
    return ratio, ratio - half, ratio + half
