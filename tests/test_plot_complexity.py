"""Is the rank correlation right, and does the figure say what it correlates?"""

import math
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from test_plots import USUAL, fake_result, means

from mcr_lens.complexity import FEWEST, spearman
from mcr_lens.plots import complexity
from mcr_lens.plots.complexity import plot_complexity
from mcr_lens.schema import ResultSchemaError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(complexity, "RESAMPLES", 100)


def ordered(n_layers: int = 6, *, prompts: int = 12, **options) -> xr.Dataset:
    """Sinks weaken with the loss in the first block and grow with it in the last."""
    ds = fake_result(n_layers, prompts=prompts, names=(*USUAL, "next_token_loss"), **options)
    loss = np.random.default_rng(0).permutation(np.linspace(1, 4, prompts))
    ds["next_token_loss"][:] = loss
    slope = np.linspace(-0.1, 0.1, n_layers)[None, :, None]
    ds["sink_score"][:] = 0.5 + slope * loss[:, None, None] + np.zeros((1, 1, ds.sizes["head"]))
    return ds


def scatters(fig) -> list:
    return [trace for trace in means(fig) if trace.mode == "markers"]


def correlations(fig) -> np.ndarray:
    (line,) = [trace for trace in means(fig) if trace.legendgroup]
    return np.asarray(line.y)


@pytest.mark.parametrize(
    ("x", "y", "rho"),
    [
        ([1, 2, 3, 4, 5], [2, 4, 8, 16, 1e9], 1.0),
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 8 / math.sqrt(10 * 9.5)),  # ranks 1, 2, 3.5, 5, 3.5
        ([3, 1, 2, 4], [9, 1, 4, 16], 1.0),
        ([1, 1, 2, 2], [1, 2, 1, 2], 0.0),
    ],
)
def test_spearman_against_known_values(x, y, rho):
    assert spearman(np.array(x, float), np.array(y, float)) == pytest.approx(rho)


def test_spearman_is_pearson_of_the_ranks():
    g = np.random.default_rng(1)
    for _ in range(50):
        x, y = g.integers(0, 6, 15).astype(float), g.standard_normal(15)
        ranks = [np.array([(v < u).sum() + ((v == u).sum() + 1) / 2 for u in v]) for v in (x, y)]
        assert spearman(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])
        assert spearman(x, y) == pytest.approx(spearman(y, x)) == pytest.approx(-spearman(-x, y))
        assert spearman(x**3, np.exp(y)) == pytest.approx(spearman(x, y))  # only the order counts


def test_what_does_not_vary_has_no_correlation():
    assert math.isnan(spearman(np.ones(5), np.arange(5.0)))
    ds = ordered()
    ds["sink_score"][:, 2] = 0.5
    assert np.isnan(correlations(plot_complexity(ds))).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("n_layers", [1, 2, 8, 40])
def test_correlations_are_those_of_the_result_at_their_blocks(n_layers):
    ds = ordered(n_layers)
    rng = np.random.default_rng(2)
    ds["sink_score"] = ds.sink_score + rng.normal(0, 0.1, ds.sink_score.shape)
    fig = plot_complexity(ds)
    means_ = ds.sink_score.mean("head").values
    wanted = [spearman(ds.next_token_loss.values, means_[:, layer]) for layer in range(n_layers)]
    np.testing.assert_allclose(correlations(fig), wanted)
    (line,) = [trace for trace in means(fig) if trace.legendgroup]
    np.testing.assert_allclose(line.x, np.arange(n_layers) + 0.5)
    low, high = np.asarray(line.customdata)[:, 1:].T
    assert (low <= line.y).all() and (line.y <= high).all() and (low < high).all()


def test_three_blocks_are_shown_point_by_point():
    ds = ordered(12)
    fig = plot_complexity(ds)
    assert len(scatters(fig)) == 3
    for layer, trace in zip((2, 6, 10), scatters(fig), strict=True):
        np.testing.assert_array_equal(trace.x, ds.next_token_loss)
        np.testing.assert_allclose(trace.y, ds.sink_score.mean("head")[:, layer])
        assert any(note.text.startswith(f"<b>block {layer}<br>ρ") for note in fig.layout.annotations)
    assert [len(scatters(plot_complexity(ordered(n)))) for n in (1, 2, 3)] == [1, 2, 3]


