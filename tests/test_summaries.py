"""Are thresholds, normalisations and conventions what they say they are?"""

import warnings

import numpy as np
import pytest
from handmade import HEADS, LAYERS, WIDTH, result

import mcr_lens as mcr
from mcr_lens import ResultSchemaError, ShortPromptWarning
from mcr_lens.presets import PRESETS

# [prompt, layer, head]
SCORES = [[[0.3, 0.1], [0.31, 0.3], [0.0, 0.29]], [[0.9, 0.5], [0.29, 0.29], [0.3, 0.9]]]


def scores(**attrs):
    return result({"sink_score": SCORES, "strongest_sink_score": SCORES, "early_sink_score": SCORES}, **attrs)


def test_sink_rate_counts_equality():
    """A score that equals the threshold is a sink, thresholded per prompt."""
    rate = mcr.sink_rate(scores())
    assert rate.dims == ("prompt", "layer") and rate.name == "sink_rate" and rate.units == "1"
    assert rate.values.tolist() == [[0.5, 1.0, 0.0], [1.0, 0.0, 1.0]]


def test_sink_rate_strict():
    """strict=True leaves equality out."""
    assert mcr.sink_rate(scores(), strict=True).values.tolist() == [[0.0, 0.5, 0.0], [1.0, 0.0, 0.5]]


def test_sink_rate_threshold_is_chosen_when_reading():
    """Any threshold from the same result."""
    assert mcr.sink_rate(scores(), 0.0).values.tolist() == [[1.0] * 3] * 2
    assert mcr.sink_rate(scores(), 0.9).values.tolist() == [[0, 0, 0], [0.5, 0, 0.5]]


def test_sink_rate_average_first():
    """Scores averaged over prompts before the threshold: no prompt axis, another number."""
    rate = mcr.sink_rate(scores(), average_first=True)
    assert rate.dims == ("layer",)
    assert rate.values.tolist() == [1.0, 0.5, 0.5]  # means .6 .3 | .3 .295 | .15 .595
    assert mcr.sink_rate(scores(), average_first=True, strict=True).values[0] == 0.5


def test_sink_rate_of_unmeasured_heads_is_nan():
    """NaN is neither a sink nor no sink."""
    ds = scores()
    ds["sink_score"][0, 0, 0] = np.nan
    assert mcr.sink_rate(ds).values[0, 0] == 0.0 and mcr.sink_rate(ds).values[1, 0] == 1.0
    ds["sink_score"][0, 0, 1] = np.nan
    assert np.isnan(mcr.sink_rate(ds).values[0, 0])


@pytest.mark.parametrize("threshold", [-0.1, 1.5, 30, float("nan")])
def test_threshold_is_a_share(threshold):
    """A percentage is refused."""
    for rate in (mcr.sink_rate, mcr.colsum_rate):
        ds = result()
        with pytest.raises(ValueError, match=r"threshold=.*mean attention lies between 0 and 1"):
            rate(ds, threshold)


