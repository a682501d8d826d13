"""Does the figure of the theorem show the numbers of `bounds`, and say when one is violated?"""

import numpy as np
import pytest
import xarray as xr
from matrices import measured
from test_plots import fake_result, means, panel_titles

from mcr_lens.plots.tightness import BEST, LOWER, MEASURED, plot_bounds
from mcr_lens.schema import ResultSchemaError
from mcr_lens.theorem import bound_violations, bounds

pytestmark = pytest.mark.once

UPPER, OWN, ALONG = "upper bound by the row of BOS", "the row of BOS itself, M", "other rows along it, αR"


def stream(
    n_layers: int = 4, prompts: int = 5, tokens: int = 12, *, row: float = 30.0, **attrs
) -> xr.Dataset:
    """A result whose rows are random, the first of them `row` times as long from depth 1 on."""
    g = np.random.default_rng(0)
    parts = []
    for depth in range(n_layers + 1):
        x = g.standard_normal((prompts, tokens, 9)) + g.standard_normal((prompts, 1, 9))
        x[:, 0] *= row if depth else 1
        parts.append(measured(x).assign_coords(depth=[depth]))
    ds = xr.concat(
        parts, "depth", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
    )
    return ds.assign_attrs({"n_layers": n_layers, "model": "acme/tiny", **attrs})


def lines(fig, row: int) -> dict[str, np.ndarray]:
    """Name of a line → its values, in the panel with this number."""
    axis = "y" if row == 1 else f"y{row}"
    found = [trace for trace in means(fig) if trace.yaxis == axis]
    return {trace.legendgroup.removeprefix("series "): np.asarray(trace.y) for trace in found}


def mean(array: xr.DataArray) -> np.ndarray:
    return array.mean("prompt").values


@pytest.mark.parametrize("n_layers", [1, 8, 80])
def test_lines_are_means_of_the_bounds(n_layers):
    ds = stream(n_layers)
    fig, b = plot_bounds(ds), bounds(ds)
    top, entropy, dominance, parts = (lines(fig, row) for row in (1, 2, 3, 4))
    np.testing.assert_allclose(top[MEASURED], mean(b.anisotropy))
    np.testing.assert_allclose(top[LOWER], mean(b.anisotropy_lower_bound))
    np.testing.assert_allclose(entropy[MEASURED], mean(b.normalized_entropy))
    np.testing.assert_allclose(entropy[LOWER], mean(b.normalized_entropy_lower_bound))
    np.testing.assert_allclose(entropy[UPPER], mean(b.normalized_entropy_upper_bound))
    np.testing.assert_allclose(entropy[BEST], mean(b.normalized_best_entropy_upper_bound))
    np.testing.assert_allclose(dominance[MEASURED], np.exp(mean(np.log(b.dominance))))
    np.testing.assert_allclose(dominance[LOWER], np.exp(mean(np.log(b.dominance_lower_bound))))
    np.testing.assert_allclose(parts[OWN], mean(b.bos_part))
    np.testing.assert_allclose(parts[ALONG], mean(b.alignment_part))


def test_what_was_measured_lies_between_its_bounds():
    fig = plot_bounds(stream())
    for row in (1, 2, 3):
        found = lines(fig, row)
        assert (found[LOWER] <= found[MEASURED] * (1 + 1e-12)).all()
    entropy, parts = lines(fig, 2), lines(fig, 4)
    assert (entropy[MEASURED] <= entropy[BEST]).all() and (entropy[BEST] <= entropy[UPPER] + 1e-12).all()
    np.testing.assert_allclose(parts[OWN] + parts[ALONG], 1)


def test_the_room_between_the_bounds_is_shaded():
    fig = plot_bounds(stream())
    low, high = [
        t for t in fig.data if t.legendgroup == "series room between the bounds" and t.y is not None
    ][:2]
    entropy = lines(fig, 2)
    np.testing.assert_array_equal(low.y, entropy[LOWER])
    np.testing.assert_array_equal(high.y, entropy[UPPER])
    assert high.fill == "tonexty"


def test_only_what_was_measured_has_an_interval():
    fig = plot_bounds(stream())
    groups = [t.legendgroup for t in fig.data if t.fill]
    assert sorted(groups) == ["series measured"] * 3 + ["series room between the bounds"]
    assert not [t for t in plot_bounds(stream(prompts=1)).data if t.fill and "measured" in t.legendgroup]


def test_violations_are_counted():
    ds = stream()
    assert "5 prompts; no bound is violated" in plot_bounds(ds).layout.title.text
    ds["matrix_entropy"] = ds.matrix_entropy * 3
    many = len(bound_violations(ds))
    assert many > 5
    text = plot_bounds(ds).layout.title.text.replace("<br>", " ")
    assert f"{many} violations of a bound, see mcr_lens.bound_violations" in text


def test_infinite_dominance_leaves_the_prompt_out_of_that_panel_alone():
    ds = stream(prompts=3)
    other = measured(np.repeat(np.eye(12, 9)[:1][None] * np.ones((12, 1)), 3, 0))
    for name in ds.data_vars:
        ds[name][0, 1] = other[name][0, 0].values
    fig, b = plot_bounds(ds), bounds(ds)
    assert not np.isfinite(b.dominance_lower_bound[0, 1])
    np.testing.assert_allclose(lines(fig, 3)[MEASURED][1], np.exp(mean(np.log(b.dominance[1:, 1]))))
    np.testing.assert_allclose(lines(fig, 1)[MEASURED][1], mean(b.anisotropy)[1])


def test_zero_and_single_rows_are_gaps_where_nothing_is_defined():
    ds = stream(2, tokens=1)
    fig = plot_bounds(ds)
    np.testing.assert_allclose(lines(fig, 1)[MEASURED], 1)
    assert np.isnan(lines(fig, 3)[MEASURED]).all()
    nothing = measured(np.zeros((2, 4, 3))).assign_attrs(model="acme/tiny")
    assert all(
        np.isnan(values).all() for row in (1, 2, 3, 4) for values in lines(plot_bounds(nothing), row).values()
    )


def test_a_depth_that_was_left_out_is_a_gap():
    ds = stream()
    found = lines(plot_bounds(ds.isel(depth=[0, 1, 3])), 1)[MEASURED]
    assert np.isnan(found[[2, 4]]).all()
    np.testing.assert_allclose(found[[0, 1, 3]], mean(ds.anisotropy)[[0, 1, 3]])


def test_the_row_has_its_own_name():
    names = [trace.name for trace in plot_bounds(stream(position=3)).data]
    assert "upper bound by the row of position 3" in names


def test_titles_fit_one_line_and_hostile_names_are_text():
    fig = plot_bounds(stream(model="<a href='https://evil.example'>x</a>"))
    assert "<a" not in fig.layout.title.text
    assert not any("<br>" in note.text for note in fig.layout.annotations)
    assert len(panel_titles(fig)) == 4


def test_light_and_dark_differ_in_the_template_alone():
    light, dark = plot_bounds(stream()).to_dict(), plot_bounds(stream(), dark=True).to_dict()
    assert light["layout"].pop("template") != dark["layout"].pop("template")
    np.testing.assert_equal(light, dark)


def test_refusals():
    with pytest.raises(ResultSchemaError, match="does not come from mcr_lens"):
        plot_bounds(xr.Dataset())
    with pytest.raises(ResultSchemaError, match="has no bos_energy, rest_energy"):
        plot_bounds(fake_result())
    with pytest.raises(ResultSchemaError, match="holds several conditions"):
        plot_bounds(stream().expand_dims(condition=["clean", "cut"]))
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        plot_bounds(stream().isel(prompt=[]))
