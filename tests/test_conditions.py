"""Is one condition of a comparison a result like any other, and are several never averaged unseen?"""

import json
import warnings

import numpy as np
import pytest
import xarray as xr
from handmade import result
from refusals import ROWS

import mcr_lens
from mcr_lens import (
    ResultSchemaError,
    ShortPromptWarning,
    change,
    condition,
    condition_names,
    measure,
    merge,
    normalized_entropy,
    sink_rate,
    zero_bos_mlp,
)
from mcr_lens.conditions import interventions_of, join_conditions
from mcr_lens.findings import entropy_valley, find_massive, find_sinks, phenomena
from mcr_lens.reading import caution, extremes, reading
from mcr_lens.summaries import colsum_rate, layer_sink_identity, massive_layer, mean_by_site, sink_identity
from mcr_lens.tables import profile_table

pytestmark = pytest.mark.once

CUT = [{"kind": "zero_ablation", "site": "mlp_out", "layers": [1], "positions": [0]}]
MADE = json.dumps(CUT)


def parts(seed: int = 0) -> dict[str, xr.Dataset]:
    """Two results of the same prompts, with other numbers."""
    clean = result(seed=seed)
    cut = (clean * 0.5).assign_attrs({**clean.attrs, "interventions": MADE})
    for name in clean.data_vars:
        whole = clean[name].dtype.kind == "i"
        cut[name] = (clean[name] if whole else cut[name]).assign_attrs(clean[name].attrs)
    return {"clean": clean, "cut": cut}


def joined(seed: int = 0) -> xr.Dataset:
    return join_conditions(parts(seed))


def test_joined_and_taken_apart():
    """What went in comes out, with its own interventions and the name of the condition."""
    given, ds = parts(), joined()
    assert condition_names(ds) == ["clean", "cut"] and ds.sizes["condition"] == 2
    assert interventions_of(ds) == {"clean": [], "cut": CUT}
    assert interventions_of(given["cut"]) == {"": CUT}
    for name, wanted in given.items():
        one = condition(ds, name)
        assert one.attrs["condition"] == name
        assert json.loads(one.attrs["interventions"]) == json.loads(wanted.attrs["interventions"])
        xr.testing.assert_equal(one, wanted)
        assert all(one[v].attrs == wanted[v].attrs for v in wanted.data_vars)


def test_one_condition_holds_its_own_tokens(llama):
    """The spelling of tokens that only another condition found is left behind."""
    ds = mcr_lens.compare(llama, ROWS, {"clean": [], "cut": zero_bos_mlp([0, 1, 2])}, progress=False)
    wanted = measure(llama, ROWS, progress=False)
    assert condition(ds, "clean").token_id.values.tolist() == wanted.token_id.values.tolist()
    without = condition(ds[["bos_norm"]], "clean")
    assert without.sizes.get("token_id", 0) == 0


READERS = {
    "sink_rate": sink_rate,
    "normalized_entropy": normalized_entropy,
    "colsum_rate": colsum_rate,
    "phenomena": phenomena,
    "find_massive": find_massive,
    "find_sinks": find_sinks,
    "entropy_valley": entropy_valley,
    "massive_layer": massive_layer,
    "reading": reading,
    "extremes": extremes,
    "caution": caution,
    "profile_table": profile_table,
    "mean_by_site": lambda ds: mean_by_site(ds.bos_norm),
    "plot_profile": mcr_lens.plot_profile,
    "preset": lambda ds: mcr_lens.preset(ds, "queipo2025"),
    "merge": lambda ds: merge(ds, parts(1)["cut" if ds.attrs["interventions"] == MADE else "clean"]),
    "detect_phases": lambda ds: mcr_lens.detect_phases(ds, resamples=100),
    "bounds": mcr_lens.bounds,
    "bound_violations": mcr_lens.bound_violations,
    "change_correlation": lambda ds: mcr_lens.change_correlation(ds, resamples=100),
    "sink_curve": mcr_lens.sink_curve,
    "sink_area": mcr_lens.sink_area,
    "uniform_sink_score": mcr_lens.uniform_sink_score,
    "matched_controls": lambda ds: mcr_lens.matched_controls(zero_bos_mlp(1), ds),
}
BY_ELEMENT = ("sink_rate", "normalized_entropy", "colsum_rate", "caution")
WHOLE = [name for name in READERS if name not in BY_ELEMENT]


