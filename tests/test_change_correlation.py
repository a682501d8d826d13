"""Do norm, entropy and sinks change together from depth to depth, and is it said where that has no answer?"""

import re
from functools import partial

import numpy as np
import pytest
import xarray as xr
from handmade import LAYERS, result

from mcr_lens import ResultSchemaError, statistics

pytestmark = pytest.mark.once

change_correlation = partial(statistics.change_correlation, resamples=200)


def moving(norms, entropies, scores, *, n=6, noise=0.0, seed=0):
    """A result whose means move like this by depth (norm, entropy in nats) and layer (scores, both heads)."""
    g = np.random.default_rng(seed)
    shift = g.normal(size=(n, 1)) * noise
    values = {
        "bos_norm": np.asarray(norms) * (1 + 0.01 * shift),
        "matrix_entropy": np.asarray(entropies) + 0.1 * shift * g.random((n, LAYERS + 1)),
        "sink_score": np.broadcast_to(np.asarray(scores)[:, None], (n, LAYERS, 2)),
    }
    return result(values, n_tokens=[40] * n)


def test_changes_that_go_together():
    """Norm up where entropy falls: −1; and so with the logarithm where its changes are proportional."""
    found = change_correlation(moving([1, 1, 9, 5], [2.0, 2.0, 1.2, 1.6], [0.1, 0.1, 0.5]))
    row = found.sel(pair="bos_norm and entropy")
    assert float(row.correlation) == pytest.approx(-1, abs=1e-12)
    assert row.n_changes == 3 and row.n_prompts == 6
    assert float(row.low) == pytest.approx(-1) and float(row.high) == pytest.approx(-1)
    assert row.reason == ""
    tenfold = moving([1, 10, 1000, 10], [2.0, 1.8, 1.4, 1.8], [0.1, 0.1, 0.5])
    raw, log = (change_correlation(tenfold, log=flag).correlation[0] for flag in (False, True))
    assert float(log) == pytest.approx(-1, abs=1e-12) and float(raw) > -0.99


def deeper(n=12, layers=8, seed=0, noise=0.05):
    """Norm, entropy and sinks of a deeper model, with noise from prompt to prompt."""
    g = np.random.default_rng(seed)
    jump = (np.arange(layers + 1) >= 3) & (np.arange(layers + 1) < layers)
    axes = {
        "prompt": np.arange(n),
        "depth": np.arange(layers + 1),
        "layer": np.arange(layers),
        "head": [0, 1],
    }
    norm = 1 + 50 * jump + noise * 50 * g.normal(size=(n, layers + 1))
    entropy = 2.5 - 2 * jump + noise * g.normal(size=(n, layers + 1))
    score = np.where(jump[:-1, None], 0.5, 0.1) + 0.2 * g.normal(size=(n, layers, 2))
    ds = result({"bos_norm": 1.0, "matrix_entropy": 1.0, "sink_score": 0.0}, n_tokens=[40] * n)
    ds = ds.drop_vars(list(ds.data_vars)).drop_dims(["depth", "layer", "head"]).assign_coords(axes)
    ds["bos_norm"] = ("prompt", "depth"), abs(norm)
    ds["matrix_entropy"] = ("prompt", "depth"), entropy
    ds["sink_score"] = ("prompt", "layer", "head"), score.clip(0, 1)
    return ds.assign_attrs(n_layers=layers)


def correlation(x, y):
    return np.corrcoef(x, y)[0, 1]


def test_correlation_is_pearson_of_the_means():
    """Against numpy, with the alignment written out."""
    ds = deeper()
    found = change_correlation(ds)
    norm, entropy = (np.diff(ds[name].mean("prompt")) for name in ("bos_norm", "matrix_entropy"))
    sinks = np.diff((ds.sink_score >= 0.3).mean(("prompt", "head")))
    wanted = [correlation(norm, entropy), correlation(norm[:7], sinks), correlation(entropy[:7], sinks)]
    np.testing.assert_allclose(found.correlation, wanted, rtol=1e-9)
    assert found.n_changes.values.tolist() == [8, 7, 7] and found.n_prompts.values.tolist() == [12] * 3
    assert (found.low < found.correlation).all() and (found.correlation < found.high).all()
    assert found.correlation[0] < -0.95 and found.correlation[1] > 0.6


def test_last_depth_has_no_layer():
    """What happens there does not touch the sink rate's correlations, nor does the order of prompts."""
    ds = deeper()
    found = change_correlation(ds)
    moved = ds.copy(deep=True)
    moved["bos_norm"][:, -1] *= 100
    again = change_correlation(moved)
    np.testing.assert_array_equal(again.correlation[1:], found.correlation[1:])
    assert again.correlation[0] != found.correlation[0]
    shuffled = change_correlation(ds.isel(prompt=np.random.default_rng(0).permutation(12)))
    np.testing.assert_allclose(shuffled.correlation, found.correlation, rtol=1e-9)
    np.testing.assert_allclose(shuffled.low, found.low, rtol=1e-9)


