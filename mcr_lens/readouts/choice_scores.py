"""Which choice is the likeliest, is it the right one, and how sure is the share of right answers?"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

Choices = Float[np.ndarray, "item choice depth"]
Answers = Float[np.ndarray, "item depth"]


@dataclass(frozen=True)
class Scores:
    """By item and depth: 1 where the answer is right, also by character, and the right one's probability."""

    correct: Answers
    correct_norm: Answers
    gold_probability: Answers


def score(
    log_likelihood: Choices, lengths: Float[np.ndarray, "item choice"], gold: Int[np.ndarray, " item"]
) -> Scores:
    """What the log-likelihoods of choices in nats, NaN where there are fewer choices, say of each item.

    The answer is argmax_c ℓ_c, or argmax_c ℓ_c / n_c with n_c characters; the first of equals, as numpy has
    it. The probability of the right choice is exp(ℓ_gold) / Σ_c exp(ℓ_c).

    Source: lm-evaluation-harness (acc, acc_norm).

    >>> likely = np.log([[[0.3], [0.2]]])
    >>> found = score(likely, np.array([[2.0, 9.0]]), np.array([1]))
    >>> [round(float(x[0, 0]), 2) for x in (found.correct, found.correct_norm, found.gold_probability)]
    [0.0, 1.0, 0.4]
    """
    likely = np.where(np.isnan(log_likelihood), -np.inf, log_likelihood)
    by_character = likely / np.where(np.isnan(lengths), 1.0, lengths)[:, :, None]
    right = gold[:, None]
    weights = np.exp(likely - likely.max(1, keepdims=True))
    of_right = np.take_along_axis(weights, gold[:, None, None], 1)[:, 0]
    return Scores(
        (likely.argmax(1) == right).astype(float),
        (by_character.argmax(1) == right).astype(float),
        of_right / weights.sum(1),
    )


def wilson(
    share: Float[np.ndarray, " depth"], n: int, level: float = 0.95
) -> tuple[Float[np.ndarray, " depth"], Float[np.ndarray, " depth"]]:
    """Wilson's score interval of a share p of n items: those π with |p − π| ≤ z √(π(1 − π)/n).

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> [round(float(x[0]), 4) for x in wilson(np.array([0.5]), 10)]
    [0.2366, 0.7634]
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At 0 and 1 the ends are these very numbers, but for rounding.
    return np.minimum(middle - reach, share).clip(0), np.maximum(middle + reach, share).clip(None, 1)


def chance(n_choices: Int[np.ndarray, " item"]) -> float:
    """The accuracy of guessing, 1/N Σ_i 1/n_i.

    Source: this library.

    >>> chance(np.array([4, 4, 2, 2]))
    0.375
    """
    return math.fsum(1 / n_choices) / len(n_choices)
