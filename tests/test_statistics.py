"""Are intervals of means over prompts what they say they are?"""

import itertools

import numpy as np
import pytest
import xarray as xr
from handmade import result
from samples import numbers, sample

from mcr_lens.resampling import bootstrap
from mcr_lens.statistics import change_correlation, confidence_interval, paired_difference

pytestmark = pytest.mark.once


# --- laws


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


# --- edges


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