def test_threshold_of_the_sink_rate():
    """It is an argument, and it matters to the pairs with sinks only."""
    ds = deeper()
    low, high = change_correlation(ds), change_correlation(ds, threshold=0.6)
    assert low.correlation[0] == high.correlation[0] and (low.correlation[1:] != high.correlation[1:]).all()


def test_prompts_with_gaps_are_left_out():
    """A prompt counts for a pair if both series are whole."""
    ds = deeper()
    ds["bos_norm"][0, 2] = np.nan
    ds["matrix_entropy"][1, 8] = np.inf  # the last depth: not in the pair with the sink rate
    found = change_correlation(ds)
    assert found.n_prompts.values.tolist() == [10, 11, 12]
    kept = change_correlation(ds.isel(prompt=slice(2, None)))
    assert kept.correlation[0] == found.correlation[0]


@pytest.mark.parametrize(
    ("norms", "entropies", "scores", "log", "pair", "reason"),
    [
        ([1, 1, 9, 5], [1.0] * 4, [0.1] * 3, False, 0, "entropy changes alike at every layer, or"),
        ([1, 2, 3, 4], [1.0, 2, 3, 1], [0.1] * 3, False, 0, "bos_norm changes alike at every layer, or"),
        ([1, 1, 9, 5], [1.0, 2, 3, 1], [0.1] * 3, False, 1, "2 changes only, and any two lie on a line"),
        ([0, 1, 9, 5], [1.0, 2, 3, 1], [0.1] * 3, True, 0, "the BOS norm is 0 at some depth and has no log"),
    ],
)  # fmt: skip
def test_no_correlation_has_a_reason(norms, entropies, scores, log, pair, reason):
    """NaN, and why."""
    found = change_correlation(moving(norms, entropies, scores), log=log).isel(pair=pair)
    assert np.isnan(found.correlation) and np.isnan(found.low) and np.isnan(found.high)
    assert str(found.reason.values).startswith(reason)


def test_no_interval_has_a_reason():
    """One prompt; and a series that stands still in many resamples."""
    one = change_correlation(deeper(1))
    assert one.correlation.notnull().all() and one.low.isnull().all()
    assert one.reason.values.tolist() == ["no interval: one prompt"] * 3
    ds = deeper(5)
    ds["sink_score"] = ds.sink_score.where(ds.prompt == 0, 0.0)
    found = change_correlation(ds)
    assert found.correlation[1].notnull() and found.low[1].isnull()
    # One prompt in five has sinks: (4/5)^5 = 33 %, and more where its changes come to nothing.
    assert re.fullmatch(
        r"no interval: in [34]\d% of the resamples a series does not change", str(found.reason[1].values)
    )
    empty = change_correlation(ds.assign(bos_norm=ds.bos_norm * np.nan))
    assert str(empty.reason[0].values) == "no prompt has finite numbers at every depth"


def test_correlations_of_models_can_be_joined_and_saved(tmp_path):
    """Mean and spread over models, as the paper reports them."""
    found = [change_correlation(deeper(seed=s)) for s in range(3)]
    models = xr.concat(found, "model").correlation
    assert models.mean("model").sizes == {"pair": 3}
    found[0].to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    assert xr.load_dataset(tmp_path / "r.nc", engine="h5netcdf").reason.values.tolist() == [""] * 3


def test_correlation_refuses():
    """Not a result, a missing variable, several conditions, no prompts, missing depths."""
    with pytest.raises(ResultSchemaError, match=r"expected a Dataset from mcr_lens\.measure, got list"):
        change_correlation([])  # type: ignore[arg-type]
    with pytest.raises(ResultSchemaError, match="the result has no sink_score; measure again"):
        change_correlation(result({"bos_norm": 1.0, "matrix_entropy": 1.0}))
    two = xr.concat([deeper(), deeper()], xr.DataArray(["clean", "cut"], dims="condition", name="condition"),
                    coords="minimal", compat="override", join="override")  # fmt: skip
    with pytest.raises(ResultSchemaError, match=r"pick one with mcr_lens\.condition\(ds, 'clean'\)"):
        change_correlation(two)
    np.testing.assert_array_equal(
        change_correlation(two.sel(condition="cut")).correlation, change_correlation(deeper()).correlation
    )
    with pytest.raises(ResultSchemaError, match="the result holds no prompts; measure some first"):
        change_correlation(deeper().isel(prompt=[]))
    with pytest.raises(ValueError, match="bos_norm and entropy lack depths in between"):
        change_correlation(deeper().isel(depth=[0, 2, 3, 4, 5]))
    with pytest.raises(ValueError, match="threshold=30: mean attention lies between 0 and 1"):
        change_correlation(deeper(), threshold=30)
