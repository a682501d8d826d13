"""Massive dimensions: are magnitude, dimension and token those of the result, at every depth?"""

import numpy as np
import pytest
from test_plots import USUAL, fake_result

from mcr_lens.conditions import join_conditions
from mcr_lens.plots.dimensions import MOST, dimension_shares, plot_massive_dimensions
from mcr_lens.results import with_vocabulary
from mcr_lens.schema import ResultSchemaError
from mcr_lens.statistics import confidence_interval

NAMES = (*USUAL, "top_activation_token", "top_activation_dimension", "median_activation")


def massive_result(n_layers: int = 6, prompts: int = 4, **options):
    """Dimensions 1415 and 2533 at BOS at every depth but the first; the third place is anybody's."""
    ds = fake_result(n_layers, prompts=prompts, names=NAMES, **options)
    g = np.random.default_rng(0)
    shape = (prompts, n_layers + 1)
    ds["top_activation"][:] = np.stack(
        [900 + 9 * g.random(shape), 300 + g.random(shape), 9 * np.ones(shape)], -1
    )
    ds["median_activation"][:] = 0.25 + 0.1 * g.random(shape)
    fixed = np.broadcast_to([1415, 2533, 0], (*shape, 3)).copy()
    fixed[..., 2] = 5 + np.arange(shape[0] * shape[1]).reshape(shape)
    ds["top_activation_dimension"] = ds.top_activation_dimension.astype(int)
    ds["top_activation_token"] = ds.top_activation_token.astype(int) * 0
    ds["top_activation_dimension"][:] = fixed
    ds["top_activation_token"][:, :, 2] = np.arange(prompts)[:, None]
    return ds


def lines(fig) -> dict:
    return {trace.name: trace for trace in fig.data if trace.type == "scatter" and trace.name}


def banded(fig) -> list:
    return [trace for trace in fig.data if trace.type == "scatter" and trace.fill == "tonexty"]


def strip(fig):
    (found,) = [trace for trace in fig.data if trace.type == "heatmap"]
    return found


@pytest.mark.parametrize("n_layers", [1, 6, 80])
def test_lines_are_the_means_over_prompts(n_layers):
    ds = massive_result(n_layers)
    fig = plot_massive_dimensions(ds)
    drawn = lines(fig)
    for place, name in enumerate(("largest", "second largest", "third largest")):
        np.testing.assert_allclose(drawn[name].y, ds.top_activation.isel(top=place).mean("prompt"))
        np.testing.assert_allclose(drawn[name].x, np.arange(n_layers + 1))
    np.testing.assert_allclose(drawn["median |x|"].y, ds.median_activation.mean("prompt"))
    assert fig.layout.yaxis.type == "log"
    low, high = fig.layout.yaxis.range
    assert 10**low < ds.median_activation.min() and 10**high > ds.top_activation.max()


def test_the_limit_is_that_of_the_definition():
    ds = massive_result()
    ds["median_activation"][:, 0] = 0.01
    limit = lines(plot_massive_dimensions(ds))["massive from here on (arXiv 2402.17762)"].y
    assert limit[0] == 100
    np.testing.assert_allclose(limit[1:], 1000 * ds.median_activation.mean("prompt")[1:])


def test_the_band_is_the_interval_of_the_largest():
    ds = massive_result(prompts=11)
    fig = plot_massive_dimensions(ds)
    (upper,) = banded(fig)
    np.testing.assert_allclose(upper.y, confidence_interval(ds.top_activation.isel(top=0)).high)
    single = plot_massive_dimensions(massive_result(prompts=1))
    assert not banded(single)
    assert "interval" not in lines(single)["largest"].hovertemplate


def test_hover_names_the_most_frequent_dimension_and_token():
    ds = massive_result()
    ds["top_activation_dimension"][0, 2, 0] = 7
    ds["top_activation_token_id"] = ds.top_activation_token + 40
    ds = with_vocabulary(ds, {40: "<bos>", 41: " the"})
    words = lines(plot_massive_dimensions(ds))["largest"].customdata[2][1]
    assert words == (
        "dimension 1415 in 75 % of prompts<br>token '&lt;bos&gt;' in 100 %<br>position 0 in 100 %"
    )
    bare = lines(plot_massive_dimensions(massive_result()))["third largest"].customdata[2][1]
    assert bare == "dimension 7 in 25 % of prompts<br>position 0 in 25 %"


