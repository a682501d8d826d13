"""When in a training do spike, valley and sinks appear, and do they appear together?"""

import warnings
from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, check_ratio, check_seed, is_number
from mcr_lens.ranks import spearman
from mcr_lens.reading import MASSIVE_RATIO, SINK_LAYER, SINK_THRESHOLD, VALLEY
from mcr_lens.resampling import Interval, bootstrap, check_level
from mcr_lens.schema import SCHEMA, require_axes
from mcr_lens.summaries import normalized_entropy, sink_rate
from mcr_lens.training_steps import require_steps

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 5
"""Steps below which curves are not correlated: any three of them rise together in one order out of six."""

EVENTS: tuple[str, ...] = ("spike", "valley", "sinks")


def emergence_steps(
    ds: xr.Dataset,
    *,
    ratio: float = MASSIVE_RATIO,
    valley: float = VALLEY,
    rate: float = SINK_LAYER,
    threshold: float = SINK_THRESHOLD,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """The training step at which spike, valley and sinks are there to stay, and how their curves go together.

    Strengths, of means over prompts at each step: *spike*, the largest over depths of ‖x₀‖ / median ‖xᵢ‖;
    *valley*, how far the lowest H / ln min(T, d) lies below both of its sides (0 without a valley); *sinks*,
    the largest over layers of the share of heads with a sink score of at least `threshold`. An event emerges
    at the first measured step from which on its strength is never again below `ratio`, `valley`, `rate`: some
    time after the measured step before. Synchrony is Spearman's ρ of two strengths over the steps.

    One training is one seed: intervals over prompts say what other prompts would have shown, not what another
    training would do, nor that curves which all rise could do so by chance.

    Args:
        ds: what `emergence` or `join_steps` returns.
        ratio: a norm ratio above 1 from which on BOS is massive.
        valley: a drop of normalised entropy, 0 to 1.
        rate: share of a layer's heads, 0 to 1.
        threshold: mean attention to BOS from which on a head sinks.
        level, resamples, seed: of the intervals, as `bootstrap`, over prompts.

    Returns:
        By `event` ("spike", "valley", "sinks"): `emerged` (training step, NaN where it did not), `after`
        (the measured step before, NaN where there is none), `first` (the first step that is not below, to
        stay or not), `low` and `high` (NaN where more resamples than
        a tail holds have no such step) and `undefined` (the share of those); `strength` [event, step]. By
        `pair` ("spike and valley", …): `synchrony`, `synchrony_low`, `synchrony_high`, NaN for fewer than
        five steps or a curve that does not move.

    Raises:
        ResultSchemaError: no axis `step`, several conditions, no prompts, or `massive_activation_ratio`,
            `matrix_entropy`, `sink_score` were not measured.
        ValueError: a criterion or level outside its range.

    Source: arXiv 2510.06477, Fig. 2 (all three appear together and stay synchronised; reconstruction:
    criteria and correlation are this library's).
    """
    require_steps(ds, "massive_activation_ratio", "matrix_entropy", "sink_score")
    check_level(level, resamples)
    check_seed(seed)
    least = dict(zip(EVENTS, (ratio, valley, rate), strict=True))
    _check(least, threshold)
    values, steps = _values(ds, threshold), ds.step.values
    options: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}

    def emerged(event: str, held: np.ndarray) -> float:
        return first_to_stay(steps, strength(event, held), least[event])

    def together(pair: tuple[str, str], one: np.ndarray, other: np.ndarray) -> float:
        a, b = strength(pair[0], one), strength(pair[1], other)
        known = np.isfinite(a) & np.isfinite(b)
        return spearman(a[known], b[known]) if known.sum() >= FEWEST else np.nan

    with warnings.catch_warnings():  # a mean of nothing is NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        curves = np.array([strength(event, values[event]) for event in EVENTS])
        found = {e: bootstrap(lambda held, e=e: emerged(e, held), values[e], **options) for e in EVENTS}
        pairs = {
            pair: bootstrap(
                lambda a, b, pair=pair: together(pair, a, b), *(values[e] for e in pair), **options
            )
            for pair in combinations(EVENTS, 2)
        }
    return _dataset(ds, curves, found, pairs, {**least, "threshold": threshold, **options})


