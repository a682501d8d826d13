"""Which heads sink: does the map show the result's own numbers, on a scale that compares models?"""

import numpy as np
import pytest
import xarray as xr
from test_plots import USUAL, fake_result

from mcr_lens.conditions import condition, join_conditions
from mcr_lens.plots.heads import TIMES, plot_heads
from mcr_lens.schema import ResultSchemaError
from mcr_lens.statistics import confidence_interval
from mcr_lens.summaries import sink_identity

HOSTILE = '<a href="https://evil.example">x</a>'


def random_result(n_layers: int = 5, **options) -> xr.Dataset:
    ds = fake_result(n_layers, names=(*USUAL, "value_drain", "mixing_score_raw", "top_sink_score"), **options)
    g = np.random.default_rng(0)
    for name in ("sink_score", "value_drain", "mixing_score_raw", "top_sink_score", "sink_identity_index"):
        ds[name][:] = g.random(ds[name].shape)
    return ds


def maps(fig) -> list:
    """The maps with numbers, without the cells that have none."""
    return [trace for trace in fig.data if trace.type == "heatmap" and trace.showscale is not False]


def empty(fig) -> list:
    return [trace for trace in fig.data if trace.type == "heatmap" and trace.showscale is False]


@pytest.mark.parametrize("n_layers", [1, 5, 80])
def test_cells_are_the_means_over_prompts(n_layers):
    ds = random_result(n_layers)
    fig = plot_heads(ds)
    (drawn,) = maps(fig)
    np.testing.assert_allclose(drawn.z, ds.sink_score.mean("prompt").transpose("layer", "head"))
    assert (drawn.zmin, drawn.zmax) == (0, 1)  # whatever the values: two models compare
    assert list(drawn.y) == [str(i) for i in range(n_layers)] and list(drawn.x) == ["0", "1", "2", "3"]
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]  # the first block on top
    assert not empty(fig)


def test_hover_names_value_interval_and_prompts():
    ds = random_result(prompts=11)
    ds["sink_score"][0, 2, 1] = np.nan
    (drawn,) = maps(plot_heads(ds))
    found = confidence_interval(ds.sink_score.transpose("prompt", "layer", "head")).isel(layer=2, head=1)
    value, between, n = drawn.customdata[2][1]
    assert float(value) == pytest.approx(float(found["mean"]), rel=0.01)
    assert [float(end) for end in between.split(" to ")] == pytest.approx(
        [float(found.low), float(found.high)], rel=0.01
    )
    assert n == "10" and "of 11 prompts" in drawn.hovertemplate
    (single,) = maps(plot_heads(random_result(prompts=1)))
    assert {text for row in single.customdata for _, text, _ in row} == {"none"}


def test_ratios_are_coloured_by_their_logarithm_and_hover_has_the_ratio():
    ds = random_result()
    ds["value_drain"][:] = 1.0
    ds["value_drain"][:, 0] = 0.001
    ds["value_drain"][:, 1] = 200.0
    ds["value_drain"][:, 2] = 0.0
    ds["value_drain"][:, 3] = 0.5
    (drawn,) = maps(plot_heads(ds, "value_drain"))
    end = np.log10(TIMES)
    np.testing.assert_allclose(drawn.z[:, 0], [-end, end, -end, np.log10(0.5), 0])
    assert drawn.zmin == -drawn.zmax == -end
    assert [row[0][0] for row in drawn.customdata[:3]] == ["0.00100", "200", "0.00"]
    assert "log" in drawn.colorbar.title.text
    assert (drawn.colorbar.ticktext[0], drawn.colorbar.ticktext[-1]) == ("≤ 0.1", "≥ 10")


def test_a_share_beyond_one_is_held_at_the_end_of_the_scale():
    ds = random_result()
    ds["sink_output_share"] = ds.sink_score * 0 + 2.5
    (drawn,) = maps(plot_heads(ds, "sink_output_share"))
    assert (np.asarray(drawn.z) == 1).all() and drawn.colorbar.ticktext[-1] == "≥ 1"
    assert drawn.customdata[0][0][0] == "2.50"


def test_other_variables_have_a_scale_of_their_own_and_their_units():
    ds = random_result()
    (drawn,) = maps(plot_heads(ds, "mixing_score_raw"))
    means = ds.mixing_score_raw.mean("prompt")
    assert (drawn.zmin, drawn.zmax) == pytest.approx((float(means.min()), float(means.max())))
    assert drawn.colorbar.title.text == "nats"
    ds["mixing_score_raw"][:] = 0.5
    (flat,) = maps(plot_heads(ds, "mixing_score_raw"))
    assert flat.zmax > flat.zmin


def test_the_index_is_empty_where_its_support_is_small():
    ds = random_result()
    ds["sink_identity_mass"][:, 0, 1] = 0.01
    ds["sink_identity_mass"][0, 1, 1] = 0.01
    fig = plot_heads(ds, "sink_identity")
    (drawn,), (none,) = maps(fig), empty(fig)
    np.testing.assert_allclose(drawn.z, sink_identity(ds).mean("prompt"))
    assert np.argwhere(np.isfinite(none.z)).tolist() == [[0, 1]] == np.argwhere(np.isnan(drawn.z)).tolist()
    assert drawn.customdata[1][1][2] == "2"
    assert "S + I under 0.05" in none.hovertemplate
    assert [t.name for t in fig.data if t.name] == ["no number: S + I under 0.05 in all prompts"]
    ds["sink_identity_mass"][:, 0, 1] = np.nan
    assert [t.name for t in plot_heads(ds, "sink_identity").data if t.name] == ["no number"]


