"""Where do tasks peak, how sure is that, and from which depth on is a score nearly the final one?"""

import numpy as np
import pytest
import xarray as xr
from models import bridge, hugging_face, tokenizer
from test_plots import fake_result
from test_tuned_lens import stories

import mcr_lens as mcr
from mcr_lens.labelled import about, with_interval
from mcr_lens.task_curves import interval, task_curve

pytestmark = pytest.mark.once

DEPTHS = 9


def readout(table, *, better="higher", weights=None, task="a task", **attrs) -> xr.Dataset:
    """A readout whose score is the mean over units of a table [unit, depth]."""
    table = np.asarray(table, dtype=float)
    w = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=float)
    mean = (w[:, None] * table).sum(0) / w.sum()
    sampled = {"samples": "by_unit"} | ({} if weights is None else {"weights": "n"})
    label = about("share", "Score", "this test", better)
    variables = with_interval("score", mean, mean - 0.1, mean + 0.1, label, over="texts", sampled=sampled)
    variables["by_unit"] = (("unit", "depth"), table, about("share", "Score by unit", "this test", group="x"))
    ds = xr.Dataset({k: (a, v, dict(t)) for k, (a, v, t) in variables.items()})
    ds = ds.assign_coords(depth=np.arange(table.shape[1]), n=("unit", w))
    given = {"schema": 1, "kind": "readout", "model": "m", "n_layers": table.shape[1] - 1, "score": "score"}
    return ds.assign_attrs({**given, "task": task, **attrs})


def noisy(curve, units=200, noise=0.3, seed=0) -> np.ndarray:
    g = np.random.default_rng(seed)
    return np.asarray(curve) + g.normal(0, noise, (units, len(curve)))


HUMP = 0.6 + 0.3 * np.exp(-((np.arange(DEPTHS) - 4) ** 2) / 4)
RISE = 0.1 + 0.8 * (np.arange(DEPTHS) / (DEPTHS - 1)) ** 3


def test_peaks_and_their_distance():
    ds = mcr.task_divergence(readout(noisy(HUMP), task="probe"), readout(noisy(RISE, seed=1), task="choice"))
    assert int(ds.embedding_peak) == 4 and int(ds.generation_peak) == 8 and int(ds.distance) == 4
    assert ds.embedding_peak_low <= 4 <= ds.embedding_peak_high
    assert ds.distance_low > 0 and float(ds.apart) > 0.99
    assert float(ds.edge) == pytest.approx(float(ds.embedding.max() / ds.embedding[-1] - 1))
    assert ds.edge_low <= ds.edge <= ds.edge_high
    np.testing.assert_allclose(ds.embedding, noisy(HUMP).mean(0))
    assert (ds.embedding_low <= ds.embedding).all() and (ds.embedding <= ds.embedding_high).all()
    assert ds.attrs["task"] == "probe and choice" and ds.attrs["model"] == "m"
    assert ds.attrs["embedding_score"] == "score"


def test_lower_may_be_better():
    ds = mcr.task_divergence(readout(noisy(HUMP)), readout(noisy(3 - RISE), better="lower"))
    assert int(ds.generation_peak) == 8
    assert mcr.task_divergence(readout(noisy(3 - HUMP), better="lower"), readout(noisy(RISE))).edge > 0


def test_flat_scores_are_not_apart():
    """Noise alone: the intervals are wide, and the distance may be nothing."""
    flat = np.full(DEPTHS, 0.5)
    ds = mcr.task_divergence(readout(noisy(flat)), readout(noisy(flat, seed=1)))
    assert ds.distance_low <= 0 <= ds.distance_high
    assert ds.embedding_peak_high - ds.embedding_peak_low >= 3


def test_draws_are_those_of_weighted_means():
    """With all weight on one unit every draw that holds it is that unit; two units of equal weight, three."""
    curve = task_curve(readout([[0.0, 1.0], [1.0, 0.0]], weights=[1, 3]), resamples=4000)
    np.testing.assert_allclose(curve.values, [0.75, 0.25])
    kinds, counts = np.unique(curve.draws[:, 0], return_counts=True)
    np.testing.assert_allclose(kinds, [0, 0.75, 1])
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)


def test_intervals_of_a_mean_cover_as_they_say():
    """Percentiles of 100 units: 95 % intervals hold the truth in 92 to 97 % of 600 samples."""
    held = 0
    for seed in range(600):
        ds = readout(noisy([0.5], units=100, seed=seed))
        low, high = interval(task_curve(ds, resamples=500, seed=1000 + seed).draws[:, 0], 0.95)
        held += low <= 0.5 <= high
    assert 0.92 <= held / 600 <= 0.97, held


def test_similarities_are_ranked_again_in_every_draw():
    g = np.random.default_rng(0)
    scores = g.normal(size=60)
    cosine = np.stack([scores + g.normal(0, s, 60) for s in (2.0, 0.1)], 1)
    rho = [float(np.corrcoef(c.argsort().argsort(), scores.argsort().argsort())[0, 1]) for c in cosine.T]
    ds = readout(cosine)
    ds["score"] = ("depth", rho, {**ds.score.attrs, "statistic": "spearman", "against": "similarity"})
    ds = ds.assign_coords(similarity=("unit", scores))
    curve = task_curve(ds, resamples=300)
    assert (np.abs(curve.draws) <= 1).all() and curve.best() == 1 and (curve.best_drawn() == 1).all()
    np.testing.assert_allclose(curve.draws.mean(0), rho, atol=0.05)