def test_short_prompts_warn():
    """Nine tokens: a uniform head passes 0.3 (H_9/9 = 0.314). Ten do not (0.293)."""
    with pytest.warns(ShortPromptWarning, match=r"shortest prompt has 9 tokens.*sink score 0\.31 ≥ 0\.3"):
        mcr.sink_rate(scores(n_tokens=(20, 9)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mcr.sink_rate(scores(n_tokens=(20, 10)))
        mcr.sink_rate(scores(n_tokens=(20, 9)), 0.4)


def test_colsum_rate():
    """Any key: the largest mean attention, or the concentration."""
    ds = result({"strongest_sink_score": SCORES, "colsum_concentration": 0.3})
    assert mcr.colsum_rate(ds).values.tolist() == [[0.5, 1.0, 0.0], [1.0, 0.0, 1.0]]
    assert mcr.colsum_rate(ds, strict=True).values.tolist() == [[0.0, 0.5, 0.0], [1.0, 0.0, 0.5]]
    assert (mcr.colsum_rate(ds, stat="concentration") == 1).all()
    assert (mcr.colsum_rate(ds, stat="concentration", strict=True) == 0).all()
    with pytest.raises(ValueError, match="stat='mean': pass 'max_colsum' or 'concentration'"):
        mcr.colsum_rate(ds, stat="mean")


@pytest.mark.parametrize(("by", "sizes"), [("rank", (16, 12)), ("tokens", (20, 12)), ("width", (16, 16))])
def test_normalized_entropy(by, sizes):
    """H over ln min(T, d), ln T or ln d: one where H is that logarithm."""
    ds = result({"matrix_entropy": np.log(sizes)[:, None]}, n_tokens=(20, 12))
    entropy = mcr.normalized_entropy(ds, by)
    assert entropy.dims == ("prompt", "depth") and entropy.name == "normalized_matrix_entropy"
    np.testing.assert_allclose(entropy, 1.0, rtol=1e-12)


def test_normalized_entropy_without_bos_has_one_token_less():
    """The matrix without the BOS row has T − 1 rows."""
    ds = result({"matrix_entropy_without_bos": np.log([16, 11])[:, None]}, n_tokens=(20, 12))
    np.testing.assert_allclose(mcr.normalized_entropy(ds, variable="matrix_entropy_without_bos"), 1.0)


@pytest.mark.parametrize("by", ["rank", "tokens"])
def test_normalized_entropy_of_one_token(by):
    """One row: 0, not 0/0; no row at all: NaN."""
    ds = result({"matrix_entropy": [[0.0], [1.0]]}, n_tokens=(1, 12))
    entropy = mcr.normalized_entropy(ds, by)
    assert (entropy[0] == 0).all() and (entropy[1] > 0).all()
    ds = result({"matrix_entropy_without_bos": [[np.nan], [1.0]]}, n_tokens=(1, 12))
    entropy = mcr.normalized_entropy(ds, by, variable="matrix_entropy_without_bos")
    assert entropy[0].isnull().all() and (entropy[1] > 0).all()


def test_normalized_entropy_refuses():
    """An unknown normalisation, and an entropy that was not measured."""
    with pytest.raises(ValueError, match=r"by='bits': pass 'rank' .*'tokens' .*or 'width'"):
        mcr.normalized_entropy(result(), "bits")
    with pytest.raises(ResultSchemaError, match="the result has no matrix_entropy; measure again"):
        mcr.normalized_entropy(scores())


def test_sink_identity_needs_support():
    """NaN below the least support, the index itself at and above it."""
    mass = np.array([[0.04, 0.05], [0.5, 0.0], [0.049, 1.0]])
    ds = result({"sink_identity_index": 0.7, "sink_identity_mass": mass})
    wanted = np.where(mass >= 0.05, 0.7, np.nan)
    np.testing.assert_array_equal(mcr.sink_identity(ds)[0], wanted)
    assert mcr.sink_identity(ds, min_mass=0.0).notnull().all()


def test_layer_sink_identity_is_weighted():
    """Σ S / Σ (S + I): a head without support does not count, NaN where none has any."""
    index = np.array([[1.0, 0.0], [0.5, np.nan], [np.nan, np.nan]])
    mass = np.array([[0.9, 0.3], [0.4, 0.0], [0.0, 0.0]])
    layer = mcr.layer_sink_identity(result({"sink_identity_index": index, "sink_identity_mass": mass}))
    np.testing.assert_allclose(layer[0], [0.75, 0.5, np.nan])


@pytest.mark.parametrize("layer", range(LAYERS))
def test_massive_layer(layer):
    """The block that writes depth l + 1 from depth l is block l."""
    norms = np.where(np.arange(LAYERS + 1) > layer, 900.0, 3.0)
    found = mcr.massive_layer(result({"massive_activation_ratio": norms}))
    assert found == layer and isinstance(found, int)


def test_massive_layer_is_where_it_grows_most():
    """Not where the ratio is largest, and not where it falls."""
    assert mcr.massive_layer(result({"massive_activation_ratio": [900.0, 1.0, 50.0, 60.0]})) == 1


def test_mlp_write_share():
    """‖MLP‖ over the sum of both writes."""
    share = mcr.mlp_write_share(result({"mlp_bos_norm": 3.0, "attn_bos_norm": 1.0}))
    assert share.dims == ("prompt", "layer") and (share == 0.75).all() and share.units == "1"


def test_massive_activations():
    """Above 100, strictly, and at least 1,000 times the median."""
    top = np.array([[101.0, 100.0, 99.0]])
    ds = result({"top_activation": top, "median_activation": [[0.1, 0.101, 0.102, 0.0]]})
    found = mcr.massive_activations(ds)
    assert found.dims == ("prompt", "depth", "top")
    assert found[0].values.tolist() == [
        [True, False, False],
        [True, False, False],
        [False] * 3,
        [True, False, False],
    ]
    assert mcr.massive_activations(ds, absolute=98.0, ratio=100.0).all()


def test_massive_activation_strength():
    """The largest over the median."""
    ds = result({"top_activation": [50.0, 40.0, 30.0], "median_activation": 0.5})
    assert (mcr.massive_activation_strength(ds) == 100).all()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_read_a_result(name):
    """Every preset reads a result with all metrics, and carries source, note and units."""
    ds = result()
    read = mcr.preset(ds, name)
    assert set(read.data_vars) == set(PRESETS[name].variables)
    assert read.attrs["preset"] == name and read.attrs["source"].startswith("arXiv")
    assert read.attrs["model"] == ds.attrs["model"] and len(read.attrs["note"]) > 20
    for variable in read.data_vars.values():
        assert "prompt" in variable.dims and variable.notnull().all()


def test_preset_conventions():
    """What distinguishes the papers: equality, percentages, the first half, printed or normalised scores."""
    ds = result().assign(sink_score=result({"sink_score": 0.3}).sink_score)
    ds = ds.assign(early_sink_score=result({"early_sink_score": 0.3}).early_sink_score)
    assert (mcr.preset(ds, "queipo2025").sink_rate == 1).all()
    assert (mcr.preset(ds, "blayney2026").sink_rate == 1).all()
    assert (mcr.preset(ds, "gu2025").sink_rate_percent == 0).all()
    assert (mcr.preset(ds, "sun2026").sink_rate == 0).all()
    above = ds.assign(sink_score=ds.sink_score + 0.1)
    assert (mcr.preset(above, "gu2025").sink_rate_percent == 100).all()
    np.testing.assert_array_equal(
        mcr.preset(ds, "blayney2026").mixing_score, ds.mixing_score_raw.mean("head")
    )
    np.testing.assert_array_equal(mcr.preset(ds, "queipo2025").mixing_score, ds.mixing_score.mean("head"))
    direction = ds.direction_entropy / np.log([[WIDTH], [12]])
    np.testing.assert_allclose(mcr.preset(ds, "skean2025").entropy, direction)


def test_preset_refuses():
    """An unknown name lists the presets; a missing variable says what to measure."""
    with pytest.raises(ValueError, match="preset 'gu2024' does not exist; the presets are queipo2025, "):
        mcr.preset(result(), "gu2024")
    with pytest.raises(ResultSchemaError, match=r"mixing_score|matrix_entropy"):
        mcr.preset(scores(), "queipo2025")
    with pytest.raises(ResultSchemaError, match="direction_entropy"):
        mcr.preset(scores(), "skean2025")


def test_summaries_leave_the_result_alone():
    """Reading writes nothing."""
    ds = result()
    before = ds.copy(deep=True)
    mcr.sink_rate(ds), mcr.normalized_entropy(ds), mcr.massive_layer(ds), mcr.preset(ds, "queipo2025")
    assert ds.identical(before) and ds.sizes["head"] == HEADS
