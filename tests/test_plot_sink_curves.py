"""Sinks at every threshold: are the lines the result's own rates, and is the floor that of uniform heads?"""

import numpy as np
import pytest
from test_plots import USUAL, fake_result

from mcr_lens.conditions import join_conditions
from mcr_lens.plots.sink_curves import MEAN, plot_sink_curves
from mcr_lens.schema import ResultSchemaError
from mcr_lens.sink_curves import sink_curve, uniform_sink_rate
from mcr_lens.statistics import confidence_interval
from mcr_lens.summaries import sink_rate


def random_result(n_layers: int = 6, **options):
    ds = fake_result(n_layers, names=(*USUAL, "sink_queries", "strongest_sink_score"), **options)
    ds["sink_score"][:] = np.random.default_rng(1).random(ds.sink_score.shape)
    ds["sink_queries"] = ds.sink_queries.astype(int) * 0 + ds.n_tokens
    return ds


def blocks(fig) -> list:
    return [trace for trace in fig.data if (trace.hovertemplate or "").startswith("block ")]


def named(fig, text: str):
    (found,) = [trace for trace in fig.data if (trace.name or "").startswith(text)]
    return found


@pytest.mark.parametrize("n_layers", [1, 6, 80])
def test_one_line_per_block_and_their_mean(n_layers):
    ds = random_result(n_layers, prompts=11)
    fig = plot_sink_curves(ds)
    curve = sink_curve(ds)
    lines = blocks(fig)
    assert len(lines) == n_layers
    np.testing.assert_allclose(lines[-1].x, curve.threshold)
    np.testing.assert_allclose(lines[-1].y, curve.isel(layer=-1).mean("prompt"))
    np.testing.assert_allclose(named(fig, "mean").y, curve.mean(["prompt", "layer"]))
    at = int(np.argmin(abs(curve.threshold.values - 0.3)))
    assert lines[0].y[at] == pytest.approx(float(sink_rate(ds, curve.threshold.values[at])[:, 0].mean()))


def test_the_band_is_the_interval_of_the_mean():
    ds = random_result(prompts=11)
    fig = plot_sink_curves(ds)
    found = confidence_interval(sink_curve(ds).mean("layer"))
    (upper,) = [trace for trace in fig.data if trace.fill == "tonexty"]
    np.testing.assert_allclose(upper.y, found.high)
    np.testing.assert_allclose(named(fig, "mean").customdata[:, 0], found.low)
    single = plot_sink_curves(random_result(prompts=1))
    assert not any(trace.fill for trace in single.data)
    assert named(single, "mean").name == "mean over blocks"


def test_many_blocks_have_a_colour_bar_and_no_legend_entries():
    fig = plot_sink_curves(random_result(80))
    assert len({trace.line.color for trace in blocks(fig)}) == 80
    assert MEAN not in {trace.line.color for trace in blocks(fig)}
    assert not any(trace.showlegend for trace in blocks(fig))
    (bar,) = [trace for trace in fig.data if trace.marker and trace.marker.showscale]
    assert (bar.marker.cmin, bar.marker.cmax) == (0, 79)
    assert 79 / bar.marker.colorbar.dtick <= 10
    only = plot_sink_curves(random_result(1))
    assert not any(trace.marker and trace.marker.showscale for trace in only.data)
    assert only.layout.margin.r < fig.layout.margin.r


def test_blocks_keep_their_numbers_where_some_are_left_out():
    fig = plot_sink_curves(random_result().isel(layer=[1, 5]))
    assert [trace.hovertemplate.split(",")[0] for trace in blocks(fig)] == ["block 1", "block 5"]


def test_the_floor_is_the_rate_of_uniform_heads():
    ds = random_result(prompts=4)
    ds["sink_queries"][:] = np.array([4, 8, 16, 32])[:, None]
    ds["sink_queries"][0, 2] = 2
    floor = named(plot_sink_curves(ds), "uniform heads")
    for at in range(0, 101, 10):
        tau = float(floor.x[at])
        assert floor.y[at] == pytest.approx(float(uniform_sink_rate(ds, tau).mean()))
    assert floor.y[0] == 1 and floor.y[-1] == 0 and 0 < floor.y[30] < 1


def windowed(ds):
    """Another position than the first, which a window hides from later queries."""
    return ds.assign_attrs(position=3).assign(sink_queries=ds.sink_queries * 0 + 8), "sink_score"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda ds: (ds.drop_vars("sink_queries"), "sink_score"), "uniform heads: sink_queries not measured"),
        (lambda ds: (ds, "strongest_sink_score"), "uniform heads: known for sink_score only"),
        (windowed, "uniform heads: not known with this window"),
    ],
)
def test_a_floor_that_is_not_known_is_said_to_be_missing(change, name):
    ds, variable = change(random_result())
    floor = named(plot_sink_curves(ds, variable=variable), "uniform heads")
    assert floor.name == name and np.isnan(np.asarray(floor.y, float)).all()


def test_the_usual_threshold_and_the_key_are_named():
    fig = plot_sink_curves(random_result(bos=False))
    assert fig.layout.shapes[0].x0 == fig.layout.shapes[0].x1 == 0.3
    assert [note.text for note in fig.layout.annotations] == ["τ = 0.3"]
    assert "attention to the first token is at least τ" in fig.layout.title.text.replace("<br>", " ")
    other = plot_sink_curves(random_result(), variable="strongest_sink_score").layout.title.text
    assert "the most attended key" in other.replace("<br>", " ")


def test_a_block_without_numbers_is_a_gap():
    ds = random_result()
    ds["sink_score"][:, 2] = np.nan
    fig = plot_sink_curves(ds)
    assert np.isnan(blocks(fig)[2].y).all() and np.isfinite(blocks(fig)[3].y).all()
    np.testing.assert_allclose(named(fig, "mean").y, sink_curve(ds).mean(["prompt", "layer"]))
    ds["sink_score"][:] = np.nan
    with pytest.raises(ValueError, match="'sink_score' holds no number, so it has no curve"):
        plot_sink_curves(ds)


def test_refusals():
    ds = random_result()
    with pytest.raises(ValueError, match="variable='mixing_score': pass one of 'sink_score', 'strongest"):
        plot_sink_curves(ds, variable="mixing_score")
    with pytest.raises(ResultSchemaError, match="no early_sink_score; measure again"):
        plot_sink_curves(ds, variable="early_sink_score")
    with pytest.raises(ResultSchemaError, match=r"several conditions \(clean, ablated\); pick one with"):
        plot_sink_curves(join_conditions({"clean": ds, "ablated": ds}))
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        plot_sink_curves(ds.isel(prompt=[]))


def test_names_cannot_put_links_into_a_figure():
    fig = plot_sink_curves(random_result(model='<a href="https://evil.example">x</a>'))
    assert "<a" not in fig.layout.title.text and "&lt;a" in fig.layout.title.text


def test_dark_changes_the_template_alone():
    light, dark = (plot_sink_curves(random_result(), dark=d) for d in (False, True))
    assert light.layout.template != dark.layout.template
    assert light.data == dark.data
