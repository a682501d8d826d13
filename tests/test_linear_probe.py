"""Does a probe find what is there, nothing else, and say how sure it is?"""

import json
import sys

import numpy as np
import pytest
import torch
from models import bridge, hugging_face, tokenizer
from real_data import real
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mcr_lens import ProbeWarning, linear_probe, load_model, read_labelled, representations
from mcr_lens.readouts.probe_data import drawn, join, make_split, read_labels, shuffled
from mcr_lens.readouts.probe_fits import GRID
from mcr_lens.readouts.probe_intervals import share_interval
from mcr_lens.readouts.representations import read_rows
from mcr_lens.resampling import student_quantile

READOUTS = ("accuracy", "advantage", "control_accuracy", "selectivity")


def rows_of_ids(n: int, last=None, seed: int = 0) -> torch.Tensor:
    """Rows of nine ids, the last one given."""
    ids = torch.randint(3, 128, (n, 9), generator=torch.Generator().manual_seed(seed))
    if last is not None:
        ids[:, -1] = torch.as_tensor(last)
    return ids


def probe(model, texts, labels, **options):
    return linear_probe(model, texts, labels, **{"pooling": "last", "progress": False, **options})


@pytest.fixture(scope="module")
def planted():
    """Two classes told apart by the last token alone, 70 % of them of one class."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [84, 36]))
    return rows_of_ids(120, np.where(labels == 1, 40, 90)), labels


@pytest.fixture(scope="module")
def found(llama, planted):
    return probe(llama, *planted)


# -- laws --


def test_a_planted_direction_is_found(found):
    """Wholly in the embeddings, less where random blocks blur it; bounds never claim certainty."""
    assert found.accuracy[0] == 1 and (found.seed_accuracy[:, 0] == 1).all()
    np.testing.assert_allclose(found.majority, 0.7, atol=0.02)
    np.testing.assert_allclose(found.advantage, found.accuracy - found.majority.mean(), atol=1e-12)
    np.testing.assert_allclose(found.selectivity, found.accuracy - found.control_accuracy, atol=1e-12)
    assert (found.advantage_low > 0).all() and (found.selectivity_low > 0).all()
    assert 0.9 < found.accuracy_low[0] < 0.99 and found.accuracy_high[0] == 1


def test_accuracy_is_the_mean_over_texts(found):
    """So that it can be computed anew for other texts."""
    anew = (found.text_accuracy * found.n_tested).sum("text") / found.n_tested.sum()
    np.testing.assert_allclose(anew, found.accuracy, atol=1e-12)
    assert found.accuracy.attrs["samples"] == "text_accuracy" and int(found.n_tested.sum()) == 5 * 24


def test_shuffled_labels_are_not_found(found):
    """The control of the same texts only guesses."""
    assert (found.control_accuracy_low <= found.majority.mean()).all()
    np.testing.assert_allclose(found.seed_control_accuracy.mean("seed"), found.control_accuracy)


@pytest.mark.once
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_labels_without_any_relation_do_not_beat_the_majority(llama, pooling):
    """What would happen by chance does not count as found."""
    labels = np.random.default_rng(5).permutation(np.repeat(["a", "b"], [84, 36]))
    found = probe(llama, rows_of_ids(120, seed=7), labels, pooling=pooling)
    assert (found.advantage_low <= 0).all() and (found.selectivity_low <= 0).all()


@pytest.mark.once
def test_what_is_the_same_for_all_texts_tells_nothing(planted):
    """BOS in a causal model differs by rounding only, with what ran beside it; that is not blown up."""
    ids = torch.cat([torch.zeros(120, 1, dtype=torch.long), planted[0]], 1)
    rows = [row[: 4 + 4 * int(label)] for row, label in zip(ids, planted[1], strict=True)]  # length tells all
    found = probe(bridge("llama"), rows, planted[1], pooling="bos", batch_size=7)
    np.testing.assert_array_equal(found.advantage, 0)


@pytest.mark.once
def test_the_same_seeds_give_the_same_numbers(llama, planted, found):
    """And more seeds add to them."""
    again = probe(llama, *planted)
    for name in found.data_vars:
        np.testing.assert_array_equal(again[name], found[name], err_msg=name)
    fewer = probe(llama, *planted, seeds=2, control=False)
    np.testing.assert_array_equal(fewer.regularisation, found.regularisation[:2])
    assert not {"control_accuracy", "selectivity", "seed_control_accuracy"} & set(fewer.data_vars)


@pytest.mark.once
def test_names_of_classes_do_not_matter(llama, planted, found):
    """Strings, numbers, arrays, tensors, truth values."""
    kinds = [planted[1].tolist(), torch.tensor(planted[1]), planted[1] == 1, ["no", "yes"]]
    kinds[3] = [kinds[3][label] for label in planted[1]]
    for labels in kinds:
        again = probe(llama, planted[0], labels, seeds=2, control=False)
        np.testing.assert_array_equal(again.seed_accuracy, found.seed_accuracy[:2])
    assert json.loads(again.attrs["classes"]) == ["no", "yes"]


def test_a_served_model_is_a_bridge(planted, found):
    """By either door, up to texts on the border."""
    served = probe(hugging_face("llama", attention="sdpa"), *planted)
    for name in READOUTS:
        np.testing.assert_allclose(served[name], found[name], atol=0.03)


def test_many_classes_and_test_texts_of_their_own(llama):
    """Four classes; every seed tests all of the test texts."""
    labels, tested = np.arange(80) % 4, np.arange(30) % 4
    last = np.array([20, 50, 80, 110])
    found = probe(
        llama, rows_of_ids(80, last[labels]), labels, seeds=3,
        test_texts=rows_of_ids(30, last[tested], seed=9), test_labels=tested,
    )  # fmt: skip
    assert found.accuracy[0] == 1 and found.advantage_low[0] > 0.4
    np.testing.assert_allclose(found.majority, 8 / 30)
    assert found.accuracy.attrs["interval_over"] == "test texts and seeds"


def test_layout(found):
    """What others rely on."""
    assert found.attrs["kind"] == "readout" and found.attrs["score"] == "accuracy"
    assert found.attrs["pooling"] == "last" and "BOS" not in found.attrs["pooling_meaning"]
    assert found.attrs["fits_not_converged"] == 0 and found.attrs["texts_with_bos"] == 0
    assert json.loads(found.attrs["regularisation_grid"]) == list(GRID)
    for name in READOUTS:
        low, value, high = (found[each] for each in (f"{name}_low", name, f"{name}_high"))
        assert value.dims == ("depth",) and (low <= value).all() and (value <= high).all()
        assert value.attrs["units"] == "share" and value.attrs["group"] == "readout"
        assert value.attrs["interval_over"] == "texts and splits"
    assert found.accuracy.attrs["better"] == "higher" and "better" not in found.control_accuracy.attrs
    for name in ("seed_accuracy", "regularisation"):
        assert found[name].dims == ("seed", "depth") and found[name].attrs["group"] == "repeat"


# -- splits --


def test_splits_keep_shares_of_classes_and_copies_together():
    """At least one of each class on both sides, whatever the share."""
    g = np.random.default_rng(0)
    for share in (0.01, 0.2, 0.5, 0.99):
        same = g.integers(0, 60, 100)
        labels = same % 3
        chosen = drawn(labels, same, share, g)
        assert not set(same[chosen]) & set(same[~chosen])
        assert set(labels[chosen]) == set(labels[~chosen]) == {0, 1, 2}
        for label in range(3):
            mine = set(same[labels == label])
            wanted = np.clip(round(share * len(mine)), 1, len(mine) - 1)
            assert len(mine & set(same[chosen])) == wanted


def test_parts_are_apart_and_only_labels_to_learn_are_shuffled(llama):
    """Numbers of each class stay in each part; those tested keep their labels."""
    rows = read_rows(llama, rows_of_ids(60), prepend_bos="auto", max_length=None)
    data = join(read_labels(rows, [0, 1, 1] * 20, ""), None)
    split = make_split(data, 3, 0.2, 0.25)
    assert sorted([*split.trained, *split.tested]) == list(range(60))
    assert (len(split.tested), len(split.validation)) == (12, 12)
    control = shuffled(split, 3)
    np.testing.assert_array_equal(control.labels[split.tested], split.labels[split.tested])
    for part in (split.fit, split.validation):
        assert control.labels[part].sum() == split.labels[part].sum()
    assert (control.labels != split.labels).any()


# -- numbers --


def test_numbers_are_those_of_scikit_learn(llama):
    """Written out: standardise, choose C by validation loss, refit, test."""
    labels = np.random.default_rng(1).integers(0, 3, 150)
    ids = rows_of_ids(150, np.where(np.random.default_rng(2).random(150) < 0.5, 30 + labels, 60), seed=3)
    found = probe(llama, ids, labels, seeds=2, pooling="mean")
    vectors = representations(llama, ids, progress=False).astype(float)
    rows = read_rows(llama, ids, prepend_bos="auto", max_length=None)
    data = join(read_labels(rows, labels, ""), None)
    for seed in range(2):
        split = make_split(data, seed, 0.2, 0.2)
        for depth in (0, 2, 4):
            x = vectors[:, depth]
            scaler = StandardScaler().fit(x[split.fit])
            losses = []
            for c in GRID:
                model = LogisticRegression(C=c, tol=1e-7, max_iter=10_000)
                model.fit(scaler.transform(x[split.fit]), labels[split.fit])
                chances = model.predict_proba(scaler.transform(x[split.validation]))
                losses.append(-np.log(chances[np.arange(len(chances)), labels[split.validation]]).mean())
            best = GRID[int(np.argmin(losses))]
            assert found.regularisation[seed, depth] == best
            scaler = StandardScaler().fit(x[split.trained])
            model = LogisticRegression(C=best, tol=1e-7, max_iter=10_000)
            model.fit(scaler.transform(x[split.trained]), labels[split.trained])
            right = model.score(scaler.transform(x[split.tested]), labels[split.tested])
            assert found.seed_accuracy[seed, depth] == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize(("right", "n"), [(40, 40), (0, 25), (30, 50)])
def test_one_seed_is_agresti_and_coull(right, n):
    """Two right and two wrong texts added, Student's t in place of the normal quantile."""
    values = np.where(np.arange(n) < right, 1.0, 0.0)[None, :, None]
    value, low, high = share_interval(values, 0.25, paired=False)
    middle = (right + 2) / (n + 4)
    reach = student_quantile(0.975, n - 1) * np.sqrt(middle * (1 - middle) / (n + 4))
    assert value[0] == pytest.approx(right / n)
    assert low[0] == pytest.approx(max(0, min(middle - reach, right / n)))
    assert high[0] == pytest.approx(min(1, max(middle + reach, right / n)))


