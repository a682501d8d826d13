"""Where does an embedding task peak, where does generation, and how far apart are they?"""

from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import check_seed
from mcr_lens.labelled import Variable, about, with_interval
from mcr_lens.phases import Phases, detect_phases
from mcr_lens.resampling import check_level
from mcr_lens.schema import SCHEMA, ResultSchemaError
from mcr_lens.task_curves import TaskCurve, interval, task_curve

SOURCE = "arXiv 2510.06477: embeddings peak in the middle, generation at full depth (reconstruction)"

FORGET = ("schema", "kind", "task", "score", "samples", "weights", "lens", "training")
"""What a comparison does not take over from the readouts it is made of."""


def task_divergence(
    embedding: xr.Dataset,
    generation: xr.Dataset,
    phases: Any = None,
    *,
    embedding_score: str | None = None,
    generation_score: str | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Two scores of one model by depth, the depths where they are best, and the distance between those.

    Peak = argmax_l score(l), or argmin where lower is better, the first of equals; distance = peak of
    generation − peak of embedding, in blocks. Intervals are percentiles over resampled texts (windows,
    questions, pairs), each task by itself; a peak is a whole depth, so its interval is too. `edge` is how
    much better the embedding score is at its peak than at the last depth, as a share of the latter.

    The score at the depth that is best of many is a little too high on average; so is `edge`.

    Args:
        embedding: what `linear_probe` or `similarity_probe` returns.
        generation: what `logit_lens`, `tuned_lens` or `multiple_choice` returns, of the same model.
        phases: what `detect_phases` returns, or a result of `measure` to find them in.
        embedding_score, generation_score: another score than the main one, such as "accuracy_norm".
        level: stated coverage.

    Returns:
        By depth: `embedding` and `generation` beside `_low` and `_high`, and the coordinate `phase`, "mix",
        "compress", "refine" or "". Numbers beside their intervals: `embedding_peak` and `generation_peak`
        (depths), `distance` (blocks), `edge` (share), and `apart`, the share of the draws in which the
        embedding score peaks earlier. `plot_readouts` draws it.

    Raises:
        TypeError, ResultSchemaError: not readouts.
        ValueError: of different models or depths, an unknown score, phases of another depth.

    Source: arXiv 2510.06477, on embedding tasks and generation by layer (reconstruction: peaks, intervals and
    distance are this library's).
    """
    check_level(level, resamples)
    check_seed(seed)
    one = task_curve(embedding, embedding_score, resamples=resamples, seed=seed)
    two = task_curve(generation, generation_score, resamples=resamples, seed=seed + 1)
    _check_same(embedding, generation)
    n = min(len(one.draws), len(two.draws))
    apart = two.best_drawn()[:n] - one.best_drawn()[:n]
    found = _by_depth("embedding", one, level) | _by_depth("generation", two, level)
    for name, value, draws, units, label in (
        ("embedding_peak", one.best(), one.best_drawn(), "depth", f"Best depth: {one.label}"),
        ("generation_peak", two.best(), two.best_drawn(), "depth", f"Best depth: {two.label}"),
        ("distance", two.best() - one.best(), apart, "block", "Generation peaks so much later"),
        ("edge", _edge(one, one.values), _edge(one, one.draws), "share", "Peak over last depth"),
    ):
        found |= _number(name, value, draws, units, label, level)
    share = float((apart > 0).mean()) if n else np.nan
    label = "Draws in which the embedding score peaks earlier"
    found["apart"] = ((), share, about("share", label, SOURCE, group="comparison"))
    depths = np.arange(len(one.values))
    ds = xr.Dataset(found, coords={"depth": depths, "phase": ("depth", _phases(phases, len(depths)))})
    kept = {k: v for k, v in embedding.attrs.items() if k not in FORGET and generation.attrs.get(k) == v}
    return ds.assign_attrs(
        {"schema": SCHEMA, "kind": "task divergence", "task": f"{one.task} and {two.task}", **kept},
        embedding_task=one.task, generation_task=two.task, embedding_score=one.name,
        generation_score=two.name, level=level, resamples=resamples,
    )  # fmt: skip


def _by_depth(name: str, curve: TaskCurve, level: float) -> dict[str, Variable]:
    better = "lower" if curve.sign < 0 else "higher"
    attrs = about(curve.units, f"{curve.task}: {curve.label}", SOURCE, better)
    low, high = np.array([interval(column, level) for column in curve.draws.T]).T
    return with_interval(name, curve.values, low, high, attrs, over=curve.over, level=level)


def _number(
    name: str, value: Any, draws: np.ndarray, units: str, label: str, level: float
) -> dict[str, Variable]:
    low, high = interval(draws, level)
    if units in ("depth", "block"):  # there are none between two
        low, high = np.floor(low), np.ceil(high)
    attrs = about(units, label, SOURCE, group="comparison")
    return with_interval(name, value, low, high, attrs, over="draws", axes=(), level=level)


def _edge(curve: TaskCurve, values: np.ndarray) -> Any:
    """How much better the best depth is than the last, as a share of the last."""
    best = (curve.sign * values).max(-1) * curve.sign
    last = values[..., -1]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return curve.sign * (best - last) / np.abs(last)


def _check_same(one: xr.Dataset, two: xr.Dataset) -> None:
    if one.sizes["depth"] != two.sizes["depth"]:
        raise ValueError(
            f"the readouts hold {one.sizes['depth']} and {two.sizes['depth']} depths; pass "
            "them as they were made"
        )
    if "lens" in one.attrs and "pooling" in two.attrs:
        raise ValueError(
            "the embedding task comes first and generation second; pass them the other way round"
        )
    for name in ("model", "revision", "n_layers", "dtype", "interventions"):
        a, b = one.attrs.get(name), two.attrs.get(name)
        if a != b:
            raise ValueError(
                f"the readouts differ in {name}: {a!r} and {b!r}; compare two tasks of one model in one state"
            )


def _phases(given: Any, depths: int) -> np.ndarray:
    """The phase of each depth by name, "" where none was found."""
    names = np.full(depths, "", dtype=object)
    if given is None:
        return names
    if isinstance(given, xr.Dataset):
        given = detect_phases(given)
    if not isinstance(given, Phases):
        raise ResultSchemaError(
            f"phases is a {type(given).__name__}; pass what detect_phases or measure returns, or None"
        )
    if given.n_depths != depths:
        raise ValueError(
            f"the phases are of {given.n_depths} depths and the readouts of {depths}; pass "
            "those of this model"
        )
    for name in ("mix", "compress", "refine"):
        names[list(getattr(given, name))] = name
    return names
