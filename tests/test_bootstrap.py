"""Is the interval of any number of prompts what it says it is?"""

from statistics import NormalDist

import numpy as np
import pytest
from samples import sample

from mcr_lens.resampling import Interval, bootstrap, student_quantile
from mcr_lens.statistics import confidence_interval

pytestmark = pytest.mark.once


def test_bootstrap_of_a_mean_is_near_the_interval_of_the_mean():
    """Two ways to the same thing."""
    values = sample(60)[:, 0, 0]
    found, wanted = bootstrap(np.mean, values.values), confidence_interval(values)
    width = float(wanted.high - wanted.low)
    assert found.value == pytest.approx(float(wanted["mean"]))
    assert abs(found.low - float(wanted.low)) < 0.15 * width
    assert abs(found.high - float(wanted.high)) < 0.15 * width
    assert found.n == 60 and found.level == 0.95 and found.undefined == 0


def correlation(x, y):
    return np.corrcoef(x, y)[0, 1]


def test_bootstrap_keeps_prompts_together():
    """A perfect correlation stays perfect in every resample."""
    x = np.random.default_rng(0).normal(size=20)
    found = bootstrap(correlation, x, 2 * x + 1)
    assert found.value == pytest.approx(1) and found.low == pytest.approx(1)


def test_bootstrap_laws():
    """Order, seed, level, and a monotone map of the number."""
    g = np.random.default_rng(1)
    x = g.normal(size=40)
    y = x + g.normal(size=40)
    found = bootstrap(correlation, x, y)
    order = g.permutation(40)
    assert bootstrap(correlation, x[order], y[order]) == found == bootstrap(correlation, x, y)
    assert bootstrap(correlation, x, y, seed=1) != found
    wider = bootstrap(correlation, x, y, level=0.99)
    assert wider.low < found.low < found.value < found.high < wider.high
    mapped = bootstrap(lambda a, b: np.arctanh(correlation(a, b)), x, y)
    assert mapped.low == pytest.approx(np.arctanh(found.low), abs=0.05)


def test_bootstrap_is_bca_at_widened_levels():
    """The textbook formula, written out: bias z₀, acceleration a from the jackknife, Student's t."""
    normal, t = NormalDist(), 2.131449546  # 0.975, 15 degrees of freedom
    x = np.sort(np.random.default_rng(3).exponential(size=16))
    found = bootstrap(lambda a: a.mean() ** 2, x[sorted(range(16), key=lambda i: x[i].tobytes())])
    ordered = x[sorted(range(16), key=lambda i: x[i].tobytes())]
    draws = np.random.default_rng(0).integers(16, size=(2000, 16))
    drawn = np.sort(ordered[draws].mean(1) ** 2)
    z0 = normal.inv_cdf(float((drawn < found.value).mean()))
    pull = np.array([np.delete(x, i).mean() ** 2 for i in range(16)])
    pull = pull.mean() - pull
    a = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    assert a > 0.03
    for bound, side in ((found.low, -1), (found.high, 1)):
        w = z0 + side * t * np.sqrt(16 / 15)
        rank = normal.cdf(z0 + w / (1 - a * w)) * 2001 - 1
        assert abs(np.searchsorted(drawn, bound) - rank) <= 1


def test_bootstrap_of_whole_numbers_is_whole():
    """A boundary is a depth, and so are the ends of its interval."""
    curves = np.arange(8) + 2 * np.random.default_rng(0).normal(size=(12, 8))
    found = bootstrap(lambda c: int(np.argmax(c.mean(0) > 3.2)), curves)
    assert found.low == int(found.low) and found.high == int(found.high)
    assert found.low <= found.value <= found.high and found.low < found.high


def test_bootstrap_of_a_constant():
    """No spread, no width."""
    found = bootstrap(lambda x: 3, np.arange(5))
    assert (found.value, found.low, found.high) == (3, 3, 3)


