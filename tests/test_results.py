"""Does a result survive the disk, and do only results of one measurement join?"""

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from handmade import HEADS, LAYERS, result

import mcr_lens
from mcr_lens import ResultSchemaError, list_metrics, load, merge, save, tidy
from mcr_lens.results import SAME
from mcr_lens.schema import SCHEMA, require, validate


def test_schema():
    """Declared axes, labels that count from 0, units and source on every variable."""
    ds = result()
    for m in list_metrics():
        assert ds[m.name].dims == m.axes
        assert ds[m.name].attrs["units"] == m.units and ds[m.name].attrs["source"] == m.source
        assert ds[m.name].attrs["long_name"] == m.label
    assert ds.depth.values.tolist() == list(range(LAYERS + 1))
    assert ds.layer.values.tolist() == list(range(LAYERS))
    assert ds["head"].values.tolist() == list(range(HEADS))
    assert ds.attrs["schema"] == SCHEMA and validate(ds) is ds


def test_every_variable_names_its_axes(tmp_path):
    """After a file, a merge and a choice of prompts too: what it says is what it has."""
    ds = result()
    parts = [ds.isel(prompt=[0]), ds.isel(prompt=slice(1, None))]
    for made in (ds, load(save(ds, tmp_path / "r.nc")), merge(*parts), ds.isel(prompt=[1])):
        for name in made.data_vars:
            assert made[name].attrs["axes"].split() == list(made[name].dims), name


@pytest.mark.parametrize("axis", ["depth", "layer", "head"])
def test_a_variable_that_has_lost_an_axis_is_asked_for(axis):
    """The sentence names both; a file of a version that did not write the axes is taken as it is."""
    ds = result()
    name = next(str(n) for n in ds.data_vars if axis in ds[n].dims)
    lost = ds.isel({axis: 0})
    with pytest.raises(ResultSchemaError, match=f"'{name}' has no axis '{axis}', its axes are "):
        require(lost, name)
    for variable in lost.data_vars:
        del lost[variable].attrs["axes"]
    require(lost, name)


def test_axes_that_nothing_uses_are_absent():
    """A result without attention has no heads."""
    ds = result({"bos_norm": 1.0})
    assert set(ds.dims) == {"prompt", "depth"} and "head" not in ds.coords


def test_round_trip(tmp_path):
    """Saved and loaded: identical, with attributes, units, text and dtypes."""
    ds = result(interventions='[{"kind": "zero_ablation"}]')
    ds["bos_norm"] = ds.bos_norm.astype(np.float32)
    path = tmp_path / "result.nc"
    assert save(ds, path) == path
    back = load(path)
    xr.testing.assert_identical(back, ds)
    assert back.bos_norm.dtype == np.float32 and back.matrix_entropy.dtype == np.float64
    assert back.has_bos.dtype == bool and back.text.values.tolist() == ds.text.values.tolist()
    assert save(back, str(path)) == path
    xr.testing.assert_identical(load(str(path)), ds)


def test_round_trip_of_measured_values(tmp_path, llama, tokens):
    """The same for what `measure` returns, booleans of the coordinates included."""
    ds = mcr_lens.measure(llama, tokens, "all", progress=False)
    xr.testing.assert_identical(load(save(ds, tmp_path / "r.nc")), ds)


def test_texts_survive_a_merge_of_files(tmp_path):
    """Short texts from one file, longer ones from another: joined and saved, none is cut."""
    parts = []
    for i, text in enumerate(["short", "a good deal longer than that"]):
        ds = result(seed=i)
        parts.append(load(save(ds.assign_coords(text=("prompt", [text, text + "!"])), tmp_path / f"{i}.nc")))
    joined = merge(*parts)
    assert joined.text.values.tolist()[2:] == [
        "a good deal longer than that",
        "a good deal longer than that!",
    ]
    for order in (parts, parts[::-1]):
        joined = merge(*order)
        xr.testing.assert_identical(load(save(joined, tmp_path / "r.nc")), joined)


def test_nan_survives(tmp_path):
    """Undefined stays undefined."""
    ds = result({"value_drain": np.nan})
    assert load(save(ds, tmp_path / "r.nc")).value_drain.isnull().all()


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    """A failure leaves the old file as it was and nothing beside it."""
    path = tmp_path / "result.nc"
    save(result(seed=1), path)
    before = path.read_bytes()

    def half(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match=r"No space left on device: '.*/result\.nc'$"):
        save(result(seed=2), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]


def test_saving_overwrites_and_leaves_no_litter(tmp_path):
    """The new file takes the place of the old one, readable by others like any file."""
    path = tmp_path / "result.nc"
    save(result(seed=1), path)
    save(result(seed=2), path)
    xr.testing.assert_identical(load(path), result(seed=2))
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_save_refuses(tmp_path):
    """A folder that does not exist, and a Dataset of somebody else."""
    with pytest.raises(FileNotFoundError, match="is not a folder; create it first"):
        save(result(), tmp_path / "no" / "result.nc")
    with pytest.raises(ResultSchemaError, match="does not come from mcr_lens"):
        save(xr.Dataset({"a": 1}), tmp_path / "r.nc")
    assert list(tmp_path.iterdir()) == []