def test_phases_are_told_by_depth_and_drawn():
    measured = fake_result(8)
    phases = mcr.detect_phases(measured)
    given = [readout(noisy(HUMP)), readout(noisy(RISE))]
    ds = mcr.task_divergence(*given, phases)
    for name in ("mix", "compress", "refine"):
        assert np.flatnonzero(ds.phase.values == name).tolist() == list(getattr(phases, name))
    assert mcr.task_divergence(*given, measured).phase.identical(ds.phase)
    assert set(mcr.task_divergence(*given).phase.values) == {""}
    fig, bare = mcr.plot_readouts(ds), mcr.plot_readouts(ds, phases=None)
    shades = [s for s in fig.layout.shapes if s.type == "rect"]
    assert len(shades) > len([s for s in bare.layout.shapes if s.type == "rect"])
    stars = [t.x[0] for t in fig.data if t.marker.symbol == "star"]
    assert stars == [int(ds.embedding_peak), int(ds.generation_peak)]


def test_the_earliest_depth_that_does():
    flat, rise = readout(noisy(HUMP, noise=0.01), task="flat"), readout(noisy(RISE, noise=0.01), task="rise")
    ds = mcr.early_exit(flat, rise, target=0.9)
    for i, curve in enumerate((flat, rise)):
        share = curve.score / curve.score[-1]
        np.testing.assert_allclose(ds.share[i], share)
        assert int(ds.exit_depth[i]) == int((share.values >= 0.9).argmax())
    assert ds.stays.values.tolist() == [True, True] and ds.task.values.tolist() == ["flat", "rise"]
    assert (ds.exit_depth_low <= ds.exit_depth).all() and (ds.exit_depth <= ds.exit_depth_high).all()
    assert (mcr.early_exit(flat, rise, target=0.99).exit_depth >= ds.exit_depth).all()
    assert int(mcr.early_exit(rise, target=1.0).exit_depth[0]) == 8


def test_a_loss_is_reached_from_above_and_a_dip_is_told():
    loss = readout(noisy(1 / RISE, noise=0.01), better="lower")
    ds = mcr.early_exit(loss, target=0.5)
    np.testing.assert_allclose(ds.share[0], loss.score[-1] / loss.score)
    dip = HUMP.copy()
    dip[6] = 0.2
    assert not mcr.early_exit(readout(noisy(dip, noise=0.01)), target=0.95).stays[0]


def test_beyond_guessing():
    ds = readout(noisy(0.5 + 0.4 * RISE, noise=0.01)).assign(chance=0.5)
    plain, beyond = mcr.early_exit(ds, target=0.7), mcr.early_exit(ds, target=0.7, chance=True)
    np.testing.assert_allclose(beyond.share[0], (ds.score - 0.5) / (ds.score[-1] - 0.5))
    assert beyond.exit_depth[0] > plain.exit_depth[0]


def test_results_are_saved(tmp_path):
    one, two = readout(noisy(HUMP)), readout(noisy(RISE))
    for name, ds in (("d", mcr.task_divergence(one, two)), ("e", mcr.early_exit(one, two))):
        xr.testing.assert_identical(mcr.load(mcr.save(ds, tmp_path / name)), ds)


def test_the_order_of_units_and_the_seed():
    one = task_curve(readout(noisy(HUMP)), seed=3)
    assert np.array_equal(one.draws, task_curve(readout(noisy(HUMP)), seed=3).draws)
    assert not np.array_equal(one.draws, task_curve(readout(noisy(HUMP)), seed=4).draws)


def test_of_a_model():
    """From lenses of a real forward pass: the last depth is nearest to its own prediction."""
    model = bridge("llama")
    lens = mcr.logit_lens(model, stories(12), progress=False)
    tuned = mcr.tuned_lens(model, stories(12), train_texts=stories(), steps=10, progress=False)
    ds = mcr.task_divergence(tuned, lens, generation_score="kl_to_final")
    assert int(ds.generation_peak) == 4 == int(ds.generation_peak_low)
    exits = mcr.early_exit(lens, tuned)
    assert exits.task.values.tolist() == ["next token (logit lens)", "next token (tuned lens)"]
    assert exits.sizes == {"task": 2, "depth": 5}


