"""Are cosines those of the two texts, and is ρ that of SciPy, whatever ran together?"""

import numpy as np
import pytest
import torch
from models import bridge, hugging_face
from scipy.stats import spearmanr

from mcr_lens import bootstrap, representations, similarity_probe

pytestmark = pytest.mark.once


def pairs_of_ids(n: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of rows of 4 to 12 ids that share more and more of them."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        first = torch.randint(3, 128, (4 + i % 9,), generator=g)
        second = torch.randint(3, 128, (4 + (i * 5) % 9,), generator=g)
        second[: i * min(len(first), len(second)) // n] = first[: i * min(len(first), len(second)) // n]
        found.append((first, second))
    return found


PAIRS, SCORES = pairs_of_ids(24), np.arange(24) // 2 / 2.0


def probe(model, pairs=PAIRS, scores=SCORES, **options):
    return similarity_probe(model, pairs, scores, **{"resamples": 200, "progress": False, **options})


@pytest.fixture(scope="module")
def found(llama):
    return probe(llama)


# -- laws --


def test_a_planted_similarity_is_found(found):
    """Texts that share tokens are close to each other in the embeddings."""
    assert found.spearman[0] > 0.7 and found.spearman_low[0] > 0.4
    assert (found.spearman_low <= found.spearman).all() and (found.spearman <= found.spearman_high).all()


def test_the_same_text_twice_has_cosine_1_and_sides_do_not_matter(llama, found):
    same = probe(llama, [(one, one) for one, _ in PAIRS], SCORES, center=True)
    np.testing.assert_allclose(same.cosine, 1, atol=1e-6)
    turned = probe(llama, [pair[::-1] for pair in PAIRS])
    np.testing.assert_allclose(turned.cosine, found.cosine, atol=1e-5)


def test_pairs_are_in_their_order_whatever_runs_together(llama, found):
    order = np.random.default_rng(0).permutation(len(PAIRS))
    shuffled = probe(llama, [PAIRS[i] for i in order], SCORES[order], batch_size=1)
    np.testing.assert_allclose(shuffled.cosine, found.cosine[order], atol=1e-5)
    np.testing.assert_array_equal(shuffled.similarity, SCORES[order])
    np.testing.assert_allclose(shuffled.spearman, found.spearman, atol=0.01)


def test_only_the_order_of_scores_counts(llama, found):
    for scores, sign in ((np.exp(SCORES), 1), (-SCORES, -1)):
        np.testing.assert_allclose(probe(llama, scores=scores).spearman, sign * found.spearman, atol=1e-12)


def test_the_same_seed_gives_the_same_numbers(llama, found):
    again = probe(llama)
    for name in found.data_vars:
        np.testing.assert_array_equal(again[name], found[name])
    np.testing.assert_array_equal(probe(llama, seed=1).spearman, found.spearman)


def test_a_served_model_is_a_bridge(found):
    served = probe(hugging_face("llama", attention="sdpa"))
    np.testing.assert_allclose(served.cosine, found.cosine, atol=1e-5)
    np.testing.assert_allclose(served.spearman, found.spearman, atol=0.01)


def test_what_is_the_same_everywhere_has_no_correlation(llama):
    """Position 0 always holds the same token: cosines of 1, or of nothing once the mean is gone."""
    pairs = [(torch.tensor([7, i + 10]), torch.tensor([7, i + 60])) for i in range(20)]
    found = probe(llama, pairs, np.arange(20), pooling="bos", batch_size=40)
    np.testing.assert_allclose(found.cosine, 1, atol=1e-6)
    bare = probe(llama, pairs, np.arange(20), pooling="bos", center=True)
    assert np.isnan(bare.spearman[0]) and np.isnan(bare.cosine[:, 0]).all()


# -- numbers --


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_numbers_are_those_of_scipy(llama, pooling, center):
    """Cosines and ranks written out; the interval is that of `bootstrap`."""
    found = probe(llama, pooling=pooling, center=center, resamples=1000)
    texts = [one for one, _ in PAIRS] + [other for _, other in PAIRS]
    vectors = representations(llama, texts, pooling=pooling, progress=False).astype(float)
    if center:
        vectors -= vectors.mean(0)
    a, b = vectors[:24], vectors[24:]
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-9, atol=1e-9)
    for depth in range(5):
        assert float(found.spearman[depth]) == pytest.approx(spearmanr(cosine[:, depth], SCORES).statistic)
    ranked = [SCORES, found.cosine[:, 0].values]
    wanted = bootstrap(lambda x, y: spearmanr(x, y).statistic, *ranked, resamples=1000)
    assert found.spearman[0] == pytest.approx(wanted.value)
    assert float(found.spearman_low[0]) == pytest.approx(wanted.low, abs=0.08)
    assert float(found.spearman_high[0]) == pytest.approx(wanted.high, abs=0.08)


def test_layout(found):
    assert found.attrs["kind"] == "readout" and found.attrs["score"] == "spearman"
    assert found.spearman.attrs["better"] == "higher" and found.spearman.attrs["interval_over"] == "pairs"
    assert found.cosine.dims == ("pair", "depth") and found.similarity.dims == ("pair",)
    assert found.attrs["pooling"] == "mean" and found.attrs["centered"] == 0
    assert found.sizes["depth"] == bridge("llama").cfg.n_layers + 1


# -- what is said --


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": ["mean"]}, r"pooling=\['mean'\]: pass one of 'mean', 'last', 'bos'"),
        ({"pooling": "max"}, "pooling='max': pass 'mean', 'last', 'bos'"),
        ({"seed": -1}, "seed=-1: pass a whole number from 0 on"),
        ({"resamples": 10}, "resamples=10: pass a whole number of at least 100"),
        ({"pairs": PAIRS[:4]}, "pairs: got 4, and a rank correlation needs 5 or more; pass more"),
        ({"pairs": ["ab"] * 5}, "pairs: entry 0 is a str of 2; pass two texts for each"),
        ({"pairs": [("a", "b", "c")] * 5}, "pairs: entry 0 is a tuple of 3; pass two texts for each"),
        ({"pairs": [3] * 5}, "pairs: entry 0 is a int; pass two texts for each"),
        (
            {"scores": [1.0, 2.0]},
            r"scores hold float64 of shape \(2,\); pass one number for each of the 24 pairs",
        ),
        ({"scores": ["a"] * 24}, "scores hold <U1 of shape"),
        ({"scores": [1.0] * 24}, "scores: all pairs have 1, so nothing can go with them; pass others"),
        ({"scores": [*range(23), np.nan]}, "scores: that of pair 23 is nan; leave such pairs out"),
    ],
)
def test_refusals(llama, options, message, monkeypatch):
    """Before the model runs."""
    monkeypatch.setattr(type(llama), "forward", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        probe(llama, **options)


@pytest.mark.parametrize("pairs", [None, "ab", {"a": "b"}])
def test_pairs_are_a_list(llama, pairs):
    with pytest.raises(
        TypeError, match=f"pairs came as {type(pairs).__name__}; pass a list of pairs of texts"
    ):
        probe(llama, pairs=pairs)