def test_one_seed_is_bonett_and_price():
    """Of a difference: one text added on each side."""
    values = np.repeat([1.0, 0.0, -1.0], [12, 30, 5])[None, :, None]
    value, low, high = share_interval(values, 0.25, paired=True)
    more, less = 13 / 49, 6 / 49
    reach = student_quantile(0.975, 46) * np.sqrt((more + less - (more - less) ** 2) / 49)
    np.testing.assert_allclose(
        [value[0], low[0], high[0]], [7 / 47, more - less - reach, more - less + reach]
    )


def test_seeds_that_differ_are_nadeau_and_bengio():
    """Where seeds differ by more than their texts explain; texts that a seed did not test are left out."""
    values = np.full((3, 300, 1), np.nan)
    for seed, share in enumerate((0.2, 0.5, 0.8)):
        values[seed, seed * 100 : seed * 100 + 100, 0] = np.arange(100) < 100 * share
    value, low, high = share_interval(values, 0.25, paired=False)
    reach = student_quantile(0.975, 2) * 0.3 * np.sqrt(1 / 3 + 0.25)
    np.testing.assert_allclose([value[0], low[0], high[0]], [0.5, max(0, 0.5 - reach), min(1, 0.5 + reach)])


def least_squares(x, y):
    """A quick linear classifier."""
    x = np.c_[x, np.ones(len(x))]
    return np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ (2.0 * y - 1))


