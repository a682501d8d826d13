"""Does the figure show what is read at each depth, how sure it is, and where it is best?"""

import numpy as np
import pytest
import xarray as xr
from test_plots import fake_result, means, panel_titles

from mcr_lens.phases import detect_phases
from mcr_lens.plots.readouts import plot_readouts
from mcr_lens.statistics import confidence_interval

LOSS = {"units": "nats/token", "long_name": "Cross-entropy", "better": "lower", "group": "readout"}
RIGHT = {"units": "share", "long_name": "Accuracy", "better": "higher", "group": "readout"}


def readouts(n_layers: int = 8, *, prompts: int | None = 6, seeds: int | None = None, seed: int = 0, **attrs):
    """Loss falls to the last depth, accuracy peaks in the middle."""
    g = np.random.default_rng(seed)
    repeats = {axis: size for axis, size in (("prompt", prompts), ("seed", seeds)) if size}
    depth = np.arange(n_layers + 1) / n_layers
    noise = [g.normal(0, 0.01, (*repeats.values(), n_layers + 1)) for _ in range(2)]
    axes = (*repeats, "depth")
    return xr.Dataset(
        {
            "cross_entropy": (axes, 9 - 6 * depth + noise[0], LOSS),
            "accuracy": (axes, 0.8 - (depth - 0.5) ** 2 + noise[1], RIGHT),
        },
        coords={"depth": np.arange(n_layers + 1)},
        attrs={"n_layers": n_layers, "model": "acme/tiny", "task": "stories", **attrs},
    )


def stars(fig) -> list:
    return [trace for trace in fig.data if trace.marker.symbol == "star"]


def legend(fig) -> list[str]:
    return [trace.name for trace in fig.data if trace.showlegend]


@pytest.mark.parametrize("n_layers", [1, 8, 80])
def test_lines_are_means_with_intervals_over_prompts(n_layers):
    ds = readouts(n_layers)
    fig = plot_readouts(ds)
    assert len(means(fig)) == 2
    for line, name in zip(means(fig), ("cross_entropy", "accuracy"), strict=True):
        wanted = confidence_interval(ds[name])
        np.testing.assert_array_equal(line.x, np.arange(n_layers + 1))
        np.testing.assert_allclose(line.y, wanted["mean"])
        np.testing.assert_allclose(np.asarray(line.customdata)[:, 1:].T, [wanted.low, wanted.high])
    assert "95 % interval over prompts" in legend(fig) and "mean over prompts" in legend(fig)
    assert "stories, 6 prompts" in fig.layout.title.text


def test_intervals_over_seeds_where_there_are_seeds():
    for prompts in (None, 3):
        ds = readouts(prompts=prompts, seeds=5)
        fig = plot_readouts(ds, "accuracy")
        values = ds.accuracy if prompts is None else ds.accuracy.mean("prompt")
        wanted = confidence_interval(values.rename(seed="prompt"))
        np.testing.assert_allclose(means(fig)[0].y, wanted["mean"])
        np.testing.assert_allclose(np.asarray(means(fig)[0].customdata)[:, 1], wanted.low)
        assert "95 % interval over seeds" in legend(fig) and "mean over seeds" in legend(fig)
        assert "5 seeds" in fig.layout.title.text


def test_one_number_per_depth_has_no_interval():
    ds = readouts(prompts=None)
    fig = plot_readouts(ds)
    np.testing.assert_allclose(means(fig)[0].y, ds.cross_entropy)
    assert not [trace for trace in fig.data if trace.fill]
    assert "stories, one number per depth" in fig.layout.title.text
    assert legend(fig) == ["value"]
    assert not [trace for trace in plot_readouts(readouts(prompts=1)).data if trace.fill]


