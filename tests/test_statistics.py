"""Are intervals, differences and correlations over prompts what they say they are?"""

import itertools
from statistics import NormalDist

import numpy as np
import pytest
import xarray as xr
from handmade import result

from mcr_lens.resampling import Interval, bootstrap, student_quantile
from mcr_lens.statistics import change_correlation, confidence_interval, paired_difference

pytestmark = pytest.mark.once

BOUNDS = ["mean", "low", "high"]


def sample(n=24, layers=3, heads=2, *, seed=0, **coords):
    """Skewed numbers [prompt, layer, head]."""
    values = np.random.default_rng(seed).lognormal(0, 0.5, (n, layers, heads))
    about = {"units": "1", "long_name": "Score", "source": "here"}
    array = xr.DataArray(values, dims=("prompt", "layer", "head"), attrs=about, name="score")
    return array.assign_coords(layer=range(layers), **coords)


def numbers(ds):
    return np.stack([ds[name].values for name in BOUNDS])


# --- confidence_interval: laws


def test_interval_surrounds_the_mean_over_the_other_axes():
    """Axes, labels and units stay, `prompt` goes."""
    values = sample()
    found = confidence_interval(values)
    assert dict(found.sizes) == {"layer": 3, "head": 2} and found.layer.values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found["mean"], values.mean("prompt"), rtol=1e-12)
    assert (found.low < found["mean"]).all() and (found["mean"] < found.high).all()
    assert (found.n == 24).all()
    for name in found.data_vars:
        assert {"units", "long_name", "source"} <= set(found[name].attrs)
    assert found.low.long_name == "Mean of Score: lower end of the 0.95 interval" and found.low.units == "1"


def test_each_element_is_its_own_interval():
    """Alone or together with others, in whatever order of axes."""
    values = sample()
    together = confidence_interval(values)
    alone = confidence_interval(values[:, 1, 1])
    np.testing.assert_allclose(numbers(alone), numbers(together.isel(layer=1, head=1)), rtol=1e-12)
    turned = confidence_interval(values.transpose("head", "prompt", "layer"))
    np.testing.assert_array_equal(numbers(turned.transpose("layer", "head")), numbers(together))


def test_order_of_prompts_does_not_matter():
    """Exactly, not about."""
    values = sample()
    shuffled = values.isel(prompt=np.random.default_rng(3).permutation(24))
    assert confidence_interval(shuffled).identical(confidence_interval(values))


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (1e-6, 0.0), (1.0, 1000.0), (2.5, -7.0)])
def test_scale_and_shift_go_through(scale, shift):
    """The interval of a·x + b is a·interval + b."""
    values = sample()
    np.testing.assert_allclose(
        numbers(confidence_interval(scale * values + shift)),
        scale * numbers(confidence_interval(values)) + shift,
        rtol=1e-9,
    )


@pytest.mark.parametrize("n", [4, 24])
def test_mirrored_values_have_the_mirrored_interval(n):
    """Low of −x is −high of x, also where percentiles take over (rates)."""
    rates = (sample(n) > 1.4).astype(float)
    for values in (sample(n), rates):
        there, back = confidence_interval(values), confidence_interval(-values)
        np.testing.assert_allclose(back.low, -there.high, atol=1e-12)
        np.testing.assert_allclose(back.high, -there.low, atol=1e-12)


def test_seeds():
    """The same seed, the same bounds; another seed, others, but close."""
    values = sample(200)
    first, again = confidence_interval(values), confidence_interval(values)
    other = confidence_interval(values, seed=1)
    assert first.identical(again)
    width = first.high - first.low
    assert (other.low != first.low).all() and (abs(other.low - first.low) < 0.1 * width).all()


def test_resamples_are_used():
    """More of them move the bounds less."""
    values = sample(50, 20, 20)

    def scatter(resamples):
        seeds = [confidence_interval(values, resamples=resamples, seed=s).high for s in range(4)]
        return float(xr.concat(seeds, "seed").std("seed").mean())

    assert scatter(1601) < scatter(101) / 2


@pytest.mark.parametrize("n", [2, 5, 9, 10, 24])
@pytest.mark.parametrize("kind", ["skewed", "rates"])
def test_higher_levels_are_wider(n, kind):
    """Never narrower, at any level, by either way."""
    values = sample(n, 10, 10) if kind == "skewed" else (sample(n, 10, 10) > 1.4).astype(float)
    levels = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
    found = [confidence_interval(values, level=level) for level in levels]
    for narrow, wide in itertools.pairwise(found):
        assert (wide.low <= narrow.low).all() and (wide.high >= narrow.high).all()
    assert (found[-1].high > found[0].high).any()


def test_width_shrinks_with_the_root_of_n():
    """Four times the prompts, half the width."""
    g = np.random.default_rng(5)
    width = {}
    for n in (50, 200, 800):
        found = confidence_interval(xr.DataArray(g.normal(size=(n, 300)), dims=("prompt", "layer")))
        width[n] = float((found.high - found.low).mean())
    assert width[50] / width[200] == pytest.approx(2, rel=0.05)
    assert width[200] / width[800] == pytest.approx(2, rel=0.05)


