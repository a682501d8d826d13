"""Do the metrics give the numbers that can be worked out by hand?"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pure import evaluate

from mcr_lens import get_metric
from mcr_lens.metrics import (
    activation_median,
    anisotropy,
    effective_rank,
    matrix_entropy,
    median_activation,
    singular_values,
    spectrum,
    value_drain,
)
from mcr_lens.metrics.medians import median


def score(name: str, pattern: torch.Tensor) -> float:
    visible = torch.ones_like(pattern, dtype=torch.bool).tril()
    inputs = {"pattern": pattern.double()[None, None], "visible": visible}
    return evaluate(get_metric(name), inputs).flatten()[0].item()


def sink(length: int) -> torch.Tensor:
    pattern = torch.zeros(length, length)
    pattern[:, 0] = 1
    return pattern


def uniform(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.float64).tril() / torch.arange(1, length + 1)[:, None]


@pytest.mark.parametrize("length", [2, 16, 64])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sink_score", 1), ("strongest_sink_score", 1), ("strongest_sink_token", 0), ("early_sink_score", 1),
        ("mixing_score", 0), ("mixing_score_raw", 0), ("colsum_concentration", 1), ("identity_score", 0),
        ("sink_identity_index", 1), ("sink_identity_mass", 1), ("row_mass", 1),
    ],
)  # fmt: skip
def test_perfect_sink(name, wanted, length):
    """Every query looks at BOS only."""
    assert score(name, sink(length)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("length", [2, 16, 64])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sink_score", "1/T"), ("strongest_sink_score", "1/T"), ("early_sink_score", "1/T"),
        ("mixing_score", 0), ("mixing_score_raw", 0), ("colsum_concentration", 0), ("identity_score", 1),
        ("previous_token_score", 0), ("sink_identity_index", 0), ("sink_identity_mass", 1), ("row_mass", 1),
    ],
)  # fmt: skip
def test_identity_head(name, wanted, length):
    """Every query looks at itself only."""
    wanted = 1 / length if wanted == "1/T" else wanted
    assert score(name, torch.eye(length)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("length", "sink_score", "colsum", "raw_mixing"),
    [
        (16, 0.2113, 0.1305, None),
        (64, 0.0741, 0.0974, 3.205753),
        (128, 0.0424, 0.0852, 3.878168),
        (512, 0.0133, 0.0674, 5.246212),
    ],
)
def test_uniform_causal_head(length, sink_score, colsum, raw_mixing):
    """A head that attends to all it can see: harmonic sink score, mixing exactly 1, index one half."""
    pattern = uniform(length)
    harmonic = sum(1 / n for n in range(1, length + 1)) / length
    assert score("sink_score", pattern) == pytest.approx(harmonic, abs=1e-6)
    assert harmonic == pytest.approx(sink_score, abs=5e-5)
    assert score("colsum_concentration", pattern) == pytest.approx(colsum, abs=5e-5)
    columns = pattern.sum(0) / length
    by_hand = 1 + float((columns * columns.log()).sum()) / math.log(length)
    assert score("colsum_concentration", pattern) == pytest.approx(by_hand, abs=1e-6)
    entropies = [math.log(n) for n in range(1, length + 1)]
    assert score("mixing_score_raw", pattern) == pytest.approx(sum(entropies) / length, abs=1e-6)
    if raw_mixing is not None:
        assert sum(entropies) / length == pytest.approx(raw_mixing, abs=1e-6)
    assert score("mixing_score", pattern) == pytest.approx(1, abs=1e-6)
    assert score("sink_identity_index", pattern) == pytest.approx(0.5, abs=1e-6)
    wanted = sum(2 / n for n in range(2, length + 1)) / (length - 1)
    assert score("sink_identity_mass", pattern) == pytest.approx(wanted, abs=1e-6)


def test_previous_token_head():
    """Every query but the first looks one token back."""
    pattern = torch.eye(8).roll(-1, dims=1)
    pattern[0] = torch.eye(8)[0]
    assert score("previous_token_score", pattern) == pytest.approx(1)
    assert score("identity_score", pattern) == pytest.approx(0)
    assert score("sink_score", pattern) == pytest.approx(2 / 8)


def test_sinks_elsewhere():
    """The strongest key is found wherever it stands; BOS scores only what it gets."""
    pattern = torch.zeros(8, 8)
    pattern[:6, :6] = torch.eye(6)
    pattern[5:, 5] = 1
    assert score("strongest_sink_token", pattern) == 5
    assert score("strongest_sink_score", pattern) == pytest.approx(3 / 8)
    assert score("early_sink_score", pattern) == pytest.approx(1 / 8)
    assert score("sink_score", pattern) == pytest.approx(1 / 8)


def windowed(length: int, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A head that attends alike to all it sees through a sliding window, and the mask."""
    mask = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)
    return mask / mask.sum(1, keepdim=True), mask


