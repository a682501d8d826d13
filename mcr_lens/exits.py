"""From which depth on is a task's score nearly that of the whole model?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, check_seed, is_number
from mcr_lens.labelled import Variable, about, with_interval
from mcr_lens.resampling import check_level
from mcr_lens.schema import SCHEMA
from mcr_lens.task_curves import TaskCurve, interval, task_curve

SOURCE = "this library; question: arXiv 2510.06477 (embeddings need no full depth, generation does)"


def early_exit(
    *readouts: xr.Dataset,
    target: float = 0.95,
    scores: Any = None,
    chance: bool = False,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """For each task, the earliest depth whose score reaches a share of the score at the last depth.

    share(l) = score(l)/score(L), or score(L)/score(l) where lower is better: 1 at the last depth, above it
    where a depth is better. The exit is the first depth with share ≥ target. With `chance`, what guessing
    scores is taken off first: (score(l) − chance)/(score(L) − chance). Intervals are percentiles over
    resampled texts (windows, questions, pairs); draws whose final score is not beyond guessing (or not
    positive) have no share, and where they could hold a whole tail, the bounds are NaN.

    A probe is trained at each depth and a lens is not: exits of different kinds of readout answer different
    questions.

    Args:
        readouts: what `logit_lens`, `tuned_lens`, `multiple_choice`, `linear_probe` or `similarity_probe`
            returns, of models of the same depth.
        target: share of the final score, between 0 and 1.
        scores: the name of a score for each readout, in order; None for the main ones.
        chance: judge by what is beyond guessing, for readouts that say what guessing scores.

    Returns:
        By task and depth: `share` beside `_low` and `_high`. By task: `exit_depth` beside its interval, and
        `stays`, whether all later depths reach the target too.

    Raises:
        TypeError, ResultSchemaError: not readouts.
        ValueError: none, of different depth, a target that is no share, an unknown score, a readout without
            a chance level, or a final score that is no better than guessing.

    Source: this library; question: arXiv 2510.06477 (embedding tasks peak in the middle, generation needs
    full depth).
    """
    check_level(level, resamples)
    check_seed(seed)
    if not readouts:
        raise ValueError("early_exit needs a readout; pass what linear_probe or logit_lens returns")
    if not is_number(target) or not 0 < target <= 1:
        raise ValueError(
            f"target={as_shown(target)}: pass a share of the final score between 0 and 1, such as 0.95"
        )
    scores = [scores] if isinstance(scores, str) else scores
    if scores is not None and not isinstance(scores, Sequence):
        raise TypeError(
            f"scores={as_shown(scores)}: name a score for each readout, or pass None for the main ones"
        )
    names = [None] * len(readouts) if scores is None else list(scores)
    if len(names) != len(readouts):
        raise ValueError(f"scores names {len(names)} scores for {len(readouts)} readouts; name one for each")
    curves = [
        task_curve(ds, name, resamples=resamples, seed=seed + i)
        for i, (ds, name) in enumerate(zip(readouts, names, strict=True))
    ]
    depths = {len(curve.values) for curve in curves}
    if len(depths) > 1:
        listed = ", ".join(str(n - 1) for n in sorted(depths))
        raise ValueError(f"the readouts are of models with {listed} layers; compare those of one depth")
    for curve in curves:
        if curve.values[-1] <= 0:
            raise ValueError(
                f"{curve.task!r} has {curve.name} = {curve.values[-1]:.3g} at the last depth, and there is "
                "no share of what is not positive; leave it out"
            )
    floors = [_floor(ds, curve) if chance else 0.0 for ds, curve in zip(readouts, curves, strict=True)]
    found = [_exit(curve, floor, target, level) for curve, floor in zip(curves, floors, strict=True)]
    return _dataset(readouts, curves, found, target, level, chance=chance)


def _exit(curve: TaskCurve, floor: float, target: float, level: float) -> dict[str, Any]:
    """Share by depth and exit of one task, with intervals."""
    share, draws = _share(curve, curve.values, floor), _share(curve, curve.draws, floor)
    ends = np.array([interval(column, level) for column in draws.T])
    exits = np.where(np.isnan(draws[:, -1]), np.nan, (draws >= target).argmax(1))
    low, high = interval(exits, level)
    first = int((share >= target).argmax())
    return {
        "share": share,
        "share_low": ends[:, 0],
        "share_high": ends[:, 1],
        "exit_depth": first,
        "exit_depth_low": np.floor(low),
        "exit_depth_high": np.ceil(high),
        "stays": bool((share[first:] >= target).all()),
    }


def _share(curve: TaskCurve, values: np.ndarray, floor: float) -> np.ndarray:
    """Share of the last depth's score beyond the floor; NaN where there is nothing beyond it."""
    last = values[..., -1:]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found = last / values if curve.sign < 0 else (values - floor) / (last - floor)
    found[..., -1] = 1.0
    return np.where(last > floor, found, np.nan)


def _floor(ds: xr.Dataset, curve: TaskCurve) -> float:
    """What guessing scores, where the readout says so."""
    named = next((name for name in ("chance", "majority") if name in ds), None)
    if named is None or curve.sign < 0:
        raise ValueError(
            f"{curve.task!r} does not say what guessing scores in {curve.name!r}; leave out chance=True"
        )
    floor = float(ds[named].mean())
    if curve.values[-1] <= floor:
        raise ValueError(
            f"{curve.task!r} scores {curve.values[-1]:.3g} at the last depth and guessing {floor:.3g}, so "
            "there is no share to reach; leave out chance=True"
        )
    return floor


def _dataset(
    readouts: Any,
    curves: list[TaskCurve],
    found: list[dict[str, Any]],
    target: float,
    level: float,
    *,
    chance: bool,
) -> xr.Dataset:
    final = "final score beyond guessing" if chance else "final score"
    stacked = {name: np.array([one[name] for one in found]) for name in found[0]}
    variables: dict[str, Variable] = {}
    for name, axes, units, label in (
        ("share", ("task", "depth"), "share", f"Share of the {final}"),
        ("exit_depth", ("task",), "depth", f"Earliest depth with {target:.0%} of the {final}"),
    ):
        ends = (stacked[name], stacked[f"{name}_low"], stacked[f"{name}_high"])
        attrs = about(units, label, SOURCE, group="comparison")
        variables |= with_interval(name, *ends, attrs, over="draws", axes=axes, level=level)
    label = "Do all later depths reach it too?"
    variables["stays"] = (("task",), stacked["stays"], about("1", label, SOURCE, group="comparison"))
    coords = {
        "task": _different([curve.task for curve in curves]),
        "score": ("task", [curve.name for curve in curves]),
        "depth": np.arange(len(curves[0].values)),
    }
    models = list(dict.fromkeys(str(ds.attrs.get("model")) for ds in readouts))
    attrs = {"schema": SCHEMA, "kind": "early exit", "model": ", ".join(models), "target": target}
    attrs |= {"n_layers": len(curves[0].values) - 1, "level": level, "chance": int(bool(chance))}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def _different(names: list[str]) -> list[str]:
    """Names of tasks, numbered where one comes twice."""
    return [n if names.count(n) == 1 else f"{n} ({names[:i].count(n) + 1})" for i, n in enumerate(names)]