def emergence_table(ds: xr.Dataset, *, threshold: float = SINK_THRESHOLD) -> "pd.DataFrame":
    """One line per training step: what its checkpoint shows, in means over prompts.

    Columns `step`; `ratio`, `drop`, `sinks`: the strengths of `emergence_steps`; `ratio at`, the depth of the
    largest ratio; `entropy`, the lowest over depths of H / ln min(T, d), and `entropy at`, its depth; `mean
    sinks`, the sink rate of all layers; `loss`, in nats per token, if it was measured.

    Raises:
        ResultSchemaError: as `emergence_steps`.

    Source: as `emergence_steps`.
    """
    import pandas as pd

    require_steps(ds, "massive_activation_ratio", "matrix_entropy", "sink_score")
    held = _values(ds, threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        columns: dict[str, Any] = {
            "step": ds.step.values,
            "ratio": strength("spike", held["spike"]),
            "ratio at": _place(ds, held["spike"], largest=True),
            "entropy": np.nanmin(np.nanmean(held["valley"], 0), 1),
            "entropy at": _place(ds, held["valley"], largest=False),
            "drop": strength("valley", held["valley"]),
            "sinks": strength("sinks", held["sinks"]),
            "mean sinks": np.nanmean(held["sinks"], (0, 2)),
        }
        if "next_token_loss" in ds:
            columns["loss"] = ds.next_token_loss.astype(float).mean("prompt").values
    return pd.DataFrame(columns)


def in_sentences(found: xr.Dataset) -> list[str]:
    """What `emergence_steps` found, a line for each event and each pair of curves.

    Source: this library.
    """
    words = {"spike": f"norm ratio ≥ {found.attrs['spike']:g}", "valley": f"drop ≥ {found.attrs['valley']:g}",
             "sinks": f"sink rate ≥ {found.attrs['sinks']:g}"}  # fmt: skip
    lines = []
    for event in map(str, found.event.values):
        at = found.sel(event=event)
        first, emerged, after = (float(at[name]) for name in ("first", "emerged", "after"))
        if np.isnan(emerged):
            seen = "never" if np.isnan(first) else f"first at step {first:,.0f}, and not at the end"
        else:
            seen = f"to stay from step {emerged:,.0f} on"
            seen += "" if np.isnan(after) else f" (not yet at {after:,.0f})"
            known = np.isfinite(at.low) and np.isfinite(at.high)
            seen += f", over other prompts {float(at.low):,.0f} to {float(at.high):,.0f}" if known else ""
            seen += f"; first at step {first:,.0f}" if first < emerged else ""
        lines.append(f"{event} ({words[event]}): {seen}")
    for pair in map(str, found.pair.values):
        at = found.sel(pair=pair)
        rho, low, high = (float(at[f"synchrony{end}"]) for end in ("", "_low", "_high"))
        between = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
        lines.append(f"{pair}: {'no correlation' if np.isnan(rho) else f'ρ over steps {rho:.2f}{between}'}")
    return lines


def strength(event: str, values: np.ndarray) -> np.ndarray:
    """How strong an event is at each step, from values [prompt, step, site].

    Source: as `emergence_steps`.
    """
    mean = np.nanmean(values, 0)
    if event != "valley":
        return np.where(np.isnan(mean).all(1), np.nan, np.where(np.isnan(mean), -np.inf, mean).max(1))
    before = np.maximum.accumulate(mean, 1)
    after = np.maximum.accumulate(mean[:, ::-1], 1)[:, ::-1]
    rows, lowest = np.arange(len(mean)), np.where(np.isnan(mean), np.inf, mean).argmin(1)
    return np.minimum(before, after)[rows, lowest] - mean[rows, lowest]


def _place(ds: xr.Dataset, values: np.ndarray, *, largest: bool) -> np.ndarray:
    """The depth of the largest or the lowest mean, by step; NaN where there is none."""
    mean = np.nanmean(values, 0) * (1 if largest else -1)
    at = ds.depth.values[np.where(np.isnan(mean), -np.inf, mean).argmax(1)].astype(float)
    return np.where(np.isnan(mean).all(1), np.nan, at)


def first_to_stay(steps: np.ndarray, curve: np.ndarray, least: float) -> float:
    """The first step from which on a curve is never again below a value; NaN where it ends below.

    Source: this library.

    >>> first_to_stay(np.array([0, 10, 20, 30]), np.array([5.0, 1.0, 7.0, 8.0]), 4.0)
    20.0
    """
    stays = np.logical_and.accumulate((curve >= least)[::-1])[::-1]
    return float(steps[stays.argmax()]) if stays[-1] else np.nan


def steps_to_stay(ds: xr.Dataset, least: Mapping[str, float], threshold: float) -> dict[str, float]:
    """The step from which on each event is there to stay, for events whose variable was measured; or NaN.

    Source: as `emergence_steps`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        held = _values(ds, threshold)
        return {e: first_to_stay(ds.step.values, strength(e, v), least[e]) for e, v in held.items()}


def _values(ds: xr.Dataset, threshold: float) -> dict[str, np.ndarray]:
    """What the strengths are made of, as [prompt, step, site], NaN where it is not finite."""
    found = {}
    if "massive_activation_ratio" in ds:
        require_axes(ds, "depth", of="massive_activation_ratio")
        found["spike"] = ds.massive_activation_ratio.transpose("prompt", "step", "depth")
    if "matrix_entropy" in ds:
        found["valley"] = normalized_entropy(ds).transpose("prompt", "step", "depth")
    if "sink_score" in ds:
        found["sinks"] = sink_rate(ds, threshold).transpose("prompt", "step", "layer")
    held = {event: np.asarray(array.values, float) for event, array in found.items()}
    return {event: np.where(np.isfinite(values), values, np.nan) for event, values in held.items()}


def _check(least: Mapping[str, float], threshold: float) -> None:
    check_ratio(least["spike"])
    for name, value in (("valley", least["valley"]), ("rate", least["sinks"]), ("threshold", threshold)):
        if not is_number(value) or not 0 < value <= 1:
            raise ValueError(f"{name}={as_shown(value)}: pass a number above 0 and at most 1")


def _dataset(
    ds: xr.Dataset,
    curves: np.ndarray,
    found: Mapping[str, Interval],
    pairs: Mapping[tuple[str, str], Interval],
    about: Mapping[str, Any],
) -> xr.Dataset:
    steps = ds.step.values
    before = {int(step): float(earlier) for earlier, step in pairwise(steps)}
    seen = [curve >= about[event] for event, curve in zip(EVENTS, curves, strict=True)]
    columns = {
        "first": ([steps[s.argmax()] if s.any() else np.nan for s in seen],
                  "Training step at which it is there first, to stay or not", "step"),
        "emerged": ([i.value for i in found.values()], "Training step from which on it is there", "step"),
        "after": ([before.get(int(i.value), np.nan) if np.isfinite(i.value) else np.nan
                   for i in found.values()], "Measured step before", "step"),
        "low": ([i.low for i in found.values()], "Lower end of the interval of emerged", "step"),
        "high": ([i.high for i in found.values()], "Upper end of the interval of emerged", "step"),
        "undefined": ([i.undefined for i in found.values()], "Share of resamples without it", "1"),
    }  # fmt: skip
    source = "arXiv 2510.06477, Fig. 2 (reconstruction)"
    made: dict[str, Any] = {
        name: ("event", values, {"long_name": text, "units": units, "source": source})
        for name, (values, text, units) in columns.items()
    }
    made["strength"] = (("event", "step"), curves, {"long_name": "Strength", "units": "1", "source": source})
    for ending, part in (("", "value"), ("_low", "low"), ("_high", "high")):
        text = "Spearman's ρ of two strengths over steps" + (
            f": {part} end of the interval" if ending else ""
        )
        values = [getattr(interval, part) for interval in pairs.values()]
        made[f"synchrony{ending}"] = ("pair", values, {"long_name": text, "units": "1", "source": source})
    coords = {"event": list(EVENTS), "pair": [" and ".join(pair) for pair in pairs], "step": steps}
    attrs = {"schema": SCHEMA, "kind": "emergence steps", "model": ds.attrs.get("model", "model"), **about}
    return xr.Dataset(made, coords, attrs)
