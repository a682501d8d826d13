"""Is length taken out of a correlation, and are heads found that sleep on some prompts only?"""

import numpy as np
import pytest
import xarray as xr
from test_plots import HEADS, USUAL, fake_result

from mcr_lens.complexity import complexity_response, dormant_heads
from mcr_lens.ranks import partial_spearman, spearman
from mcr_lens.results import load, save
from mcr_lens.schema import ResultSchemaError

PROMPTS, LAYERS = 24, 3


def result(lengths=None, *, prompts: int = PROMPTS, **options) -> xr.Dataset:
    """Random scores of three layers; prompts of one length unless others are given."""
    ds = fake_result(LAYERS, prompts=prompts, names=(*USUAL, "next_token_loss"), **options)
    rng = np.random.default_rng(3)
    for name in ("sink_score", "mixing_score", "next_token_loss"):
        ds[name][:] = rng.random(ds[name].shape)
    return ds if lengths is None else ds.assign_coords(n_tokens=("prompt", np.asarray(lengths)))


def response(ds, *args, **options) -> xr.Dataset:
    return complexity_response(ds, *args, **{"resamples": 100, **options})


def test_what_depends_on_length_only_is_gone_at_equal_length():
    """Plain it is 1, up to noise; matched it is about 0, and exactly 0 without the noise."""
    lengths = np.arange(20, 20 + 200)
    ds = result(lengths, prompts=200)
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 3, (2, 200))
    ds["next_token_loss"][:] = -lengths + noise[0]
    ds["sink_score"][:] = (-lengths + noise[1])[:, None, None] / 300 + 1
    plain, matched = response(ds, matched=False), response(ds)
    assert (plain.correlation > 0.99).all() and (plain.head_correlation > 0.99).all()
    assert (abs(matched.correlation) < 0.15).all() and (abs(matched.head_correlation) < 0.15).all()
    assert ((matched.correlation_low < 0) & (matched.correlation_high > 0)).all()
    assert (plain.method, matched.method) == ("Spearman, lengths differ", "partial Spearman given n_tokens")
    ds["sink_score"][:] = 1 / lengths[:, None, None]
    assert (response(ds).correlation == 0).all() and (response(ds).correlation_low == 0).all()


def test_what_does_not_depend_on_length_stays():
    lengths = np.tile(np.arange(20, 32), 4)
    ds = result(lengths, prompts=48)
    ds["sink_score"][:] = ds.next_token_loss.values[:, None, None] ** 3
    np.testing.assert_allclose(response(ds).correlation, 1, atol=1e-12)
    np.testing.assert_allclose(response(ds).head_correlation, 1, atol=1e-12)


def test_equal_lengths_are_plain_spearman_bitwise():
    ds = result()
    matched, plain = response(ds), response(ds, matched=False)
    assert matched.identical(plain)
    assert matched.method == "Spearman, all prompts have 32 tokens"
    scores = ds.sink_score.mean("head").values
    wanted = [spearman(ds.next_token_loss.values, scores[:, layer]) for layer in range(LAYERS)]
    np.testing.assert_array_equal(matched.correlation, wanted)
    one = spearman(ds.next_token_loss.values, ds.sink_score.values[:, 1, 2])
    assert float(matched.head_correlation.sel(layer=1, head=2)) == one


def test_partial_is_the_correlation_of_what_length_leaves():
    """The residuals of a least-squares line through the ranks, by another route."""
    rng = np.random.default_rng(5)
    z = rng.integers(10, 20, 40).astype(float)
    x, y = z + rng.normal(0, 5, 40), -z + rng.normal(0, 5, 40)

    def left(values):
        ranks = np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])
        lengths = np.array([(z < v).sum() + ((z == v).sum() + 1) / 2 for v in z])
        slope, start = np.polyfit(lengths, ranks, 1)
        return ranks - slope * lengths - start

    assert partial_spearman(x, y, z) == pytest.approx(np.corrcoef(left(x), left(y))[0, 1])
    assert partial_spearman(x, y, np.ones(40)) == spearman(x, y)
    assert np.isnan(partial_spearman(x, np.ones(40), z))


@pytest.mark.parametrize("lengths", [None, np.arange(20, 20 + PROMPTS)])
def test_the_order_of_the_prompts_changes_nothing(lengths):
    ds = result(lengths)
    other = ds.isel(prompt=np.random.default_rng(6).permutation(PROMPTS))
    xr.testing.assert_identical(response(ds), response(other))
    one, two = dormant_heads(ds, threshold=0.5), dormant_heads(other, threshold=0.5)
    assert one.equals(two)


