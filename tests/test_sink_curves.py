"""Do curves, areas and uniform baselines of sinks follow from the scores and from nothing else?"""

import numpy as np
import pytest
import xarray as xr
from handmade import LAYERS, result

from mcr_lens import ResultSchemaError, measure, sink_rate
from mcr_lens.sink_curves import sink_area, sink_curve, uniform_sink_rate, uniform_sink_score

LENGTHS = (20, 30, 41)


def scores(seed=0, **values):
    """Three prompts with random scores; sink_queries as without a window."""
    g = np.random.default_rng(seed)
    given = {"sink_score": g.random((3, LAYERS, 2)), "strongest_sink_score": g.random((3, LAYERS, 2))}
    given["sink_queries"] = np.broadcast_to(np.array(LENGTHS)[:, None], (3, LAYERS))
    return result(given | values, n_tokens=LENGTHS)


@pytest.mark.filterwarnings("ignore::mcr_lens.ShortPromptWarning")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_curve_is_the_sink_rate_at_every_threshold(strict, dtype):
    """Also where a score equals the threshold, in the precision that was measured."""
    steps = np.array([[0.1, 0.3], [0.7, 0.29], [0.0, 1.0]])
    ds = scores(sink_score=np.broadcast_to(steps, (3, LAYERS, 2)))
    ds["sink_score"] = ds.sink_score.astype(dtype)
    curve = sink_curve(ds, [0.0, 0.1, 0.29, 0.3, 0.7, 1.0], strict=strict)
    assert curve.dims == ("prompt", "threshold", "layer") and curve.name == "sink_curve"
    assert curve.units == "1" and curve.long_name and curve.source
    for tau in curve.threshold.values:
        np.testing.assert_array_equal(curve.sel(threshold=tau), sink_rate(ds, float(tau), strict=strict))


def test_curve_falls_from_one():
    """Every head reaches 0, none stays above 1, and no threshold finds more than a lower one."""
    curve = sink_curve(scores())
    assert curve.sizes["threshold"] == 101 and (curve.isel(threshold=0) == 1).all()
    assert (curve.diff("threshold") <= 0).all()
    assert (sink_curve(scores(), [1.0], strict=True) == 0).all()


def test_curve_of_other_scores():
    """Of the variable asked for."""
    ds = scores()
    curve = sink_curve(ds, [0.5], variable="strongest_sink_score").isel(threshold=0)
    np.testing.assert_array_equal(curve, (ds.strongest_sink_score >= 0.5).mean("head"))


@pytest.mark.parametrize("variable", ["sink_score", "strongest_sink_score"])
def test_area_is_the_integral_of_the_curve(variable):
    """∫ rate dτ equals the mean score over the heads."""
    ds = scores()
    curve = sink_curve(ds, np.linspace(0, 1, 2001), variable=variable)
    area = sink_area(ds, variable=variable)
    assert area.dims == ("prompt", "layer") and area.units == "1"
    np.testing.assert_allclose(area, ds[variable].mean("head"))
    np.testing.assert_allclose(area, curve.integrate("threshold"), atol=6e-4)


def test_unmeasured_heads_are_left_out():
    """Of the curve and of the area alike; NaN where no head is left."""
    ds = scores()
    ds["sink_score"][0, 0, 0] = np.nan
    ds["sink_score"][1, 1, :] = np.nan
    curve, area = sink_curve(ds, np.linspace(0, 1, 2001)), sink_area(ds)
    assert float(area[0, 0]) == float(ds.sink_score[0, 0, 1]) and np.isnan(area[1, 1])
    assert float(curve[0, :, 0].integrate("threshold")) == pytest.approx(float(area[0, 0]), abs=6e-4)
    assert curve[1, :, 1].isnull().all() and area.isnull().sum() == 1


def uniform(length, *, window=None, chunk=None, position=0, causal=True):
    """Sink score of a head that spreads its attention evenly, from its pattern."""
    t, k = np.indices((length, length))
    visible = (k <= t) if causal else np.ones((length, length), bool)
    visible &= t - k < (window or length)
    visible &= t // (chunk or length) == k // (chunk or length)
    pattern = visible / visible.sum(1, keepdims=True)
    return pattern[:, position].sum() / visible[:, position].sum(), int(visible[:, position].sum())


@pytest.mark.parametrize("kind", [{}, {"window": 8}, {"chunk": 8}, {"window": 100}])
def test_uniform_score_is_that_of_a_uniform_pattern(kind):
    """Full attention, a window, a chunk: H_n/n exactly, prompt by prompt."""
    wanted, seen = zip(*(uniform(n, **kind) for n in LENGTHS), strict=True)
    ds = scores(sink_queries=np.broadcast_to(np.array(seen)[:, None], (3, LAYERS)))
    found = uniform_sink_score(ds)
    assert found.dims == ("prompt", "layer") and found.units == "1" and found.name == "uniform_sink_score"
    np.testing.assert_allclose(found, np.broadcast_to(np.array(wanted)[:, None], found.shape), rtol=1e-12)


def test_uniform_score_differs_between_layers():
    """A sliding layer among full ones."""
    ds = scores(sink_queries=np.array([[20, 8, 20], [30, 8, 30], [41, 8, 41]]))
    found = uniform_sink_score(ds)
    np.testing.assert_allclose(found[2], [uniform(41)[0], uniform(41, window=8)[0], uniform(41)[0]])