def test_bootstrap_says_where_the_number_has_no_value():
    """Some resamples without a value are counted, many leave no interval."""
    x = np.arange(12.0)

    def rarely(a):
        return a.mean() if a.max() > 9 else np.nan  # none of two prompts: (10/12)^12 = 11 %

    found = bootstrap(rarely, x)
    assert 0.05 < found.undefined < 0.2 and np.isnan(found.low) and np.isnan(found.high)
    assert found.value == 5.5
    loose = bootstrap(rarely, x, level=0.5)
    assert loose.undefined == found.undefined and loose.low < 5.5 < loose.high
    assert str(loose).endswith(f"(undefined in {found.undefined:.0%} of the resamples)")


def test_bootstrap_of_one_prompt():
    """A value, and no interval."""
    found = bootstrap(np.mean, [3.0])
    assert found.value == 3 and np.isnan(found.low) and str(found) == "3 [no interval from 1 prompt]"


def test_bootstrap_survives_infinity():
    """Infinite resamples stand at the ends."""
    x = np.array([0.0, 0, 0, 0, 1, 2, 3, 4])
    with np.errstate(divide="ignore"):
        found = bootstrap(lambda a: np.float64(1) / a.mean(), x[:6])
    assert found.low > 0 and found.high == np.inf


def test_bootstrap_refuses():
    """No arrays, no prompts, uneven prompts, not a number."""
    with pytest.raises(ValueError, match="bootstrap needs arrays whose first axis is the prompts; pass one"):
        bootstrap(np.mean)
    with pytest.raises(ValueError, match="bootstrap needs arrays whose first axis is the prompts"):
        bootstrap(np.mean, 3.0)
    with pytest.raises(ValueError, match="the arrays hold no prompts; measure some first"):
        bootstrap(np.mean, [])
    with pytest.raises(ValueError, match="the arrays hold 3, 2 prompts; pass as many in each"):
        bootstrap(np.dot, [1.0, 2, 3], [1.0, 2])
    with pytest.raises(ValueError, match=r"the function returned ndarray of shape \(2,\); it must return"):
        bootstrap(lambda x: x.mean(0), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"the function returned NoneType of shape \(\); it must return"):
        bootstrap(lambda x: None, np.ones(3))


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.5234, 0.4512, 0.5811, 0.95, 30), "0.52 [0.45, 0.58]"),
        (Interval(4312.3, 4200.9, 4400.2, 0.95, 30), "4312 [4201, 4400]"),
        (Interval(-0.912, -0.951, -0.803, 0.95, 30), "-0.91 [-0.95, -0.80]"),
        (Interval(1.0, 1.0, 1.0, 0.95, 30), "1 [1, 1]"),
        (Interval(2.0, 1.0, np.inf, 0.95, 30), "2 [1, inf]"),
        (Interval(0.5, np.nan, np.nan, 0.95, 7, 0.25),
         "0.5 [no interval from 7 prompts] (undefined in 25% of the resamples)"),
    ],
)  # fmt: skip
def test_interval_reads_well(interval, text):
    """Two digits of the width."""
    assert str(interval) == text


QUANTILES = [
    (0.975, 1, 12.706204736), (0.975, 2, 4.302652730), (0.975, 5, 2.570581836), (0.995, 7, 3.499483297),
    (0.95, 30, 1.697260887), (0.975, 100, 1.983971519), (0.975, 999, 1.962341461), (0.9995, 2, 31.59905458),
]  # fmt: skip


@pytest.mark.parametrize(("probability", "degrees", "wanted"), QUANTILES)
def test_student_quantile(probability, degrees, wanted):
    """Against tables; and symmetric."""
    assert student_quantile(probability, degrees) == pytest.approx(wanted, rel=1e-9)
    assert student_quantile(1 - probability, degrees) == pytest.approx(-wanted, rel=1e-9)
    assert student_quantile(0.5, degrees) == pytest.approx(0, abs=1e-12)