def test_many_normal_prompts_give_the_textbook_interval():
    """mean ± 1.96 s/√n."""
    values = xr.DataArray(np.random.default_rng(0).normal(size=(2000, 50)), dims=("prompt", "layer"))
    found = confidence_interval(values)
    wanted = 1.96 * values.std("prompt", ddof=1) / np.sqrt(2000)
    np.testing.assert_allclose((found.high - found.low) / 2, wanted, rtol=0.06)


def test_chunks_change_nothing(monkeypatch):
    """However little is resampled at once."""
    values = sample(24, 10, 10)
    whole = confidence_interval(values)
    monkeypatch.setattr("mcr_lens.resampling.CELLS", 5000)
    np.testing.assert_allclose(numbers(confidence_interval(values)), numbers(whole), rtol=1e-9)


# --- confidence_interval: edges


@pytest.mark.parametrize("n", [2, 5, 30])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -1e8])
def test_equal_values_are_a_point(n, value):
    """Exactly the value, without rounding."""
    found = confidence_interval(xr.DataArray(np.full((n, 2), value), dims=("prompt", "layer")))
    assert (numbers(found) == value).all()


@pytest.mark.parametrize("hits", [0, 1, 3, 8, 15, 16])
def test_rates_stay_between_nothing_and_all(hits):
    """Sixteen prompts, some of which have it: within 0..1, and wide as long as not all agree."""
    values = xr.DataArray(np.arange(16) < hits, dims="prompt")
    found = confidence_interval(values)
    assert 0 <= found.low <= hits / 16 <= found.high <= 1
    assert (found.high - found.low == 0) == (hits in (0, 16))
    if 0 < hits < 16:
        assert 0.1 < found.high - found.low < 0.7


@pytest.mark.parametrize("n", [10, 16, 30])
def test_bounds_stay_within_what_was_seen(n):
    """From ten prompts on: shares of eight heads near 1 have no bound above 1."""
    values = np.random.default_rng(0).binomial(8, 0.95, (n, 2000)) / 8
    found = confidence_interval(xr.DataArray(values, dims=("prompt", "layer")))
    assert (found.high <= values.max(0)).all() and (found.low >= values.min(0)).all()


def test_a_lone_outlier_does_not_explode_the_interval():
    """Within the values seen, though resamples without the outlier have next to no spread."""
    values = np.append(1 + 0.01 * np.random.default_rng(0).random(15), 3000.0)
    found = confidence_interval(xr.DataArray(values, dims="prompt"))
    assert values.min() <= found.low and found.high < 1000


def test_few_prompts_give_students_interval_where_nothing_can_be_studentised():
    """Three numbers: mean ± 4.30 s/√3."""
    found = confidence_interval(xr.DataArray([1.0, 2.0, 6.0], dims="prompt"))
    wanted = 4.302653 * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert float(found.high) == pytest.approx(3 + wanted, rel=1e-6)
    assert float(found.low) == pytest.approx(3 - wanted, rel=1e-6)


def test_missing_prompts_are_left_out_and_counted():
    """Each site is what it would be without them; n says how many are left."""
    values = sample()
    values[[1, 5, 7], 0, 0] = np.nan
    values[1:, 1, 0] = np.nan
    values[:, 2, 0] = np.nan
    found = confidence_interval(values)
    assert found.n.values.tolist() == [[21, 24], [1, 24], [0, 24]]
    left = values[:, 0, 0].dropna("prompt")
    np.testing.assert_allclose(numbers(confidence_interval(left)), numbers(found.isel(layer=0, head=0)))
    one, none = found.isel(layer=1, head=0), found.isel(layer=2, head=0)
    assert one["mean"] == values[0, 1, 0] and np.isnan(one.low) and np.isnan(one.high)
    assert np.isnan(numbers(none)).all()


def test_an_infinite_value_has_no_interval():
    """The mean is infinite, the bounds are not made up, and the other sites do not notice."""
    values = sample()
    clean = numbers(confidence_interval(values))
    values[0, 0, 0] = np.inf
    values[:, 0, 1] = np.inf
    found = confidence_interval(values)
    assert np.isinf(found["mean"][0]).all() and found.low[0].isnull().all() and found.high[0].isnull().all()
    np.testing.assert_allclose(numbers(found)[:, 1:], clean[:, 1:])
    assert found.n[0, 0] == 24


