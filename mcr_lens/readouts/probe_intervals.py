"""How sure is a share of right answers, when texts were drawn, and splits and shuffles too?"""

import numpy as np
from jaxtyping import Float

from mcr_lens.resampling import student_quantile

LEVEL = 0.95


def share_interval(
    values: Float[np.ndarray, "seed text depth"], ratio: float, *, paired: bool
) -> tuple[Float[np.ndarray, " depth"], Float[np.ndarray, " depth"], Float[np.ndarray, " depth"]]:
    """Mean score of tested texts with its 95 % interval, the wider of one over texts and one over seeds.

    Over texts: a text that several seeds tested counts as one, with the mean of its scores; s² of these
    means over N texts, with pseudo-texts added so that it cannot collapse where all are right (two right
    and two wrong for a share, one on each side for a difference), and Student's t of N − 1 degrees.
    Over J seeds: mean ± t_{J−1} s √(1/J + ratio), s that of the seeds' means, `ratio` tested texts by
    texts trained on where each seed splits anew, 0 where all test the same texts; none for one seed.

    Neither is enough alone: the first knows nothing of what shuffling or splitting anew would change, the
    second collapses where few seeds happen to agree. Measured: `linear_probe`.

    Args:
        values: 1 or 0 for a share, −1, 0 or 1 for a difference; NaN where a seed did not test the text.
        ratio: see above.
        paired: a difference.

    Source: Agresti and Coull 1998 (pseudo-texts of a share); Bonett and Price 2012 (of a difference of
    paired shares); Nadeau and Bengio 2003 (overlapping splits); taking the wider: this library.
    """
    seen = ~np.isnan(values[:, :, 0])
    weights = seen / (len(values) * seen.sum(1, keepdims=True))
    scores = np.where(seen[:, :, None], values, 0)
    means = scores.sum(1) / seen.sum(1, keepdims=True)
    value = means.mean(0)
    middle, reach = _over_texts(weights, scores, value, paired=paired)
    low, high = np.minimum(middle - reach, value), np.maximum(middle + reach, value)
    if len(values) > 1:
        wide = student_quantile((1 + LEVEL) / 2, len(values) - 1)
        wide = wide * np.sqrt((1 / len(values) + ratio) * means.var(0, ddof=1))
        low, high = np.minimum(low, value - wide), np.maximum(high, value + wide)
    return value, np.maximum(low, -1 if paired else 0), np.minimum(high, 1)


def _over_texts(
    weights: np.ndarray, scores: np.ndarray, value: np.ndarray, *, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half width of the interval over texts: [depth]."""
    n = 1 / float((weights.sum(0) ** 2).sum())  # texts, were all tested equally often
    pseudo = np.array([1.0, -1.0] if paired else [1.0, 1.0, 0.0, 0.0])
    middle = (n * value + pseudo.sum()) / (n + len(pseudo))
    # Σ w (x − m) = Σ w x − m Σ w for each text: no array of deviations for every seed.
    apart = np.einsum("st,std->td", weights, scores) - weights.sum(0)[:, None] * middle
    squares = n**2 * (apart**2).sum(0) + ((pseudo[:, None] - middle) ** 2).sum(0)
    wide = student_quantile((1 + LEVEL) / 2, max(1, round(n) - 1))
    return middle, wide * np.sqrt(squares) / (n + len(pseudo))
