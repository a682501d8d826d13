"""At which depth can labels of texts be read off by a linear classifier, and is that better than guessing?"""

import json
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens._optional import require
from mcr_lens.readouts.layout import Variable, about, check_task, readout, with_interval
from mcr_lens.readouts.probe_data import Data, ProbeWarning, Split, join, make_split, read_labels, shuffled
from mcr_lens.readouts.probe_fits import GRID, PATIENCE, STEPS, TOLERANCE, Fitted, fit_all
from mcr_lens.readouts.probe_intervals import share_interval
from mcr_lens.readouts.representations import (
    POOLINGS,
    check_poolings,
    has_bos,
    pooled,
    read_rows,
)
from mcr_lens.served import hooked

SOURCE = (
    "arXiv 2510.06477: frozen backbone, linear classifier by layer (reconstruction: its probe settings were "
    "not found; pooling, regularisation, splits and intervals are this library's)"
)

SAMPLED = {"samples": "text_accuracy", "weights": "n_tested"}
"""How to compute the accuracy anew from other texts."""


def linear_probe(
    model: Any,
    texts: Any,
    labels: Any,
    *,
    pooling: str = "mean",
    test_texts: Any = None,
    test_labels: Any = None,
    seeds: int = 5,
    test_share: float = 0.2,
    validation_share: float = 0.2,
    control: bool = True,
    task: str = "labelled texts",
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    tokenizer: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Accuracy of a linear classifier of labelled texts at every depth, beside guessing and shuffled labels.

    Texts run once through the frozen model; each depth's vectors r (see `representations`) are standardised
    and given to logistic regression, which minimises C Σ_i −ln p(y_i | r_i) + ½‖W‖² (the bias is free). For
    each seed, texts are split by class into tested ones and others, and a part of the others chooses C in
    10⁻⁵, 10⁻⁴, …, 10 by mean loss, going up until two in a row are worse than the best; then the probe
    learns anew from all that is not tested, with that C, standardised anew. A text that comes several
    times is never on both sides. Every depth has the same splits.

    With A the share of tested texts whose label the probe says, averaged over seeds: `accuracy` is A;
    `advantage` A − M, M the share of the most common label of the texts learned from; `control_accuracy` is A
    of a probe of the same kind whose labels to learn were shuffled, while those tested are the true ones:
    it can only guess, so that it comes to M or less unless something leaks; `selectivity` is the difference
    of the two. All are shares, paired by text and seed; `advantage_low` > 0 says "beats the majority class".

    Intervals of 95 % are the wider of one over tested texts and one over seeds (`probe_intervals`): for new
    texts and new splits of as many, or with test texts of their own for new test texts, given the probes.
    They hold for each depth by itself, not for the best of all. Simulated coverage, 300 samples for each of
    four settings (`tests/test_linear_probe.py`: least squares, normal classes of 50 or 70 %, apart or not, 60
    or 200 texts, 5 seeds): 93 % and more; without any relation of labels and texts `advantage_low` > 0 in at
    most 1 % of the samples. Two seeds make them wide (Student's t of one degree).

    Args:
        model: as for `measure`.
        texts: strings, or token ids.
        labels: one for each text, strings or whole numbers, of two classes or more.
        pooling: "mean", "last" or "bos". In a causal model with a BOS in front, "bos" is the same for all.
        test_texts: texts to test on, such as a validation set; by default a share of `texts`.
        test_labels: theirs.
        seeds: how many splits and shuffles; seed numbers are 0, 1, …
        test_share: of the texts, where there are no test texts.
        validation_share: of the texts that are not tested.
        control: also learn from shuffled labels.
        task: what the labels say, for figures.
        max_length: cut longer texts to so many tokens; by default to the model's context, with a warning.
        prepend_bos: as for `measure`.
        batch_size: how many texts run together, at most, or "auto".
        tokenizer: that of a plain Hugging Face model, which has none of its own.

    Returns:
        By depth 0..L, each beside `_low` and `_high`: `accuracy`, `advantage` and, with a control,
        `control_accuracy` and `selectivity`. By seed and depth: `seed_accuracy`, `seed_control_accuracy`
        and `regularisation`, the C chosen. By seed: `majority`. By text and depth: `text_accuracy`, over the
        `n_tested` seeds that tested it. Units: shares, C a pure number.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError, ValueError: what came, what is allowed, what to do; before the model runs.
        NonFiniteActivationError, HookDidNotFireError: after a batch.

    Source: arXiv 2510.06477 (reconstruction: its probe settings were not found); Hewitt and Liang 2019,
    arXiv 1909.03368 (controls and selectivity; there labels are drawn by word, here shuffled among texts).
    """
    require("sklearn.linear_model", extra="probes")
    check_task(task)
    _check(pooling, seeds, {"test_share": test_share, "validation_share": validation_share})
    known = hooked(model, tokenizer)
    options = {"prepend_bos": prepend_bos, "max_length": max_length}
    if (test_texts is None) != (test_labels is None):
        missing = "test_texts" if test_texts is None else "test_labels"
        raise ValueError(f"{missing} is missing; pass test_texts and test_labels together, or neither")
    given = read_labels(read_rows(known, texts, **options), labels, "")
    test = None
    if test_texts is not None:
        test = read_labels(read_rows(known, test_texts, **options), test_labels, "test_")
    data = join(given, test)
    splits = [make_split(data, seed, test_share, validation_share) for seed in range(seeds)]
    vectors = pooled(known, data.rows, [pooling], batch_size=batch_size, progress=progress)[pooling]
    controls = [shuffled(split, i) for i, split in enumerate(splits)] if control else []
    fitted, unfinished = fit_all(vectors, [*splits, *controls], progress=progress)
    if unfinished:
        warnings.warn(
            f"{unfinished} fits of probes stopped before they converged (at most {STEPS} steps each); their "
            "accuracy may be too low, so look at `regularisation` and compare poolings",
            ProbeWarning,
            stacklevel=2,
        )
    variables = _variables(data, splits, fitted[:seeds], fitted[seeds:])
    settings = _settings(known, data, pooling, (test_share, validation_share), unfinished)
    coords = {"seed": np.arange(seeds)}
    return readout(known, variables, task=task, score="accuracy", coords=coords, **settings)


def _check(pooling: Any, seeds: Any, shares: dict[str, Any]) -> None:
    if not isinstance(pooling, str):
        raise ValueError(f"pooling={as_shown(pooling)}: pass one of {', '.join(map(repr, POOLINGS))}")
    check_poolings(pooling)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds={as_shown(seeds)}: pass how many splits to make, such as 5")
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise ValueError(f"{name}={as_shown(share)}: pass a share between 0 and 1, such as 0.2")


def _scores(data: Data, splits: Sequence[Split], answers: Sequence[np.ndarray]) -> np.ndarray:
    """1 where an answer is right, 0 where not, NaN where a seed did not test it: [seed, text, depth]."""
    found = np.full((len(splits), len(data.rows), answers[0].shape[1]), np.nan)
    for scores, split, said in zip(found, splits, answers, strict=True):
        scores[split.tested] = said == data.labels[split.tested, None]
    return found


def _variables(
    data: Data,
    splits: Sequence[Split],
    fitted: Sequence[Sequence[Fitted]],
    controls: Sequence[Sequence[Fitted]],
) -> dict[str, Variable]:
    over = "test texts and seeds" if data.has_test else "texts and splits"
    ratio = 0.0 if data.has_test else float(np.mean([len(s.tested) / len(s.trained) for s in splits]))
    depths = len(fitted[0])

    def share(name: str, label: str, scores: np.ndarray, *, paired: bool) -> dict[str, Variable]:
        attrs = about("share", label, SOURCE, better=None if name.startswith("control") else "higher")
        ends = share_interval(scores, ratio, paired=paired)
        return with_interval(name, *ends, attrs, over=over, sampled=SAMPLED if name == "accuracy" else None)

    def by_seed(label: str, units: str = "share") -> dict[str, str]:
        return about(units, label, SOURCE) | {"group": "repeat"}

    common = [np.bincount(data.labels[split.trained]).argmax() for split in splits]
    guesses = [np.full((len(s.tested), depths), label) for s, label in zip(splits, common, strict=True)]
    right, guessed = (_scores(data, splits, said) for said in ([_answers(each) for each in fitted], guesses))
    found = share("accuracy", "Accuracy of a linear probe", right, paired=False)
    found |= share("advantage", "Accuracy beyond the majority class", right - guessed, paired=True)
    seen = ~np.isnan(right[:, :, 0]).all(0)  # texts that some seed tested
    label = "Share of the seeds that tested this text in which its label was found"
    found["text_accuracy"] = (("text", "depth"), np.nanmean(right[:, seen], 0), by_seed(label))
    tested = (~np.isnan(right[:, seen, 0])).sum(0)
    found["n_tested"] = (("text",), tested, by_seed("Seeds that tested this text", "seed"))
    axes = ("seed", "depth")
    found["seed_accuracy"] = (axes, np.nanmean(right, 1), by_seed("Accuracy of a linear probe, by seed"))
    if controls:
        shuffles = _scores(data, splits, [_answers(each) for each in controls])
        found |= share("control_accuracy", "Accuracy after shuffled labels", shuffles, paired=False)
        found |= share("selectivity", "Accuracy beyond shuffled labels", right - shuffles, paired=True)
        label = "Accuracy after shuffled labels, by seed"
        found["seed_control_accuracy"] = (axes, np.nanmean(shuffles, 1), by_seed(label))
    label = "Share of the most common class to learn from, in tested texts"
    found["majority"] = (("seed",), np.nanmean(guessed[:, :, 0], 1), by_seed(label))
    chosen = np.array([[each.regularisation for each in one] for one in fitted])
    found["regularisation"] = (axes, chosen, by_seed("C chosen by validation", "1"))
    return found


def _answers(fitted: Sequence[Fitted]) -> np.ndarray:
    """[tested text, depth]."""
    return np.stack([each.answers for each in fitted], 1)


def _settings(
    model: Any, data: Data, pooling: str, shares: tuple[float, float], unfinished: int
) -> dict[str, Any]:
    """What made the numbers, as attributes."""
    test = f"{len(data.rows) - data.n_given} given texts" if data.has_test else f"a share of {shares[0]:g}"
    return {
        "pooling": pooling,
        "pooling_meaning": POOLINGS[pooling],
        "texts_with_bos": float(np.mean([has_bos(model, row) for row in data.rows])),
        "texts": len(data.rows),
        "texts_cut": sum(row.truncated for row in data.rows),
        "texts_repeated": len(data.rows) - len(np.unique(data.same)),
        "classes": json.dumps(data.classes),
        "tested": test,
        "validation_share": shares[1],
        "probe": "logistic regression (lbfgs) of standardised features, refitted on all that is not tested",
        "regularisation_grid": json.dumps(GRID),
        "regularisation_rule": f"least validation loss, until {PATIENCE} in a row are worse than the best",
        "solver_tolerance": TOLERANCE,
        "fits_not_converged": unfinished,
        "version_scikit_learn": version("scikit-learn"),
    }