def test_it_is_saved_and_read(tmp_path):
    found = response(result())
    xr.testing.assert_identical(load(save(found, tmp_path / "response.nc")), found)


def test_mixing_is_there_where_it_was_measured():
    ds = result()
    found = response(ds)
    assert {"mixing_correlation", "mixing_correlation_low", "mixing_correlation_high"} <= set(found)
    assert found.mixing_correlation.dims == ("layer",) and found.head_correlation.dims == ("layer", "head")
    assert (found.correlation_low <= found.correlation).all()
    assert (found.correlation <= found.correlation_high).all()
    assert not [name for name in response(ds.drop_vars("mixing_score")) if str(name).startswith("mixing")]
    assert found.attrs["complexity"] == "next-token loss" and found.attrs["n_prompts"] == PROMPTS
    assert response(ds, np.arange(24.0)).attrs["complexity"] == "complexity"


def test_a_score_that_never_varies_or_is_missing_has_no_correlation():
    ds = result(np.arange(20, 20 + PROMPTS))
    ds["sink_score"][:, 0] = 0.5
    ds["sink_score"][3, 1, 2] = np.nan
    found = response(ds)
    assert np.isnan(found.correlation.values).tolist() == [True, False, False]  # a mean over the other heads
    assert np.isnan(found.head_correlation).sel(layer=1).values.tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ds: response(ds, level=2.0), "level=2.0: the coverage of an interval lies between 0 and 1"),
        (lambda ds: response(ds, resamples=10), "resamples=10: pass a whole number of at least 100"),
        (lambda ds: response(ds, "nothing"), "complexity='nothing' is not a number per prompt"),
        (lambda ds: response(ds, [1.0] * PROMPTS), "the complexity is 1.00 for every prompt"),
        (lambda ds: response(ds.isel(prompt=slice(4))), "holds 4 prompts, .* needs at least 5; measure more"),
        (lambda ds: response(ds.drop_vars("next_token_loss")), "no next_token_loss to take for complexity"),
        (lambda ds: dormant_heads(ds, threshold=0.0), "threshold=0.0: mean attention lies between 0 and 1"),
        (lambda ds: dormant_heads(ds, top=0), "top=0: pass how many prompts to name"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(result())
    with pytest.raises(ResultSchemaError, match="no sink_score"):
        dormant_heads(result().drop_vars("sink_score"))
    with pytest.raises(ResultSchemaError, match="several conditions"):
        dormant_heads(result().expand_dims(condition=["clean", "cut"]))


def test_a_head_that_sleeps_on_half_of_the_prompts_is_found_with_those_that_wake_it():
    ds = result()
    ds["sink_score"][:] = 0.9
    ds["sink_score"][:, 2] = 0.1
    ds["sink_score"][::2, 1, 3] = np.linspace(0.01, 0.12, 12)
    ds["sink_score"][5, 0, 1] = 0.29
    found = dormant_heads(ds, top=2)
    assert found[["layer", "head"]].values.tolist() == [[1, 3], [0, 1]]
    first = found.iloc[0]
    assert first.share == 0.5 and first.waking == [0, 2]
    assert first.texts == ["A quiet afternoon 0", "A quiet afternoon 2"]
    assert first.spread == pytest.approx(np.std(ds.sink_score.values[:, 1, 3], ddof=1))
    assert first.low < 0.03 and first.high == pytest.approx(0.9) and np.isnan(first.length_correlation)
    assert found.iloc[1].waking == [5] and found.iloc[1].share == pytest.approx(23 / 24)
    assert dormant_heads(ds, threshold=0.055, top=99).waking.iloc[0] == [0, 2, 4, 6, 8]


def test_no_such_head_gives_an_empty_table_and_missing_scores_do_not_count():
    ds = result()
    ds["sink_score"][:] = 0.9
    ds["sink_score"][0] = np.nan
    assert dormant_heads(ds).empty and "waking" in dormant_heads(ds)
    ds["sink_score"][1, 0, 0] = 0.0
    assert dormant_heads(ds).share.tolist() == [pytest.approx(22 / 23)]
    ds["sink_score"][:, 0, 0] = np.nan
    assert dormant_heads(ds).empty


def test_length_shows_where_it_is_what_wakes_a_head():
    lengths = np.arange(10, 10 + PROMPTS)
    ds = result(lengths)
    ds["sink_score"][:] = 0.9
    ds["sink_score"][:, 0, :] = 5 / lengths[:, None]
    found = dormant_heads(ds)
    assert len(found) == HEADS and (found.length_correlation == -1).all()
    assert found.waking.iloc[0] == [23, 22, 21]