def test_a_layer_that_was_left_out_is_a_gap():
    ds = ordered(6).isel(layer=[0, 1, 5])
    fig = plot_complexity(ds)
    assert np.isnan(correlations(fig)).tolist() == [False, False, True, True, True, False]
    assert len(scatters(fig)) == 3


def test_complexity_by_name_array_or_labelled_array():
    ds = ordered()
    ds = ds.assign_coords(n_tokens=("prompt", np.arange(20, 32)))
    given = np.arange(12.0)
    labelled = xr.DataArray(given, dims="prompt", attrs={"long_name": "Steps, of a proof", "units": "step"})
    for given_as, values, label in (
        (None, ds.next_token_loss, "next-token loss (nats/token)"),
        ("n_tokens", ds.n_tokens, "n_tokens"),
        (given.tolist(), given, "complexity"),
        (labelled, given, "Steps (step)"),
    ):
        fig = plot_complexity(ds, given_as)
        np.testing.assert_array_equal(scatters(fig)[0].x, values)
        assert fig.layout.annotations[-1].text == label


def test_length_is_named_where_it_differs():
    assert "12 prompts of 32 tokens<" in plot_complexity(ordered()).layout.title.text
    ds = ordered().assign_coords(n_tokens=("prompt", np.arange(20, 32)))
    text = plot_complexity(ds).layout.title.text.replace("<br>", " ")
    assert "12 prompts of 20 to 31 tokens: length alone moves sink scores" in text


def test_panels_do_not_overlap():
    fig = plot_complexity(ordered())
    domains = {axis.domain for axis in fig.select_yaxes()}
    (bottom, top), (start, end) = sorted(domains)
    inner = fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    assert bottom == 0 and end == pytest.approx(1) and (start - top) * inner > 80
    columns = sorted(axis.domain for axis in fig.select_xaxes() if axis.domain != (0, 1))
    assert len(columns) == 3
    assert all(right < left for (_, right), (left, _) in pairwise(columns))


def test_hostile_names_are_text():
    ds = ordered(model="<a href='https://evil.example'>x</a>")
    array = xr.DataArray(np.arange(12.0), dims="prompt", attrs={"long_name": "<a>y</a>", "units": "<i>u"})
    fig = plot_complexity(ds, array)
    texts = [fig.layout.title.text, *(note.text for note in fig.layout.annotations)]
    assert not any("<a" in text or "<i" in text for text in texts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("text", "complexity='text' is not a number per prompt of this result; it has .*next_token_loss"),
        ("sink_score", "complexity='sink_score' is not a number per prompt"),
        ([1.0, 2.0], r"complexity holds float64 of shape \(2,\); pass one number for each of the 12 prompts"),
        (["a"] * 12, "pass one number for each of the 12 prompts"),
        ([1.0] * 12, "the complexity is 1.00 for every prompt"),
        ([1.0, np.nan, np.inf, *range(9)], "not a finite number for prompts 1, 2; leave them out first"),
        ([*range(11), np.nan], "not a finite number for prompt 11; leave it out first"),
    ],
)
def test_refused_complexities(given, message):
    with pytest.raises(ValueError, match=message):
        plot_complexity(ordered(), given)


def test_numbers_of_other_prompts_are_refused():
    ds = ordered()
    with pytest.raises(ValueError, match="of other prompts than the result, or of these in another order"):
        plot_complexity(ds, ds.next_token_loss.isel(prompt=slice(None, None, -1)))


def test_refusals():
    with pytest.raises(
        ValueError, match=f"holds {FEWEST - 1} prompts, .* needs at least {FEWEST}; measure more"
    ):
        plot_complexity(ordered(prompts=FEWEST - 1))
    assert plot_complexity(ordered(prompts=FEWEST))
    with pytest.raises(ValueError, match=r'no next_token_loss .*metrics=\["default", "next_token_loss"\]'):
        plot_complexity(fake_result(prompts=6))
    with pytest.raises(ResultSchemaError, match="the result has no sink_score"):
        plot_complexity(ordered().drop_vars("sink_score"))
    with pytest.raises(ResultSchemaError, match="several conditions"):
        plot_complexity(ordered().expand_dims(condition=["clean", "cut"]))
    with pytest.raises(ResultSchemaError, match="does not come from mcr_lens"):
        plot_complexity(xr.Dataset())