def test_every_readout_has_draws():
    """A probe, similarities, questions and lenses of one model can all be set beside each other."""
    model, texts = bridge("llama"), stories(30, length=9)
    reads = mcr.load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    probe = mcr.linear_probe(model, texts, [int(t[-1]) % 2 for t in texts], seeds=2, progress=False)
    pairs = mcr.similarity_probe(
        model, list(zip(texts[::2], texts[1::2], strict=True)), range(15), progress=False
    )
    items = [mcr.ChoiceItem(("ab", "ab"), ("cd", "ef"), i % 2) for i in range(5)]
    choice = mcr.multiple_choice(reads, items, progress=False)
    lens = mcr.logit_lens(model, texts, progress=False)
    for ds, units in ((probe, 12), (pairs, 15), (choice, 5), (lens, 30)):
        curve = task_curve(ds, resamples=200)
        samples = ds[ds[curve.name].attrs["samples"]]
        assert len(samples) <= max(units, 12) and curve.draws.shape == (200, 5)
        low, high = np.quantile(curve.draws, [0.01, 0.99], axis=0)
        assert ((low <= curve.values) & (curve.values <= high)).all(), curve.name
    assert np.isfinite(mcr.task_divergence(probe, lens).distance_low)
    assert np.isfinite(mcr.early_exit(lens, choice).exit_depth_low).all()
    for ds, told in ((probe, "text"), (pairs, "15 pairs"), (choice, "5 questions"), (lens, "30 windows")):
        assert told in mcr.plot_readouts(ds).layout.title.text


def test_what_is_wrong_is_said():
    one, two = readout(noisy(HUMP)), readout(noisy(RISE))
    for call, kind, message in (
        (
            lambda: mcr.task_divergence(3, two),
            TypeError,
            "expected a readout such as linear_probe returns, got int",
        ),
        (
            lambda: mcr.task_divergence(fake_result(8), two),
            mcr.ResultSchemaError,
            "this Dataset is no readout",
        ),
        (
            lambda: mcr.task_divergence(one, two, embedding_score="x"),
            ValueError,
            "'x' is no score of this readout",
        ),
        (
            lambda: mcr.task_divergence(one, two.assign_attrs(model="n")),
            ValueError,
            "differ in model: 'm' and 'n'",
        ),
        (
            lambda: mcr.task_divergence(one, two.assign_attrs(interventions='["edited"]')),
            ValueError,
            "differ in interventions: ",
        ),
        (lambda: mcr.task_divergence(one, two, "auto"), mcr.ResultSchemaError, "phases is a str; pass what"),
        (
            lambda: mcr.task_divergence(one, two, mcr.detect_phases(fake_result(12))),
            ValueError,
            "the phases are of 13 depths and the readouts of 9",
        ),
        (
            lambda: mcr.task_divergence(one.assign_attrs(lens="x"), two.assign_attrs(pooling="mean")),
            ValueError,
            "the embedding task comes first and generation second",
        ),
        (lambda: mcr.early_exit(), ValueError, "early_exit needs a readout"),
        (
            lambda: mcr.early_exit(one, target=1.5),
            ValueError,
            r"target=1\.5: pass a share of the final score",
        ),
        (lambda: mcr.early_exit(one, scores=["a", "b"]), ValueError, "scores names 2 scores for 1 readouts"),
        (lambda: mcr.early_exit(one, readout(noisy(HUMP[:5]))), ValueError, "of models with 4, 8 layers"),
        (
            lambda: mcr.early_exit(one, chance=True),
            ValueError,
            "does not say what guessing scores in 'score'",
        ),
        (
            lambda: mcr.early_exit(one.assign(chance=0.9), chance=True),
            ValueError,
            "at the last depth and guessing 0.9, so there is no share",
        ),
        (lambda: mcr.early_exit(readout(noisy(HUMP - 1))), ValueError, "no share of what is not positive"),
        (
            lambda: mcr.early_exit(readout(np.full((3, 4), np.nan))),
            ValueError,
            "'score' is nan at depth 0; a curve needs a number at each",
        ),
    ):
        with pytest.raises(kind, match=message):
            call()


def test_draws_that_end_no_better_than_guessing_have_no_share():
    """A quotient of two negative numbers is no share, and one by nothing no number."""
    right = np.zeros((40, 3))
    right[:21, 1:] = 1  # 21 of 40 right at the end, and guessing has 20
    ds = mcr.early_exit(readout(right).assign(chance=0.5), chance=True)
    assert float(ds.share[0, 1]) == 1 and int(ds.exit_depth[0]) == 1
    for name in ("share_low", "share_high"):
        assert ds[name].isnull().all()
    assert np.isnan(ds.exit_depth_low[0]) and np.isnan(ds.exit_depth_high[0])
    sure = mcr.early_exit(readout(np.ones((40, 3))).assign(chance=0.5), chance=True)
    assert float(sure.share_low[0, 1]) == 1 == float(sure.share_high[0, 1])


def test_percentiles_of_draws():
    draws = np.arange(1000.0)
    assert interval(draws, 0.9) == pytest.approx((49.95, 949.05))
    assert interval(np.where(draws < 40, np.nan, draws), 0.9)[1] > 940
    assert np.isnan(interval(np.where(draws < 60, np.nan, draws), 0.9)).all()
    assert interval(np.where(draws > 900, np.inf, draws), 0.9) == (49.0, np.inf)


def test_one_score_may_be_named_by_itself():
    ds = readout(noisy(RISE))
    xr.testing.assert_identical(mcr.early_exit(ds, scores="score"), mcr.early_exit(ds, scores=["score"]))