def test_float32_and_whole_numbers():
    """Computed in float64, whatever was measured."""
    values = sample()
    single = confidence_interval(values.astype(np.float32))
    assert single.low.dtype == np.float64
    np.testing.assert_allclose(numbers(single), numbers(confidence_interval(values)), rtol=1e-5)
    counts = confidence_interval(xr.DataArray([1, 2, 3, 4], dims="prompt"))
    assert counts["mean"] == 2.5


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, -0.5, float("nan"), True])
def test_level_is_a_share(level):
    """Everywhere, in the same words."""
    words = r"level=.*: the coverage of an interval lies between 0 and 1, such as 0\.95"
    for call in (
        lambda: confidence_interval(sample(), level=level),
        lambda: paired_difference(sample(), sample(), level=level),
        lambda: bootstrap(np.mean, [1.0, 2.0], level=level),
        lambda: change_correlation(result(), level=level),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("resamples", [0, 99, -5, 1e3, True])
def test_resamples_are_enough(resamples):
    """Whole, and a hundred at least."""
    with pytest.raises(ValueError, match=r"resamples=.*: pass a whole number of at least 100, such as 2000"):
        confidence_interval(sample(), resamples=resamples)


def test_interval_refuses():
    """What is not one variable of numbers with prompts."""
    with pytest.raises(TypeError, match=r"values is a Dataset; pass one variable, such as ds\.bos_norm"):
        confidence_interval(result())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="values holds <U1, not numbers"):
        confidence_interval(xr.DataArray(["a", "b"], dims="prompt"))
    with pytest.raises(ValueError, match="values has no axis `prompt`; pass it before"):
        confidence_interval(sample().mean("prompt"))
    with pytest.raises(ValueError, match="values holds no prompts; measure some first"):
        confidence_interval(sample()[:0])


# --- paired_difference


def test_difference_of_pairs():
    """The interval of a − b, and what the prompts share cancels."""
    common = sample(24, seed=1)
    a, b = common + sample(24, seed=2) / 100, common
    found = paired_difference(a, b)
    np.testing.assert_array_equal(numbers(found), numbers(confidence_interval(a - b)))
    alone = confidence_interval(a)
    assert ((found.high - found.low) < (alone.high - alone.low) / 20).all()


def test_difference_matches_by_hash():
    """Never by order alone."""
    names = np.array([f"h{i}" for i in range(24)])
    a = sample(24, prompt_hash=("prompt", names))
    b = sample(24, seed=9, prompt_hash=("prompt", names))
    order = np.random.default_rng(0).permutation(24)
    assert paired_difference(a, b.isel(prompt=order)).identical(paired_difference(a, b))
    assert not np.allclose(
        numbers(paired_difference(a, b)),
        numbers(paired_difference(a, b.isel(prompt=order).drop_vars("prompt_hash"))),
    )


def test_difference_matches_by_prompt_where_one_has_no_hash():
    """The coordinate `prompt` is the second choice."""
    a = sample(24, prompt=np.arange(24))
    order = np.random.default_rng(0).permutation(24)
    assert paired_difference(a, a.isel(prompt=order)).high.max() == 0


def test_difference_keeps_missing_prompts_out():
    """A prompt missing on either side does not count."""
    a, b = sample(), sample(seed=1)
    a[0, 0, 0], b[1, 0, 0] = np.nan, np.nan
    assert paired_difference(a, b).n.values.tolist() == [[22, 24], [24, 24], [24, 24]]


def test_difference_is_labelled():
    """What minus what."""
    a, b = sample(), sample().assign_attrs(long_name="Other")
    assert paired_difference(a, b)["mean"].long_name == "Mean of Score − Other"
    assert paired_difference(a, a)["mean"].long_name == "Mean of the difference of Score"
    assert paired_difference(a, a)["mean"].units == "1"


def test_difference_refuses():
    """Other prompts, other axes, other units."""
    hashes = np.array([f"h{i}" for i in range(24)])
    a = sample(24, prompt_hash=("prompt", hashes))
    other = np.concatenate([hashes[:20], ["x0", "x1", "x2", "x3"]])
    b = sample(24, prompt_hash=("prompt", other))
    with pytest.raises(ValueError, match=r"a holds 24 prompts and b 24, with 20 in common by prompt_hash"):
        paired_difference(a, b)
    with pytest.raises(ValueError, match="a holds 24 prompts and b 20, with 20 in common by prompt_hash"):
        paired_difference(a, a[:20])
    with pytest.raises(ValueError, match="a holds 24 prompts and b 20, with 20 in common by prompt;"):
        paired_difference(sample(), sample()[:20])
    unknown = sample(24, prompt_hash=("prompt", np.array(["", *hashes[1:]])))
    with pytest.raises(ValueError, match="with 23 in common by prompt_hash"):
        paired_difference(unknown, unknown[::-1])
    with pytest.raises(ValueError, match="a has the axes prompt, layer, head and b prompt, layer; select"):
        paired_difference(a, a.mean("head"))
    with pytest.raises(ValueError, match="a and b differ along 'layer'; select the same of both first"):
        paired_difference(a, a.isel(layer=[0, 1]))
    with pytest.raises(ValueError, match="a and b differ along 'layer'; select the same of both first"):
        paired_difference(a, a.isel(layer=[0, 2, 1]))
    with pytest.raises(ValueError, match="a is in '1' and b in 'nats'; subtract what has the same units"):
        paired_difference(a, a.assign_attrs(units="nats"))
    with pytest.raises(TypeError, match="b is a float; pass one variable"):
        paired_difference(a, 1.0)  # type: ignore[arg-type]


# --- bootstrap


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