def test_nan_and_infinity_have_no_colour():
    ds = random_result(prompts=2)
    ds["sink_score"][:, 1, 0] = np.nan
    ds["sink_score"][:, 2, 0] = np.inf
    fig = plot_heads(ds)
    assert np.argwhere(np.isfinite(empty(fig)[0].z)).tolist() == [[1, 0], [2, 0]]
    assert np.isnan(maps(fig)[0].z[1:3, 0]).all() and np.isfinite(maps(fig)[0].z).sum() == 18


def test_several_maps_stand_one_below_the_other():
    fig = plot_heads(random_result(), ["sink_score", "sink_identity", "value_drain"])
    assert len(maps(fig)) == 3
    tops = [fig.layout[axis].domain[1] for axis in ("yaxis", "yaxis2", "yaxis3")]
    assert tops == sorted(tops, reverse=True)
    bars = [(drawn.colorbar.y, drawn.colorbar.len) for drawn in maps(fig)]
    middles = [sum(fig.layout[axis].domain) / 2 for axis in ("yaxis", "yaxis2", "yaxis3")]
    np.testing.assert_allclose([y for y, _ in bars], middles)
    assert sum(length for _, length in bars) < 1


def test_ranked_axes_give_the_largest():
    ds = random_result()
    (drawn,) = maps(plot_heads(ds, "top_sink_score"))
    np.testing.assert_allclose(drawn.z, ds.top_sink_score.isel(top=0).mean("prompt"))


def test_blocks_and_heads_keep_their_names():
    ds = random_result()
    (drawn,) = maps(plot_heads(ds.isel(layer=[1, 4], head=[3])))
    assert list(drawn.y) == ["1", "4"] and list(drawn.x) == ["3"]
    np.testing.assert_allclose(drawn.z, ds.sink_score.mean("prompt").values[[1, 4]][:, [3]])


@pytest.mark.parametrize(
    ("n_layers", "least", "most"), [(1, 60, 120), (5, 100, 200), (32, 380, 600), (80, 700, 900)]
)
def test_height_goes_with_the_number_of_blocks(n_layers, least, most):
    layout = plot_heads(fake_result(n_layers)).layout
    inner = layout.height - layout.margin.t - layout.margin.b
    assert least <= inner <= most


def test_numbers_stand_in_the_cells_where_there_is_room():
    assert maps(plot_heads(fake_result(8)))[0].text[0][0] == "0.10"
    assert maps(plot_heads(fake_result(80)))[0].texttemplate is None


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("sink_scor", "no variable 'sink_scor': did you mean 'sink_score'"),
        ("zzz", "no variable 'zzz': it holds sink_score, mixing_score"),
        ([], "variable is empty; name at least one, for example 'sink_score'"),
        (
            "bos_norm",
            "'bos_norm' has the axes prompt, depth and not layer and head; draw it with plot_profile",
        ),
        ("odd", r"'odd' has the axis 'flavour'.*ds.isel\(flavour=0\)"),
        ("ids", "'ids' holds token ids, whose mean says nothing; draw a score"),
    ],
)
def test_refusals_name_what_came_and_what_to_do(variable, message):
    ds = fake_result()
    ds["odd"] = (("prompt", "layer", "head", "flavour"), np.ones((3, 8, 4, 2)))
    ds["ids"] = ds.sink_score.astype(int).assign_attrs(units="token id")
    with pytest.raises(ValueError, match=message):
        plot_heads(ds, variable)


def test_refuses_what_is_not_one_result():
    ds = fake_result()
    both = join_conditions({"clean": ds, "ablated": ds})
    with pytest.raises(ResultSchemaError, match=r"several conditions \(clean, ablated\); pick one with"):
        plot_heads(both)
    assert len(maps(plot_heads(condition(both, "ablated")))) == 1
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        plot_heads(ds.isel(prompt=[]))
    with pytest.raises(ResultSchemaError, match="no sink_identity_index, sink_identity_mass; measure again"):
        plot_heads(fake_result(names=("sink_score",)), "sink_identity")


def test_names_cannot_put_links_into_a_figure():
    ds = fake_result(model=HOSTILE)
    ds.mixing_score.attrs.update(long_name=HOSTILE, units=HOSTILE)
    ds = ds.rename(mixing_score="mine")
    fig = plot_heads(ds, "mine")
    fig.layout.meta = None  # data for whoever places the figure, not drawn
    assert "&lt;a" in fig.to_json() and "\\u003ca" not in fig.to_json()


def test_dark_changes_the_template_alone():
    light, dark = (plot_heads(random_result(), dark=d) for d in (False, True))
    assert light.layout.template != dark.layout.template
    assert light.data == dark.data