def right(weights, x, y):
    return ((x @ weights[:-1] + weights[-1] > 0) == y).astype(float)


@pytest.mark.once
@pytest.mark.parametrize(
    ("n", "d", "gap", "share", "shuffle"),
    [
        (60, 5, 0.0, 0.5, False),
        (200, 10, 1.5, 0.7, False),
        (200, 10, 4.0, 0.5, False),
        (200, 10, 4.0, 0.5, True),
    ],
)
def test_coverage(n, d, gap, share, shuffle):
    """95 % intervals hold the accuracy on new texts of probes of new texts; noise is not taken for more."""
    g, apart = np.random.default_rng(1), np.zeros(d)
    apart[0] = gap / 2

    def texts(size):
        y = g.random(size) < share
        return g.normal(size=(size, d)) + np.outer(2.0 * y - 1, apart), y

    many, bounds, truth = texts(20_000), [], []
    for _ in range(300):
        x, y = texts(n)
        scores, guessed = np.full((2, 5, n, 1), np.nan)
        for seed in range(5):
            tested = drawn(y.astype(int), np.arange(n), 0.2, g)
            learned = g.permutation(y[~tested]) if shuffle else y[~tested]
            weights = least_squares(x[~tested], learned)
            scores[seed, tested, 0] = right(weights, x[tested], y[tested])
            guessed[seed, tested, 0] = y[tested] == (y[~tested].mean() > 0.5)
        truth.append(right(weights, *many).mean())
        shares = [
            share_interval(scores, 0.25, paired=False),
            share_interval(scores - guessed, 0.25, paired=True),
        ]
        bounds.append([[float(low[0]), float(high[0])] for _, low, high in shares])
    accuracy = np.mean(truth)
    for which, value in enumerate((accuracy, accuracy - max(share, 1 - share))):
        low, high = np.array(bounds)[:, which].T
        assert ((low <= value) & (value <= high)).mean() >= 0.93
    if not gap or shuffle:
        assert (np.array(bounds)[:, 1, 0] > 0).mean() <= 0.01