def test_scores_are_means_over_the_queries_that_see_the_key():
    """Ten tokens, window four, a uniform head: every number by hand."""
    pattern, mask = windowed(10, 4)
    inputs = {"pattern": pattern.double()[None, None], "visible": mask}
    got = {
        name: evaluate(get_metric(name), inputs).flatten().tolist()
        for name in (
            "sink_queries", "sink_score", "strongest_sink_score", "sink_identity_index", "sink_identity_mass",
            "mixing_score", "top_sink_score", "top_sink_token",
        )
    }  # fmt: skip
    assert got["sink_queries"] == [4]
    assert got["sink_score"] == pytest.approx([(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4])
    assert got["strongest_sink_score"] == pytest.approx([(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4])
    assert got["sink_identity_index"] == pytest.approx([0.5])
    assert got["sink_identity_mass"] == pytest.approx([2 * (1 / 2 + 1 / 3 + 1 / 4) / 3])
    assert got["mixing_score"] == pytest.approx([1])
    assert got["top_sink_score"] == pytest.approx([(1 / 2 + 1 / 3 + 1 / 4) / 3, (1 / 3 + 1 / 2) / 3, 1 / 4])
    assert got["top_sink_token"] == [0, 1, 2]


def test_bidirectional_scores():
    """Nobody is hidden: all queries count, also those before the position."""
    pattern = torch.zeros(6, 6)
    pattern[:, 3] = 1
    inputs = {"pattern": pattern.double()[None, None], "visible": torch.ones(6, 6, dtype=torch.bool)}
    got = {
        name: evaluate(get_metric(name), inputs, position=3).flatten().tolist()
        for name in ("sink_queries", "sink_score", "sink_identity_index", "sink_identity_mass")
    }
    assert got == {
        "sink_queries": [6], "sink_score": [1], "sink_identity_index": [1], "sink_identity_mass": [1],
    }  # fmt: skip
    assert evaluate(get_metric("top_sink_token"), inputs).flatten().tolist()[0] == 3
    assert evaluate(get_metric("top_sink_score"), inputs).flatten().tolist() == pytest.approx([1, 0, 0])


def test_a_sink_in_the_middle_counts_like_bos():
    """Everybody behind position 4 looks at it, so it scores 1; the last tokens cannot be sinks."""
    pattern = torch.zeros(12, 12)
    pattern[:4, 0], pattern[4:, 4] = 1, 1
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    inputs = {"pattern": pattern.double()[None, None], "visible": mask}
    assert evaluate(get_metric("top_sink_token"), inputs)[0, 0, :2].tolist() == [4, 0]
    assert evaluate(get_metric("top_sink_score"), inputs)[0, 0].tolist() == pytest.approx([1, 3 / 11, 0])
    late = torch.eye(12)
    late[11] = 0
    late[11, 10] = 1  # the only query that sees token 10, itself apart, looks at it
    inputs["pattern"] = late.double()[None, None]
    assert evaluate(get_metric("top_sink_score"), inputs)[0, 0].tolist() == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("length", [1, 2])
def test_places_that_a_short_prompt_does_not_have(length):
    """NaN and −1, never a made-up token."""
    pattern, mask = windowed(length, length)
    inputs = {"pattern": pattern.double()[None, None], "visible": mask, "resid": torch.ones(1, length, 4)}
    assert (
        evaluate(get_metric("top_sink_token"), inputs)[0, 0].tolist() == [[-1] * 3, [0, -1, -1]][length - 1]
    )
    assert evaluate(get_metric("top_norm_token"), inputs)[0].tolist() == [[0, -1, -1], [0, 1, -1]][length - 1]
    assert (
        evaluate(get_metric("top_norm"), inputs)[0].isnan().tolist()
        == [[False, True, True], [False, False, True]][length - 1]
    )


def test_mass_lost_to_a_sink_logit():
    """Rows that sum to one half: the mass says so and the concentration divides it out."""
    assert score("row_mass", sink(16) / 2) == pytest.approx(0.5)
    assert score("colsum_concentration", sink(16) / 2) == pytest.approx(1)
    assert score("sink_score", sink(16) / 2) == pytest.approx(0.5)


@pytest.mark.parametrize("rank", [1, 2, 5, 16])
def test_equal_directions(rank):
    """k orthogonal rows of one length: entropy ln k, effective rank k, anisotropy 1/k."""
    x = 7 * torch.eye(16)[None, :rank]
    assert float(matrix_entropy(spectrum(x))) == pytest.approx(math.log(rank), abs=1e-12)
    assert float(effective_rank(spectrum(x))) == pytest.approx(rank)
    assert float(anisotropy(spectrum(x))) == pytest.approx(1 / rank)
    wanted = [7.0] * min(rank, 8) + [0.0] * max(0, 8 - rank)
    assert singular_values(spectrum(x))[0].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (1, 9), (9, 1)])