@pytest.mark.parametrize(("length", "wanted"), [(16, 0.2113), (64, 0.0741), (128, 0.0424), (512, 0.0133)])
def test_uniform_score_in_numbers(length, wanted):
    """H_T/T."""
    ds = result({"sink_queries": float(length)}, n_tokens=(length,))
    assert float(uniform_sink_score(ds)[0, 0]) == pytest.approx(wanted, abs=5e-5)


@pytest.mark.parametrize("position", [1, 5])
def test_uniform_score_at_another_position(position):
    """(H_T − H_p)/(T − p) without a window; not known, hence NaN, where one hides the key."""
    wanted, seen = zip(*(uniform(n, position=position) for n in LENGTHS), strict=True)
    ds = scores(sink_queries=np.broadcast_to(np.array(seen)[:, None], (3, LAYERS)))
    ds["sink_queries"][2, 1] = 8
    found = uniform_sink_score(ds.assign_attrs(position=position))
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-12)
    assert np.isnan(found[2, 1]) and found.isnull().sum() == 1


def test_uniform_score_of_an_encoder():
    """Every query sees every key: 1/T."""
    ds = scores().assign_attrs(architecture="BertForMaskedLM")
    np.testing.assert_allclose(uniform_sink_score(ds)[:, 0], [uniform(n, causal=False)[0] for n in LENGTHS])


def test_uniform_heads_have_no_area_of_their_own():
    """Zero for uniform heads of any length, more for sinks, less for heads that look away."""
    ds = scores()
    even = ds.assign(sink_score=uniform_sink_score(ds).expand_dims(head=2, axis=2))
    np.testing.assert_allclose(sink_area(even, above_uniform=True), 0, atol=1e-15)
    sinks = ds.assign(sink_score=xr.ones_like(ds.sink_score))
    above = sink_area(sinks, above_uniform=True)
    assert above.name == "sink_area_above_uniform" and (above > 0.7).all()
    away = ds.assign(sink_score=xr.zeros_like(ds.sink_score))
    np.testing.assert_allclose(sink_area(away, above_uniform=True), -uniform_sink_score(ds))


def test_uniform_rate_says_where_a_threshold_finds_nothing():
    """H_9/9 = 0.314 passes 0.3, H_10/10 = 0.293 does not; equality counts unless strict."""
    ds = result({"sink_queries": [[9.0], [10.0], [1.0]]}, n_tokens=(9, 10, 1))
    assert uniform_sink_rate(ds)[:, 0].values.tolist() == [1.0, 0.0, 1.0]
    assert uniform_sink_rate(ds, 1.0)[:, 0].values.tolist() == [0.0, 0.0, 1.0]
    assert uniform_sink_rate(ds, 1.0, strict=True)[:, 0].values.tolist() == [0.0, 0.0, 0.0]


def test_uniform_score_of_a_measured_model(llama, prompts):
    """From what `measure` returns: with its numbers of queries, the floor 1/n lies below."""
    ds = measure(llama, prompts, ["sink_score", "sink_queries"], progress=False)
    found = uniform_sink_score(ds)
    np.testing.assert_allclose(found[:, 0], [uniform(len(p))[0] for p in prompts], rtol=1e-12)
    assert (sink_area(ds, above_uniform=True) < 0.2).all()  # random weights look about evenly


def test_sink_curves_refuse():
    """Other variables, thresholds outside 0..1, no result, several conditions, no prompts."""
    ds = scores()
    for call in (sink_curve, sink_area):
        with pytest.raises(ValueError, match="variable='bos_norm': pass one of 'sink_score', 'strong"):
            call(ds, variable="bos_norm")
        with pytest.raises(ResultSchemaError, match="the result has no early_sink_score; measure again"):
            call(ds, variable="early_sink_score")
    for taus in ([], [0.1, 30], [-0.1], [[0.1]], [float("nan")], 0.3):
        with pytest.raises(ValueError, match="thresholds must be one or more numbers in a row, each"):
            sink_curve(ds, taus)
    with pytest.raises(ValueError, match="variable='strongest_sink_score': what a uniform head scores"):
        sink_area(ds, variable="strongest_sink_score", above_uniform=True)
    with pytest.raises(ResultSchemaError, match="the result has no sink_queries; measure again"):
        sink_area(ds.drop_vars("sink_queries"), above_uniform=True)
    with pytest.raises(ValueError, match="threshold=30: mean attention lies between 0 and 1"):
        uniform_sink_rate(ds, 30)
    two = xr.concat([ds, ds], xr.DataArray(["clean", "cut"], dims="condition", name="condition"),
                    coords="minimal", compat="override", join="override")  # fmt: skip
    for call in (sink_curve, sink_area, uniform_sink_score, uniform_sink_rate):
        with pytest.raises(ResultSchemaError, match=r"expected a Dataset from mcr_lens\.measure, got int"):
            call(3)  # type: ignore[arg-type]
        with pytest.raises(ResultSchemaError, match=r"pick one with mcr_lens\.condition\(ds, 'clean'\)"):
            call(two)
        with pytest.raises(ResultSchemaError, match="the result holds no prompts; measure some first"):
            call(ds.isel(prompt=[]))