def test_load_refuses(tmp_path):
    """No file, another kind of file, a truncated file, another netCDF, and a newer schema."""
    with pytest.raises(FileNotFoundError, match=r"missing\.nc is not a file"):
        load(tmp_path / "missing.nc")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load(tmp_path)
    text = tmp_path / "text.nc"
    text.write_text("not netCDF")
    with pytest.raises(ResultSchemaError, match=r"cannot be read as netCDF .*damaged or of another kind"):
        load(text)
    whole = save(result(), tmp_path / "whole.nc").read_bytes()
    text.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ResultSchemaError, match="cannot be read as netCDF"):
        load(text)
    other = tmp_path / "other.nc"
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(other, engine="h5netcdf")
    with pytest.raises(ResultSchemaError, match="does not come from mcr_lens"):
        load(other)
    save(result().assign_attrs(schema=1), other)
    newer = result().assign_attrs(schema=SCHEMA + 1)
    newer.to_netcdf(other, engine="h5netcdf")
    with pytest.raises(
        ResultSchemaError, match=f"schema {SCHEMA + 1} and this mcr_lens reads up to {SCHEMA}; upgrade"
    ):
        load(other)


def test_validate_refuses():
    """Not a Dataset at all."""
    with pytest.raises(ResultSchemaError, match=r"expected a Dataset from mcr_lens\.measure, got DataArray"):
        validate(result().bos_norm)


def test_merge_joins_prompts():
    """Prompts one after the other, numbered anew, with everything that is known of them."""
    one, two = result(seed=1), result(seed=2, n_tokens=(5, 6, 7))
    ds = merge(one, two)
    assert ds.prompt.values.tolist() == list(range(5))
    assert ds.n_tokens.values.tolist() == [20, 12, 5, 6, 7]
    assert ds.prompt_hash.values.tolist() == ["1-0", "1-1", "2-0", "2-1", "2-2"]
    for name in ds.data_vars:
        assert ds[name].dims == one[name].dims and ds[name].attrs == one[name].attrs
        np.testing.assert_array_equal(ds[name], np.concatenate([one[name], two[name]]))


def test_merge_is_associative():
    """How the parts were joined makes no difference."""
    a, b, c = (result(seed=s) for s in (1, 2, 3))
    xr.testing.assert_identical(merge(merge(a, b), c), merge(a, merge(b, c)))
    xr.testing.assert_identical(merge(a, b, c), merge(a, merge(b, c)))


OTHER = {
    "schema": 0, "model": "another", "revision": "step1000", "dtype": "bfloat16", "processing": "processed",
    "n_layers": 3, "n_heads": 2, "d_model": 64, "position": 1, "interventions": '[{"layers": [1]}]',
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in SAME if n not in ("n_layers", "n_heads")])
def test_merge_refuses_another_model_or_state(name):
    """Whatever makes it another measurement is named, with both values."""
    one, two = result(seed=1), result(seed=2).assign_attrs({name: OTHER[name]})
    with pytest.raises(ResultSchemaError, match=f"results differ in {name}: .* only results of one model"):
        merge(one, two)


def test_merge_refuses_the_same_prompt_twice():
    """A prompt counted twice would count double; it is quoted."""
    one = result(seed=1)
    with pytest.raises(
        ValueError, match=r"a prompt would be counted twice: 'prompt 1 of 1.*of result 1 is in"
    ):
        merge(one, merge(result(seed=2), one.isel(prompt=[1])))
    with pytest.raises(ValueError, match="counted twice"):
        merge(one, one)


def test_merge_refuses_other_variables():
    """Different variables are not filled with NaN."""
    one, two = result(seed=1), result({"bos_norm": 1.0}, seed=2)
    with pytest.raises(
        ResultSchemaError, match=r"do not hold the same variables .*select the common ones first"
    ):
        merge(one, two)
    assert merge(one[["bos_norm"]], two[["bos_norm"]]).sizes["prompt"] == 4


def test_merge_of_nothing():
    """At least one result."""
    with pytest.raises(ResultSchemaError, match="merge needs at least one result"):
        merge()


def test_tidy():
    """One row per number; axes that a variable lacks are empty; units stand beside."""
    ds = result({"bos_norm": 1.5, "sink_score": 0.25})
    frame = tidy(ds)
    assert list(frame.columns) == ["variable", "prompt", "depth", "layer", "head", "value", "units"]
    assert len(frame) == ds.bos_norm.size + ds.sink_score.size
    norms = frame[frame.variable == "bos_norm"]
    assert norms.layer.isna().all() and norms["head"].isna().all() and (norms.value == 1.5).all()
    assert norms.depth.tolist() == [0, 1, 2, 3] * 2 and str(frame.depth.dtype) == "Int64"
    assert isinstance(frame, pd.DataFrame)


def test_tidy_values_stand_at_their_labels():
    """Every number can be found again by its labels."""
    ds = result()
    frame = tidy(ds, "sink_score", "top_activation", "next_token_loss")
    row = frame[
        (frame.variable == "sink_score") & (frame.prompt == 1) & (frame.layer == 2) & (frame["head"] == 1)
    ]
    assert row.value.item() == ds.sink_score.sel(prompt=1, layer=2, head=1).item()
    top = frame[
        (frame.variable == "top_activation") & (frame.prompt == 0) & (frame.depth == 3) & (frame["top"] == 2)
    ]
    assert top.value.item() == ds.top_activation.isel(prompt=0, depth=3, top=2).item()
    assert (frame.variable == "next_token_loss").sum() == 2


def test_tidy_refuses():
    """A variable that was not measured."""
    with pytest.raises(ResultSchemaError, match="the result has no bos_nrom; measure again"):
        tidy(result(), "bos_nrom")