def test_rank_one(shape):
    """An outer product uses one direction: entropy 0, anisotropy 1."""
    x = torch.outer(torch.randn(shape[0]), torch.randn(shape[1]))[None]
    assert float(matrix_entropy(spectrum(x))) == pytest.approx(0, abs=1e-6)
    assert float(anisotropy(spectrum(x))) == pytest.approx(1, abs=1e-9)


def reference(x: torch.Tensor) -> tuple[float, float]:
    """Entropy and anisotropy from a float64 singular value decomposition."""
    squares = np.linalg.svd(x.double().numpy(), compute_uv=False) ** 2
    shares = squares / squares.sum()
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum()), float(shares[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("massive", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("shape", [(24, 64), (96, 32), (128, 384), (1, 16)])
def test_spectrum_is_accurate(dtype, massive, shape):
    """Within 1e-5 nats and 1e-6 of a float64 SVD of the same values, one row up to 10⁴ times the others."""
    x = torch.randn(shape)
    x[0] *= massive
    x = x.to(dtype)
    entropy, top = reference(x)
    found = spectrum(x[None])
    assert float(matrix_entropy(found)) == pytest.approx(entropy, abs=1e-5)
    assert float(anisotropy(found)) == pytest.approx(top, abs=1e-6)
    assert float(effective_rank(found)) == pytest.approx(math.exp(entropy), rel=1e-5)


def test_a_valley_is_not_lost_in_rounding():
    """With a row 10⁴ times the others the entropy is tiny, and still right in its third digit."""
    x = torch.randn(128, 384)
    x[0] *= 1e4
    entropy, _ = reference(x)
    assert float(matrix_entropy(spectrum(x[None]))) == pytest.approx(entropy, rel=1e-3)


def test_not_finite_is_nan_for_that_prompt_only():
    """NaN and infinity come out as NaN and do not stop the other prompts."""
    x = torch.randn(4, 6, 8)
    x[1, 2, 3], x[2, 0, 0] = torch.nan, torch.inf
    found = matrix_entropy(spectrum(x))
    assert found.isnan().tolist() == [False, True, True, False]


NUMBERS = st.lists(st.integers(-3, 3) | st.floats(-1e3, 1e3, width=32), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(NUMBERS)
def test_median_is_numpys(numbers):
    """The mean of the middle two for even counts, ties or not."""
    x = torch.tensor([numbers, numbers[::-1]], dtype=torch.float32)
    wanted = np.median(x.numpy(), axis=1)
    np.testing.assert_allclose(median(x).numpy(), wanted, rtol=1e-6, atol=1e-30)


def test_medians_of_metrics():
    """The median metrics, even and odd counts, against numpy."""
    for length in (3, 4, 7, 8):
        resid = torch.randn(2, length, 5)
        norms = resid.norm(dim=-1).numpy()
        got = evaluate(get_metric("other_norm_median"), {"resid": resid})
        np.testing.assert_allclose(got, np.median(norms[:, 1:], axis=1), rtol=1e-6)
        ratio = evaluate(get_metric("massive_activation_ratio"), {"resid": resid})
        np.testing.assert_allclose(ratio, norms[:, 0] / np.median(norms[:, 1:], axis=1), rtol=1e-6)
        flat = np.median(np.abs(resid.numpy()).reshape(2, -1), axis=1)
        np.testing.assert_allclose(median_activation(activation_median(resid)), flat, rtol=1e-6)
        value = torch.randn(2, length, 3, 4)
        drain = value.norm(dim=-1).numpy()
        wanted = drain[:, 0] / np.median(drain[:, 1:], axis=1)
        np.testing.assert_allclose(value_drain(value), wanted, rtol=1e-6)


def test_norms_by_hand():
    """BOS 8, others 1, 2, 9: median 2, mean 4, largest 9."""
    resid = torch.diag(torch.tensor([8.0, 1.0, 2.0, 9.0]))[None]
    wanted = {
        "bos_norm": 8, "other_norm_median": 2, "other_norm_mean": 4, "other_norm_max": 9,
        "massive_activation_ratio": 4, "strongest_token": 3, "frobenius_norm": 150**0.5,
    }  # fmt: skip
    for name, number in wanted.items():
        assert float(evaluate(get_metric(name), {"resid": resid})) == pytest.approx(number), name


def test_largest_rows_by_hand():
    """The three largest norms and where they stand; the first of equals comes first."""
    resid = torch.diag(torch.tensor([2.0, 9.0, 2.0, 8.0]))[None]
    assert evaluate(get_metric("top_norm"), {"resid": resid})[0].tolist() == [9, 8, 2]
    assert evaluate(get_metric("top_norm_token"), {"resid": resid})[0].tolist() == [1, 3, 0]


def test_largest_activations_by_hand():
    """The three largest by magnitude, with the token and the dimension where they stand."""
    resid = torch.zeros(1, 4, 6)
    resid[0, 0, 5], resid[0, 2, 1], resid[0, 3, 3] = -900.0, 40.0, -50.0
    found = {n: evaluate(get_metric(n), {"resid": resid})[0].tolist() for n in (
        "top_activation", "top_activation_token", "top_activation_dimension")}  # fmt: skip
    assert found == {
        "top_activation": [900, 50, 40], "top_activation_token": [0, 3, 2],
        "top_activation_dimension": [5, 3, 1],
    }  # fmt: skip


def test_sink_output_share_by_hand():
    """‖A_t0 v₀ W_O‖ / ‖z_t W_O‖, written out with W_O itself."""
    g = torch.Generator().manual_seed(3)
    pattern = torch.randn(1, 2, 5, 5, generator=g).softmax(-1)
    value, weight = torch.randn(1, 5, 2, 3, generator=g), torch.randn(2, 3, 7, generator=g)
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, value)
    seen = torch.ones(5, 5, dtype=torch.bool)  # nobody is hidden from anybody
    given = {"pattern": pattern, "value": value, "z": z, "output_gram": weight @ weight.mT, "visible": seen}
    got = evaluate(get_metric("sink_output_share"), given)
    for head in range(2):
        parts = [
            (pattern[0, head, t, 0] * value[0, 0, head] @ weight[head]).norm()
            / (z[0, t, head] @ weight[head]).norm()
            for t in range(1, 5)
        ]
        assert float(got[0, head]) == pytest.approx(float(sum(parts) / 4), rel=1e-5)


def test_uniform_loss():
    """Logits that prefer nothing cost ln V per token."""
    logits, tokens = torch.zeros(2, 5, 11), torch.randint(0, 11, (2, 5))
    loss = evaluate(get_metric("next_token_loss"), {"logits": logits, "tokens": tokens})
    assert loss.tolist() == pytest.approx([math.log(11)] * 2)
