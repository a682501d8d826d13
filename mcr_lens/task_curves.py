"""How does a task's score go with depth, and how would it go had other texts of the same kind been drawn?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.ranks import spearman
from mcr_lens.schema import ResultSchemaError

CELLS = 2_000_000
"""Numbers per temporary array."""


@dataclass(frozen=True)
class TaskCurve:
    """A score by depth, its draws over resampled units (windows, questions, pairs), and how to read it.

    `sign` is 1 where higher is better, −1 where lower is; `draws` [resample, depth] has no rows where the
    result does not hold what the score is a mean of.
    """

    task: str
    name: str
    label: str
    units: str
    values: np.ndarray  # [depth]
    draws: np.ndarray  # [resample, depth]
    sign: int
    over: str

    def best(self) -> int:
        """The depth of the best score, the first of equals."""
        return int(np.argmax(self.sign * self.values))

    def best_drawn(self) -> np.ndarray:
        """The same for every draw: [resample]."""
        return np.argmax(self.sign * self.draws, 1)


def task_curve(
    ds: xr.Dataset, score: str | None = None, *, resamples: int = 2000, seed: int = 0
) -> TaskCurve:
    """The main score of a readout, or the one named, by depth, with its draws.

    Units are drawn with replacement and the score computed anew: Σ w y / Σ w over units with weights w
    (tokens, tests), Spearman's ρ over pairs for a similarity.

    Raises:
        TypeError: not a Dataset.
        ResultSchemaError: not a readout of this library.
        ValueError: a score that it does not hold, or one for which no way is better.

    Source: Efron 1979 (bootstrap); this library.
    """
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"expected a readout such as linear_probe returns, got {type(ds).__name__}")
    if ds.attrs.get("kind") != "readout" or "depth" not in ds.dims:
        raise ResultSchemaError(
            "this Dataset is no readout by depth; pass what logit_lens, tuned_lens, multiple_choice, "
            "linear_probe or similarity_probe returns"
        )
    name = str(score if score is not None else ds.attrs["score"])
    scores = [str(v) for v in ds.data_vars if "better" in ds[v].attrs and ds[v].dims == ("depth",)]
    if name not in scores:
        raise ValueError(f"{name[:100]!r} is no score of this readout; it has {', '.join(scores)}")
    about = ds[name].attrs
    values = ds[name].values.astype(float)
    if not values.size:
        raise ResultSchemaError("the readout has no depths left; pass it as it was made")
    if not np.isfinite(values).all():
        depth = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"{as_shown(name)} is {values[depth]} at depth {depth}; a curve needs a number at each"
        )
    lost = [about[k] for k in ("samples", "weights", "against") if k in about and about[k] not in ds]
    if lost or ("samples" in about and ds[about["samples"]].ndim < 2):
        raise ResultSchemaError(
            f"the readout has lost {(lost or [about['samples']])[0]!r} by text, which "
            f"{as_shown(name)} is made of; pass "
            "it as it was made"
        )
    draws = _draws(ds, about, resamples, seed) if "samples" in about else np.empty((0, len(values)))
    return TaskCurve(
        str(ds.attrs.get("task", name)), name, str(about["long_name"]), str(about["units"]), values, draws,
        -1 if about["better"] == "lower" else 1, str(about.get("interval_over", "units")).split(" and ")[0],
    )  # fmt: skip


def interval(draws: np.ndarray, level: float) -> tuple[float, float]:
    """Percentiles of draws; NaN where there are none, or so many undefined that they could hold a whole tail.

    Source: Efron 1979.
    """
    known = draws[~np.isnan(draws)]
    if not len(known) or len(draws) - len(known) > (1 - level) / 2 * len(draws):
        return np.nan, np.nan
    # There is nothing between two infinities.
    method = "linear" if np.isfinite(known).all() else "inverted_cdf"
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2], method=method)
    return float(low), float(high)


@np.errstate(over="ignore", invalid="ignore")  # an infinite score has no interval
def _draws(ds: xr.Dataset, about: dict[Any, Any], resamples: int, seed: int) -> np.ndarray:
    samples = ds[about["samples"]]
    table = samples.transpose(..., "depth").values.astype(float)
    n = len(table)
    rng = np.random.default_rng(seed)
    if n < 2:
        return np.empty((0, table.shape[1]))
    if about.get("statistic") == "spearman":
        given = ds[about["against"]].values
        rows = rng.integers(n, size=(resamples, n))
        return np.array([[spearman(given[r], column[r]) for column in table.T] for r in rows])
    weights = ds[about["weights"]].values.astype(float) if "weights" in about else np.ones(n)
    sums = np.where(weights[:, None] > 0, weights[:, None] * np.nan_to_num(table), 0.0)
    found = []
    step = max(1, CELLS // n)
    for start in range(0, resamples, step):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start)).astype(float)
        found.append((counts @ sums) / (counts @ weights)[:, None])
    return np.concatenate(found)
