"""Are moments of parts the moments of everything, whatever the parts?"""

import itertools

import numpy as np
import pytest
import xarray as xr
from handmade import result

import mcr_lens
from mcr_lens import ResultSchemaError, load_moments, measure, merge, merge_moments, moments, read_moments
from mcr_lens.conditions import join_conditions

pytestmark = pytest.mark.once


def many(n: int, seed: int = 0, *, offset: float = 0.0, holes: float = 0.0) -> xr.Dataset:
    """A handmade result of n prompts, moved far from zero, some cells undefined."""
    ds = result(n_tokens=range(2, n + 2), seed=seed)
    g = np.random.default_rng(seed + 1)
    for name in ds.data_vars:
        if ds[name].attrs["units"] not in ("token", "token id", "dimension"):
            values = ds[name].values.astype(float) + offset
            ds[name].values = np.where(g.random(values.shape) < holes, np.nan, values)
    return ds


def split(ds: xr.Dataset, *at: int) -> list[xr.Dataset]:
    edges = [0, *at, ds.sizes["prompt"]]
    return [ds.isel(prompt=slice(a, b)) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6])
@pytest.mark.parametrize("cuts", [(7,), (1, 2, 3), (0, 5, 5, 19), tuple(range(1, 40))])
def test_parts_equal_everything(offset, cuts):
    """Count, min and max exactly; mean and M2 to rounding, far from zero too, with empty parts."""
    ds = many(40, offset=offset, holes=0.2)
    whole, parts = moments(ds), merge_moments(*(moments(p) for p in split(ds, *cuts)))
    for name in whole.data_vars:
        a, b = whole[name].values, parts[name].values
        assert (a[0] == b[0]).all() and np.array_equal(a[3:], b[3:], equal_nan=True)
        np.testing.assert_allclose(b[1], a[1], rtol=1e-12)
        # M2 is a difference of squares: what rounding leaves of it grows with the distance from zero.
        np.testing.assert_allclose(b[2], a[2], rtol=1e-12, atol=1e-15 * offset**2 * 40)
    assert parts.attrs == whole.attrs and parts.n_prompts == 40


@pytest.mark.slow
def test_against_numpy():
    """Every statistic is the textbook one, over what is not NaN."""
    ds = many(30, holes=0.3)
    found = moments(ds)
    for name in found.data_vars:
        values = ds[name].values
        n = (~np.isnan(values)).sum(0)
        np.testing.assert_array_equal(read_moments(found, "count")[name], n)
        np.testing.assert_allclose(read_moments(found, "mean")[name], np.nanmean(values, 0), rtol=1e-13)
        sd = np.nanstd(values, 0, ddof=1)
        np.testing.assert_allclose(read_moments(found, "sd")[name], sd, rtol=1e-12)
        np.testing.assert_allclose(read_moments(found, "standard_error")[name], sd / np.sqrt(n), rtol=1e-12)
        np.testing.assert_array_equal(read_moments(found, "min")[name], np.nanmin(values, 0))
        np.testing.assert_array_equal(read_moments(found, "max")[name], np.nanmax(values, 0))


def test_a_cell_that_nobody_has():
    """Never defined: count 0 and NaN, without a warning; another part that has it decides alone."""
    ds = many(4)
    ds.bos_norm.values[:, 1] = np.nan
    empty = moments(ds)
    assert empty.bos_norm.sel(moment="count").values[1] == 0
    assert np.isnan(empty.bos_norm.values[1:, 1]).all() and np.isfinite(empty.bos_norm.values[:, 0]).all()
    full = moments(many(4, seed=3))
    both = merge_moments(empty, full, empty)
    np.testing.assert_array_equal(both.bos_norm.values[:, 1], full.bos_norm.values[:, 1])
    one = moments(many(1))
    assert read_moments(one, "sd").bos_norm.isnull().all() and read_moments(one).bos_norm.notnull().all()


def test_positions_have_no_mean():
    """What names a token or a dimension is left out by name; the units of the rest stay."""
    ds = many(5)
    places = {str(n) for n in ds.data_vars if ds[n].attrs["units"] in ("token", "token id", "dimension")}
    found = moments(ds)
    assert places and set(found.attrs["left_out"].split(", ")) == places
    assert set(found.data_vars) == set(map(str, ds.data_vars)) - places
    assert found.bos_norm.dims == ("moment", "depth") and found.bos_norm.dtype == np.float64
    assert read_moments(found).bos_norm.attrs["units"] == ds.bos_norm.attrs["units"]
    assert read_moments(found, "count").bos_norm.attrs["units"] == "prompt"
    only = ds[sorted(places)]
    with pytest.raises(ResultSchemaError, match="nothing in the result has a mean over prompts"):
        moments(only)