# -- what is said --


def test_a_solver_that_did_not_converge_is_announced(llama, planted, monkeypatch):
    """How many fits, by name, and scikit-learn's own warning is not repeated."""
    monkeypatch.setattr("mcr_lens.readouts.probe_fits.STEPS", 1)
    with pytest.warns(ProbeWarning, match="fits of probes stopped before they converged") as caught:
        found = probe(llama, *planted, seeds=1, control=False)
    assert len(caught) == 1 and found.attrs["fits_not_converged"] > 5


def test_tested_texts_that_were_learned_from_are_announced(llama, planted):
    ids, labels = planted
    with pytest.warns(ProbeWarning, match="20 of 20 test texts are also among those to learn from"):
        probe(llama, ids, labels, seeds=1, control=False, test_texts=ids[:20], test_labels=labels[:20])


def test_scikit_learn_is_asked_for_in_words(llama, planted, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    message = r'needs sklearn, which is not installed: pip install "mcr-lens\[probes\]"'
    with pytest.raises(ImportError, match=message):
        probe(llama, *planted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pooling": "max"}, ValueError, "pooling='max': pass 'mean', 'last', 'bos'"),
        ({"pooling": ["mean"]}, ValueError, r"pooling=\['mean'\]: pass one of 'mean', 'last', 'bos'"),
        ({"seeds": 0}, ValueError, "seeds=0: pass how many splits to make"),
        ({"test_share": 1}, ValueError, "test_share=1: pass a share between 0 and 1"),
        ({"validation_share": 0.0}, ValueError, "validation_share=0.0: pass a share between 0 and 1"),
        ({"labels": [0, 1]}, ValueError, "labels: got 2 for 12 texts; pass one for each, in their order"),
        ({"labels": [0.5, 1.0] * 6}, TypeError, "labels hold float; pass strings only, or whole numbers"),
        ({"labels": None}, TypeError, "labels came as NoneType; pass a list, one for each text"),
        ({"labels": "ab" * 6}, TypeError, "labels came as str; pass a list, one for each text"),
        ({"labels": ["a", 1] * 6}, TypeError, "labels hold int, str; pass strings only"),
        ({"labels": ["a"] * 12}, ValueError, "all texts are 'a'; a probe needs two classes or more"),
        ({"labels": [0] * 10 + [1] * 2}, ValueError, "1 has 2 different texts; every class needs 3"),
        ({"test_texts": [[5]]}, ValueError, "test_labels is missing; pass test_texts and"),
        ({"test_labels": [5]}, ValueError, "test_texts is missing; pass test_texts and"),
        ({"test_texts": [[5]], "test_labels": [7]}, ValueError, r"test_labels: 7 is no label .* 0, 1;"),
        ({"test_texts": [[5]], "test_labels": []}, ValueError, "test_labels: got 0 for 1 test_texts"),
        ({"tokenizer": tokenizer()}, TypeError, "tokenizer= goes with a plain Hugging Face model"),
    ],
)  # fmt: skip
def test_refusals(llama, options, error, message, monkeypatch):
    """Before the model runs."""
    monkeypatch.setattr(type(llama), "forward", lambda *_, **__: pytest.fail("the model ran"))
    given = {"labels": [0, 1] * 6, **options}
    with pytest.raises(error, match=message):
        probe(llama, rows_of_ids(12), given.pop("labels"), **given)


# -- real data --


@pytest.mark.once
def test_sentiment_in_a_small_real_model():
    """A model of children's stories has more of the tone of film reviews than guessing; shuffling has not."""
    model = load_model(str(real("models/stories260K")), verbose=False)
    texts, labels = read_labelled(real("data/sst2/train.tsv"), limit=1500)
    assert set(labels) == {0, 1} and len(texts) == 1500
    tested = read_labelled(real("data/sst2/dev.tsv"))
    found = linear_probe(
        model, texts, labels, test_texts=tested[0], test_labels=tested[1], seeds=3, progress=False
    )
    assert found.attrs["texts_with_bos"] == 1
    assert (found.advantage_low > 0).any() and (found.selectivity_low > 0).any()
    assert (found.control_accuracy_low <= found.majority.mean()).all()