def test_a_star_marks_the_best_depth():
    fig = plot_readouts(readouts())
    assert [(trace.x[0], trace.yaxis) for trace in stars(fig)] == [(8, "y"), (4, "y2")]
    assert [trace.y[0] for trace in stars(fig)] == [means(fig)[0].y[8], means(fig)[1].y[4]]
    assert panel_titles(fig) == ["<b>Cross-entropy (★ lowest)</b>", "<b>Accuracy (★ highest)</b>"]
    ds = readouts()
    ds["cross_entropy"][:] = 2.0
    assert stars(plot_readouts(ds, "cross_entropy"))[0].x[0] == 0  # the first of equals
    ds["cross_entropy"][:] = np.nan
    assert not stars(plot_readouts(ds, "cross_entropy"))
    del ds.accuracy.attrs["better"]
    fig = plot_readouts(ds, "accuracy")
    assert not stars(fig) and panel_titles(fig) == ["<b>Accuracy</b>"]


def test_tasks_are_overlaid_by_name():
    one, other = readouts(), readouts(seed=1, task="sums")
    for given in ([one, other], {"stories": one, "sums": other}):
        fig = plot_readouts(given)
        assert legend(fig)[:2] == ["stories", "sums"]
        for line, ds in zip(means(fig)[:2], (other, one), strict=True):  # the first on top
            np.testing.assert_allclose(line.y, ds.cross_entropy.mean("prompt"))
        assert len(stars(fig)) == 4
    assert legend(plot_readouts([one, one]))[:2] == ["stories (0)", "stories (1)"]
    assert "2 models" in plot_readouts([one, readouts(model="acme/large", task="x")]).layout.title.text


def test_results_of_other_depth_are_drawn_in_relative_depth():
    both = {"small": readouts(4), "large": readouts(12)}
    fig = plot_readouts(both, "accuracy")
    for line, n_layers in zip(means(fig), (12, 4), strict=True):
        np.testing.assert_allclose(line.x, np.arange(n_layers + 1) / n_layers)
    assert [trace.x[0] for trace in stars(fig)] == [0.5, 0.5]
    with pytest.raises(ValueError, match="the results have 4, 12 layers; draw them with relative=True"):
        plot_readouts(both, relative=False)


def test_depths_that_were_left_out_stay_in_place():
    ds = readouts().isel(depth=[0, 4, 8])
    line = means(plot_readouts(ds, "accuracy"))[0]
    assert line.connectgaps
    np.testing.assert_allclose(np.asarray(line.y)[[0, 4, 8]], ds.accuracy.mean("prompt"))
    assert np.isnan(np.delete(line.y, [0, 4, 8])).all()
    bare = xr.Dataset({"x": ("depth", [1.0, 3.0, 2.0])})
    np.testing.assert_array_equal(means(plot_readouts(bare))[0].y, [1, 3, 2])


def test_conditions_are_overlaid():
    ds = xr.concat(
        [readouts(), readouts(seed=1)], xr.DataArray(["clean", "cut"], dims="condition", name="condition")
    )
    fig = plot_readouts(ds, "accuracy")
    assert legend(fig)[:2] == ["clean", "cut"]
    np.testing.assert_allclose(means(fig)[1].y, ds.accuracy[0].mean("prompt"))
    with pytest.raises(ValueError, match="'a' holds several conditions"):
        plot_readouts({"a": ds, "b": readouts()})


def test_readouts_are_told_from_metrics():
    ds = fake_result()
    ds["mine"] = ("depth", np.arange(9.0))
    ds["chosen"] = (("prompt", "depth"), np.ones((3, 9)))
    assert panel_titles(plot_readouts(ds)) == ["<b>mine</b>", "<b>chosen</b>"]
    ds.chosen.attrs["group"] = "readout"
    assert panel_titles(plot_readouts(ds)) == ["<b>chosen</b>"]
    assert panel_titles(plot_readouts(ds, ["matrix_entropy"]))[0].startswith("<b>Matrix-based entropy")
    with pytest.raises(
        ValueError, match=r'no readouts \(attribute group="readout"\) to draw; name some of bos_norm'
    ):
        plot_readouts(fake_result())


def test_units_stand_at_the_axis_and_wide_ranges_are_logarithmic():
    ds = readouts()
    ds["perplexity"] = np.exp(ds.cross_entropy).assign_attrs(units="1", long_name="Perplexity")
    fig = plot_readouts(ds, ["accuracy", "perplexity"])
    assert (fig.layout.yaxis.title.text, fig.layout.yaxis2.title.text) == ("share", "pure number (log)")
    assert fig.layout.yaxis2.type == "log"


