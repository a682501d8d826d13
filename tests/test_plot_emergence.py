"""Does the figure of a training show every checkpoint where it belongs, with the numbers of the result?"""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from test_emergence import training
from test_plots import fake_result, means, panel_titles

from mcr_lens.plots.emergence import axis_of, plot_emergence
from mcr_lens.schema import ResultSchemaError
from mcr_lens.statistics import confidence_interval
from mcr_lens.summaries import normalized_entropy, sink_rate

EVEN = (0, 500, 1000, 1500, 2000)
LATE = np.log10([3, 3, 3e6]) - [0.5, 0, 0]


def noisy(steps=EVEN, **options) -> xr.Dataset:
    """A training whose prompts differ a little."""
    ds = training(steps, at={"spike": 500, "valley": 1000, "sinks": 1500}, **options)
    rng = np.random.default_rng(0)
    for name in ("massive_activation_ratio", "matrix_entropy", "next_token_loss"):
        ds[name] = ds[name] * rng.uniform(0.95, 1.05, ds[name].shape)
    return ds


def lines(fig) -> list:
    """Mean lines: ratio, entropy, mean sink rate, largest sink rate, loss."""
    return means(fig)


def test_numbers_are_those_of_the_result_at_its_steps():
    ds = noisy()
    fig = plot_emergence(ds)
    ratio = ds.massive_activation_ratio
    depths = ratio.mean("prompt").argmax("depth")
    rate, entropy = sink_rate(ds), normalized_entropy(ds)
    layers = rate.mean("prompt").argmax("layer")
    wanted = [
        ratio.isel(depth=depths), entropy.isel(depth=entropy.mean("prompt").argmin("depth")),
        rate.mean("layer"), rate.isel(layer=layers), ds.next_token_loss,
    ]  # fmt: skip
    assert len(lines(fig)) == 5
    for line, array in zip(lines(fig), wanted, strict=True):
        found = confidence_interval(array.transpose("prompt", "step").astype(float))
        np.testing.assert_array_equal(line.x, EVEN)
        np.testing.assert_allclose(line.y, found["mean"])
        np.testing.assert_allclose(line.customdata[:, 1], found.low)
        np.testing.assert_allclose(line.customdata[:, 0], EVEN)


def test_titles_and_marks_say_when_something_is_there_to_stay():
    fig = plot_emergence(noisy())
    titles = [title.replace("\N{NO-BREAK SPACE}", " ") for title in panel_titles(fig)]
    assert titles[0] == "<b>Norm ratio of BOS: ≥ 10 from 500 on</b>"
    assert titles[1] == "<b>Lowest entropy: a valley from 1,000 on</b>"
    assert titles[2:4] == ["<b>Largest sink rate: ≥ 0.5 from 1,500 on</b>", "<b>Next-token loss</b>"]
    assert sorted(shape.x0 for shape in fig.layout.shapes) == [500, 1000, 1500]
    names = [trace.name for trace in fig.data if trace.showlegend]
    assert names == [
        "mean over prompts", "the same averaged over all layers", "95 % interval of the mean",
        "from here to the end",
    ]  # fmt: skip
    nothing = plot_emergence(training(EVEN, at={"spike": 1e9, "valley": 1e9, "sinks": 1e9}))
    assert not nothing.layout.shapes and panel_titles(nothing)[0] == "<b>Norm ratio of BOS</b>"
    assert "from here to the end" not in [trace.name for trace in nothing.data]


def test_steps_over_decades_stand_by_their_logarithm_and_step_0_at_the_left():
    fig = plot_emergence(training())
    np.testing.assert_allclose(lines(fig)[0].x, [-0.5, 0, 1, 2, 3, 4])
    assert fig.layout.xaxis.ticktext == ("0", "1", "10", "100", "1k", "10k")
    assert fig.layout.xaxis4.title.text == "training step (log)"
    low, high = fig.layout.xaxis.range
    assert low < -0.5 and high > 4
    assert plot_emergence(noisy()).layout.xaxis4.title.text == "training step"


@pytest.mark.parametrize(
    ("steps", "places", "labels"),
    [
        ([5], [5], []),
        ([0], [0], []),
        ([0, 100, 5000], [0, 100, 5000], []),
        ([1, 1000, 143_000], [0, 3, np.log10(143_000)], ["1", "10", "100", "1k", "10k", "100k"]),
        ([0, 3, 3_000_000], LATE, ["0", "10", "100", "1k", "10k", "100k", "1M"]),
    ],
)  # fmt: skip
def test_axes(steps, places, labels):
    axis = axis_of(np.array(steps))
    np.testing.assert_allclose(axis.places, places)
    assert axis.labels == labels and axis.log == bool(labels) and len(axis.ticks) == len(labels)


def test_what_was_not_measured_is_left_out_and_one_prompt_has_no_band():
    ds = noisy().drop_vars(["matrix_entropy", "next_token_loss"])
    assert len(panel_titles(plot_emergence(ds))) == 2
    one = plot_emergence(noisy(prompts=1))
    assert not [trace for trace in one.data if trace.fill]
    single = plot_emergence(noisy((0,)))
    assert len(lines(single)[0].x) == 1 and "6 prompts, 1 checkpoint<" in single.layout.title.text
    with pytest.raises(ValueError, match=r"none of massive_activation_ratio, .* which the growth is"):
        plot_emergence(ds.drop_vars(["massive_activation_ratio", "sink_score"]))


def test_missing_numbers_are_gaps():
    ds = noisy()
    ds["massive_activation_ratio"][1] = np.nan
    ds["next_token_loss"][2] = np.nan
    fig = plot_emergence(ds)
    assert np.isnan(lines(fig)[0].y).tolist() == [False, True, False, False, False]
    assert np.isnan(lines(fig)[-1].y).tolist() == [False, False, True, False, False]


def test_panels_do_not_overlap_and_dark_is_dark():
    fig = plot_emergence(noisy(), dark=True)
    domains = sorted(axis.domain for axis in fig.select_yaxes())
    assert all(one[1] < other[0] for one, other in pairwise(domains))
    papers = [f.layout.template.layout.paper_bgcolor for f in (fig, plot_emergence(noisy()))]
    assert papers[0] != papers[1]


def test_hostile_names_are_text():
    fig = plot_emergence(noisy(model="<a href='https://evil.example'>x</a>"))
    assert "<a" not in fig.layout.title.text


def test_refusals():
    with pytest.raises(ResultSchemaError, match="no axis `step`"):
        plot_emergence(fake_result())
    with pytest.raises(ResultSchemaError, match="several conditions"):
        plot_emergence(noisy().expand_dims(condition=["clean", "cut"]))
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        plot_emergence(noisy().isel(prompt=slice(0)))