def test_the_same_parts_give_the_same_bits():
    """Left to right, so a second time is bitwise the first; the parts are not changed."""
    parts = [moments(p) for p in split(many(50, holes=0.1), 3, 20, 33)]
    before = parts[0].copy(deep=True)
    first, second = merge_moments(*parts), merge_moments(*parts)
    xr.testing.assert_identical(first, second)
    xr.testing.assert_identical(parts[0], before)
    xr.testing.assert_identical(merge_moments(parts[0]), parts[0])


def test_conditions_keep_their_axis():
    ds = many(6)
    both = join_conditions({"clean": ds, "cut": ds * 2})
    found = moments(both)
    assert found.bos_norm.dims == ("moment", "condition", "depth")
    one = moments(ds).bos_norm.values
    np.testing.assert_array_equal(found.bos_norm.sel(condition="clean").values, one)
    np.testing.assert_allclose(read_moments(found).bos_norm.sel(condition="cut"), 2 * one[1], rtol=1e-14)


def test_of_what_is_measured(tmp_path, llama, prompts):
    """The means of a model's result, tallies of its prompts, and a file that comes back the same."""
    ds = measure(llama, prompts, progress=False)
    found = moments(ds)
    for name in found.data_vars:
        mean = ds[name].astype(float).mean("prompt")
        np.testing.assert_allclose(read_moments(found)[name], mean, rtol=1e-12)
    assert (found.n_prompts, found.n_tokens) == (5, 55) and found.model == ds.model
    found.to_netcdf(tmp_path / "m.nc", engine="h5netcdf")
    xr.testing.assert_identical(load_moments(tmp_path / "m.nc"), found)
    halves = merge_moments(moments(ds.isel(prompt=slice(2))), moments(ds.isel(prompt=slice(2, None))))
    xr.testing.assert_allclose(halves, found, rtol=1e-12)


def test_refusals(tmp_path):
    """Parts of two things, results instead of moments, a lost label, another statistic."""
    one = moments(many(3))
    with pytest.raises(ResultSchemaError, match="needs at least one part"):
        merge_moments()
    with pytest.raises(ResultSchemaError, match="moments differ in model: 'hand-made' and 'other'"):
        merge_moments(one, one.assign_attrs(model="other"))
    with pytest.raises(ResultSchemaError, match=r"do not hold the same variables \(bos_norm\)"):
        merge_moments(one, one.drop_vars("bos_norm"))
    with pytest.raises(ResultSchemaError, match="have other axes"):
        merge_moments(one, one.isel(head=slice(1)))
    with pytest.raises(ResultSchemaError, match="other labels on the axis head"):
        merge_moments(one, one.assign_coords(head=one["head"] + 1))
    with pytest.raises(ResultSchemaError, match="holds no moments"):
        read_moments(many(3))
    with pytest.raises(ResultSchemaError, match="do not select along it"):
        read_moments(one.isel(moment=slice(2)))
    with pytest.raises(ResultSchemaError, match=r"from mcr_lens\.moments, got int"):
        merge_moments(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="statistic='median': pass one of count, mean, sd"):
        mcr_lens.read_moments(one, "median")  # type: ignore[arg-type]
    with pytest.raises(ResultSchemaError, match="does not come from mcr_lens"):
        moments(one)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_moments(tmp_path / "no.nc")
    (tmp_path / "bad.nc").write_text("nothing")
    with pytest.raises(ResultSchemaError, match="cannot be read as netCDF"):
        load_moments(tmp_path / "bad.nc")


def test_merge_of_results_that_share_prompts():
    """Refused as ever; counted each time when that is what is wanted."""
    ds = many(3)
    with pytest.raises(ValueError, match=r"a prompt would be counted twice.*or pass repeated=True"):
        merge(ds, ds)
    twice = merge(ds, ds, repeated=True)
    assert twice.prompt.values.tolist() == list(range(6))
    assert twice.prompt_hash.values.tolist() == 2 * ds.prompt_hash.values.tolist()
    np.testing.assert_array_equal(twice.bos_norm.values, np.concatenate([ds.bos_norm.values] * 2))