def test_nan_and_infinity_are_left_out_prompt_by_prompt():
    ds = readouts(prompts=3)
    ds["accuracy"][0, 2], ds["accuracy"][1, 2] = np.nan, np.inf
    ds["accuracy"][:, 5] = np.nan
    line = means(plot_readouts(ds, "accuracy"))[0]
    assert line.y[2] == pytest.approx(float(ds.accuracy[2, 2])) and np.isnan(line.y[5])


def test_phases_are_shaded_where_they_can_be_found():
    ds = fake_result()
    ds["mine"] = ("depth", np.arange(9.0))
    phases = detect_phases(ds)
    assert phases.found
    names = ["mix", "compress", "refine"]
    assert [shape.name for shape in plot_readouts(ds).layout.shapes] == names
    assert not plot_readouts(ds, phases=None).layout.shapes
    assert not plot_readouts(readouts()).layout.shapes
    assert [
        shape.name for shape in plot_readouts(readouts(), "accuracy", phases=phases).layout.shapes
    ] == names
    with pytest.raises(ValueError, match="the phases are of 9 depths and the result has 5"):
        plot_readouts(readouts(4), phases=phases)


def test_hostile_names_are_text():
    evil = "<a href='https://evil.example'>x</a>"
    ds = readouts(model=evil, task=evil)
    ds.accuracy.attrs.update(long_name=evil, units="<i>u</i>")
    for given in (ds, [ds, readouts()]):
        fig = plot_readouts(given, "accuracy")
        texts = [fig.layout.title.text, *panel_titles(fig), fig.layout.yaxis.title.text, *legend(fig)]
        texts += [trace.hovertemplate for trace in means(fig)]
        assert not any("<a" in text or "<i" in text for text in texts)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("result.nc", TypeError, "results is a str; pass a Dataset, several, or a map"),
        ([], ValueError, "an empty list; pass at least one Dataset"),
        ({}, ValueError, 'an empty map; pass a map such as {"task one": ds'),
        ({1: xr.Dataset()}, ValueError, "the name 1 is not a text"),
        ([3], TypeError, r"'result \(0\)' is a int; pass Datasets"),
        (xr.Dataset(), ValueError, "has no axis `depth`"),
        (xr.Dataset({"x": ("depth", ["a"])}), ValueError, "no readouts .* name some of nothing by depth"),
        (xr.Dataset({"x": ("depth", [1.0])}, {"depth": [0.5]}), ValueError, "whole, once each"),
        (xr.Dataset({"x": ("depth", [1.0, 2])}, {"depth": [3, 3]}), ValueError, "whole, once each"),
        (xr.Dataset({"x": ("depth", [1.0])}, {"depth": [9]}, {"n_layers": 8}), ValueError, "9 to 9 and 8"),
        (xr.Dataset({"x": (("depth", "word"), [[1.0]])}), ValueError, r"axis 'word'.*ds.isel\(word=0\)"),
        (xr.Dataset({"x": ("depth", [1.0], {"better": "up"})}), ValueError, "better='up'; it must be"),
        (readouts(prompts=6).isel(prompt=[]), ValueError, "holds no prompts"),
    ],
)  # fmt: skip
def test_refused_results(given, error, message):
    with pytest.raises(error, match=message):
        plot_readouts(given)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ("acuracy", "'acuracy' is not a number by depth in the result: did you mean 'accuracy'"),
        ("zzz", "there are cross_entropy, accuracy"),
        ([], "variables is empty; name at least one"),
    ],
)
def test_refused_variables(variables, message):
    with pytest.raises(ValueError, match=message):
        plot_readouts(readouts(), variables)


def test_a_variable_must_be_in_every_result():
    with pytest.raises(ValueError, match="'accuracy' is not a number by depth in every result"):
        plot_readouts([readouts(), readouts().drop_vars("accuracy")], "accuracy")