def test_the_strip_shows_the_same_dimensions_at_every_depth():
    ds = massive_result(prompts=2, n_layers=3)
    ds["top_activation_dimension"][0, 0, 1] = 1415  # two tokens with one dimension count once
    drawn = strip(plot_massive_dimensions(ds))
    assert drawn.customdata[0][0] == "dimension 1415" and drawn.customdata[1][0] == "dimension 2533"
    np.testing.assert_allclose(drawn.z[0], 1)
    np.testing.assert_allclose(drawn.z[1], [0.5, 1, 1, 1])
    np.testing.assert_allclose(np.asarray(drawn.z)[2:].max(1), 0.5)


def test_rare_dimensions_are_summed_up():
    ds = massive_result(prompts=4, n_layers=6)
    fig = plot_massive_dimensions(ds)
    assert len(fig.layout.yaxis2.ticktext) == MOST + 1 and fig.layout.yaxis2.ticktext[-1] == "others"
    dims = ds.top_activation_dimension.values
    listed = [int(name) for name in fig.layout.yaxis2.ticktext[:-1]]
    rest = [[np.mean([(~np.isin(dims[p, d], listed)).any() for p in range(4)])] for d in range(7)]
    np.testing.assert_allclose(strip(fig).z[-1], np.ravel(rest))
    assert listed[:2] == [1415, 2533]


def test_no_row_for_others_where_there_are_none():
    names, shares = dimension_shares(np.full((2, 3, 3), 4))
    assert names == ["4"] and shares.tolist() == [[1, 1, 1]]


def test_what_is_not_finite_is_a_gap():
    ds = massive_result()
    ds["top_activation"][:, 3] = np.nan
    ds["top_activation"][0, 4] = np.inf
    ds["top_activation_dimension"][0, 4] = 9999
    fig = plot_massive_dimensions(ds)
    largest = lines(fig)["largest"]
    assert np.isnan(largest.y[3]) and largest.customdata[3][1] == ""
    assert largest.y[4] == pytest.approx(float(ds.top_activation[1:, 4, 0].mean()))
    assert np.isnan(np.asarray(strip(fig).z)[:, 3]).all()
    assert "9999" not in fig.layout.yaxis2.ticktext
    ds["top_activation"][:] = np.nan
    with pytest.raises(ValueError, match="no activation is finite; measure in a precision that holds them"):
        plot_massive_dimensions(ds)


def test_a_residual_stream_of_zeros_has_no_logarithm():
    ds = massive_result()
    ds["median_activation"][:] = 0.0
    ds["top_activation"][:] = 0.0
    assert plot_massive_dimensions(ds).layout.yaxis.range is not None


def test_refusals():
    ds = massive_result()
    with pytest.raises(ResultSchemaError, match=r"several conditions \(clean, ablated\); pick one with"):
        plot_massive_dimensions(join_conditions({"clean": ds, "ablated": ds}))
    with pytest.raises(ResultSchemaError, match="the result has no median_activation; measure again"):
        plot_massive_dimensions(ds.drop_vars("median_activation"))
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        plot_massive_dimensions(ds.isel(prompt=[]))


def test_names_and_tokens_cannot_put_links_into_a_figure():
    hostile = '<a href="https://evil.example">x</a>'
    ds = massive_result(model=hostile)
    ds["top_activation_token_id"] = ds.top_activation_token * 0
    fig = plot_massive_dimensions(with_vocabulary(ds, {0: hostile}))
    fig.layout.meta = None  # data for whoever places the figure, not drawn
    assert "&lt;a" in fig.to_json() and "\\u003ca" not in fig.to_json()


def test_dark_changes_the_template_alone():
    light, dark = (plot_massive_dimensions(massive_result(), dark=d) for d in (False, True))
    assert light.layout.template != dark.layout.template
    assert light.data == dark.data