@pytest.fixture(autouse=True)
def short_prompts():
    """The hand-made prompts are short, which is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortPromptWarning)
        yield


@pytest.mark.parametrize("name", READERS)
def test_one_condition_is_read_like_any_result(name):
    """By every function that reads a result; the same answer as from the result that went in."""
    given, ds = parts(), joined()
    for which in ("clean", "cut"):
        got, wanted = READERS[name](condition(ds, which)), READERS[name](given[which])
        if name == "merge":
            assert got.sizes["prompt"] == 4
        elif isinstance(got, xr.DataArray | xr.Dataset):
            xr.testing.assert_equal(got, wanted)
        elif name == "plot_profile":
            assert len(got.data) == len(wanted.data) > 0
        else:
            assert str(got) == str(wanted)


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "plot_profile"])
def test_several_conditions_are_not_averaged(name):
    """Refused in one sentence that names the conditions and the way out, an axis of one entry too."""
    read = READERS[name]
    words = (
        r"the result holds several conditions \(clean, cut\); pick one with "
        r"mcr_lens\.condition\(ds, 'clean'\)$"
    )
    with pytest.raises(ResultSchemaError, match=words):
        read(joined())
    with pytest.raises(ResultSchemaError, match=r"several conditions \(cut\); pick one .* 'cut'\)"):
        read(joined().isel(condition=[1]))


def test_a_profile_and_a_page_keep_the_conditions_apart(tmp_path):
    """A line for each in the figure; on the page the first in words, both in the section on ablations."""
    lines = [trace for trace in mcr_lens.plot_profile(joined(), "anisotropy").data if trace.hovertemplate]
    assert len(lines) == 2
    alone = [
        next(
            t for t in mcr_lens.plot_profile(condition(joined(), name), "anisotropy").data if t.hovertemplate
        )
        for name in ("cut", "clean")
    ]
    for line, wanted in zip(lines, alone, strict=True):
        np.testing.assert_array_equal(line.y, wanted.y)
    page = mcr_lens.write_report(joined(), tmp_path / "both.html").read_text("utf-8")
    assert "The model was changed while measuring" not in page and 'id="comparison"' in page


def test_a_page_of_one_condition(tmp_path):
    """It says what was changed."""
    page = mcr_lens.write_report(condition(joined(), "cut"), tmp_path / "r.html").read_text("utf-8")
    assert "The model was changed while measuring" in page and "zero_ablation" in page
    page = mcr_lens.write_report(condition(joined(), "clean"), tmp_path / "r.html").read_text("utf-8")
    assert "The model was changed while measuring" not in page


@pytest.mark.parametrize(
    "read", [sink_rate, normalized_entropy, colsum_rate, layer_sink_identity, sink_identity]
)
def test_readings_by_element_keep_the_axis(read):
    """The same numbers as condition by condition."""
    ds = joined()
    together = read(ds)
    assert set(together.dims) == {"condition", *read(condition(ds, "cut")).dims}
    for name in ("clean", "cut"):
        one = read(condition(ds, name))
        np.testing.assert_array_equal(together.sel(condition=name).transpose(*one.dims), one)


@pytest.mark.parametrize("pick", [condition, lambda ds, name: ds.sel(condition=name)])
def test_words_of_caution_are_those_of_the_condition(pick):
    """Picked by the library or by xarray: which interventions were made, or that none were."""
    ds = joined()
    assert not any("was changed" in words for words in caution(pick(ds, "clean")))
    assert f"The model was changed while measuring: {MADE}." in caution(pick(ds, "cut"))


def test_conditions_picked_by_xarray_do_not_mix():
    """The attribute still holds every condition, so `merge` looks at the one that was picked."""
    one, two = joined(0), joined(1)
    with pytest.raises(ResultSchemaError, match=r"results differ in interventions: '\[\]' and '\[\{.*zero"):
        merge(one.sel(condition="clean"), two.sel(condition="cut"))
    both = merge(one.sel(condition="cut"), two.sel(condition="cut"))
    assert both.sizes["prompt"] == 4 and str(both.condition.values) == "cut"
    with pytest.raises(ResultSchemaError, match="results differ in interventions"):
        merge(condition(one, "clean"), condition(two, "cut"))


def test_change_is_prompt_by_prompt():
    """After − before, with the units of the variable; of a condition to itself, nothing."""
    ds, given = joined(), parts()
    found = change(ds, "bos_norm", "cut")
    np.testing.assert_array_equal(found, given["cut"].bos_norm - given["clean"].bos_norm)
    assert found.dims == ("prompt", "depth") and found.attrs["long_name"].endswith(": cut − clean")
    assert found.attrs["units"] == given["clean"].bos_norm.attrs["units"]
    assert (change(ds, "bos_norm", "cut", baseline="cut") == 0).all()
    np.testing.assert_array_equal(change(ds, "bos_norm", "clean", baseline="cut"), -found)


def test_what_is_not_there_is_named():
    """Conditions, variables, and results without conditions."""
    ds = joined()
    with pytest.raises(ValueError, match="condition 'cutt' is not in the result; it holds clean, cut"):
        condition(ds, "cutt")
    with pytest.raises(ValueError, match="condition 'before' is not in the result"):
        change(ds, "bos_norm", "cut", baseline="before")
    with pytest.raises(ResultSchemaError, match="the result has no bos_nrom; measure again"):
        change(ds, "bos_nrom", "cut")
    for call in (
        condition_names,
        lambda ds: condition(ds, "clean"),
        lambda ds: change(ds, "bos_norm", "cut"),
    ):
        with pytest.raises(
            ResultSchemaError, match=r"no axis `condition`; pass what mcr_lens\.compare returns"
        ):
            call(result())


def test_only_one_measurement_is_joined():
    """Other prompts, models, variables, or nothing at all."""
    one = result()
    with pytest.raises(ResultSchemaError, match="no results to join; pass at least one condition"):
        join_conditions({})
    for other, message in [
        (result(seed=1), "condition 'b' was measured on other prompts than 'a'"),
        (one.isel(prompt=[0]), "condition 'b' has other variables or axes than 'a'"),
        (one[["bos_norm"]], "condition 'b' has other variables or axes than 'a'"),
        (one.assign_attrs(model="another"), "condition 'b' differs from 'a' in model; they must be of one"),
        (one.assign_attrs(position=1), "condition 'b' differs from 'a' in position"),
        (joined(), r"several conditions \(clean, cut\)"),
    ]:
        with pytest.raises(ResultSchemaError, match=message):
            join_conditions({"a": one, "b": other})
