"""What does a linear classifier make of each depth, split by split? Representations in, right answers out."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from mcr_lens._optional import require
from mcr_lens.readouts.probe_data import Split
from mcr_lens.workers import run_apart

GRID = tuple(10.0**power for power in range(-5, 2))
"""Values of C that are tried, the strongest regularisation first."""

PATIENCE = 2
"""So many values of C in a row that are worse than the best one end the path: large ones take longest."""

TOLERANCE, STEPS = 1e-4, 2000
"""Where the solver stops: gradient of the mean loss, and iterations."""

ROUNDING = 1e-5
"""A dimension that varies less than this share of the whole is constant up to rounding, as all of BOS is in a
causal model. Rounding depends on which texts ran together, so it must not be blown up to unit variance."""


@dataclass(frozen=True)
class Fitted:
    """What a probe answered on its tested texts, and its C."""

    answers: np.ndarray
    regularisation: float


def fit_all(
    vectors: Float[np.ndarray, "text depth d_model"], splits: Sequence[Split], *, progress: bool
) -> tuple[list[list[Fitted]], int]:
    """A probe for each split and depth, and how many fits stopped before they converged.

    On all cores, one core each: a linear algebra library with several threads is many times slower here.
    """
    logistic = require("sklearn.linear_model", extra="probes").LogisticRegression
    stopped = require("sklearn.exceptions", extra="probes").ConvergenceWarning
    depths = range(vectors.shape[1])
    jobs = [(split, depth) for split in splits for depth in depths]
    with (
        warnings.catch_warnings(record=True) as caught,  # of all threads: the filters are the process's
        tqdm(total=len(jobs), unit="probe", disable=not progress, delay=1, leave=False) as bar,
    ):
        warnings.simplefilter("always")

        def work(job: tuple[Split, int]) -> Fitted:
            found = _fit(logistic, vectors[:, job[1]], job[0])
            bar.update()
            return found

        found = run_apart(work, jobs, list).result()
    for other in (each for each in caught if not issubclass(each.category, stopped)):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    unfinished = sum(issubclass(each.category, stopped) for each in caught)
    return [found[i : i + len(depths)] for i in range(0, len(found), len(depths))], unfinished


def _fit(logistic: Any, vectors: np.ndarray, split: Split) -> Fitted:
    """Choose C, then learn once more from all that is not tested."""
    best = _choose(logistic, vectors, split)
    learned, tested = _standardised(vectors, split.trained, split.tested)
    model = logistic(C=best, tol=TOLERANCE, max_iter=STEPS).fit(learned, split.labels[split.trained])
    return Fitted(model.predict(tested), best)


def _choose(logistic: Any, vectors: np.ndarray, split: Split) -> float:
    """The C of the grid with the least mean loss in validation; each fit begins where the last one ended."""
    learned, validated = _standardised(vectors, split.fit, split.validation)
    labels, wanted = split.labels[split.fit], split.labels[split.validation]
    model = logistic(tol=TOLERANCE, max_iter=STEPS, warm_start=True)
    losses: list[float] = []
    for value in GRID:
        model.set_params(C=value).fit(learned, labels)
        places = np.searchsorted(model.classes_, wanted)
        losses.append(-float(model.predict_log_proba(validated)[np.arange(len(wanted)), places].mean()))
        if len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
            break
    return GRID[int(np.argmin(losses))]


def _standardised(
    vectors: np.ndarray, learned: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both parts in units of the first: mean 0 and deviation 1 there; what is constant there becomes 0."""
    first, second = (vectors[part].astype(np.float64) for part in (learned, other))
    mean, spread = first.mean(0), first.std(0)
    flat = spread <= ROUNDING * np.sqrt((first**2).mean())
    scale = np.where(flat, np.inf, spread)
    return (first - mean) / scale, (second - mean) / scale
