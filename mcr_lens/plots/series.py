"""Which results are drawn, under which names, and how does a variable become a line with its band?"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.conditions import condition, condition_names
from mcr_lens.plots.panels import Legend, Line
from mcr_lens.plots.theme import plain, series_color, series_dash
from mcr_lens.schema import require_single, validate
from mcr_lens.statistics import confidence_interval

Results = xr.Dataset | Mapping[str, xr.Dataset] | Sequence[xr.Dataset]
"""One result, one with several conditions, or several results: by name, or in a row."""

RANKED = ("top", "rank")
"""Axes of which a line takes the first entry, the largest value."""

BAND = "95 % interval of the mean"


@dataclass(frozen=True)
class Series:
    """A result under one condition, with the name, colour and dash that its lines have in every panel."""

    name: str
    ds: xr.Dataset
    color: str
    dash: str


def read_series(given: Results) -> tuple[Series, ...]:
    """One series per result or condition, in order.

    Raises:
        ResultSchemaError: not a result, no prompts, or several conditions inside one of several results.
        ValueError: no results, or names that are not text.
    """
    results = _named(given)
    for ds in results.values():
        require_single(ds)
    return tuple(
        Series(name, ds, series_color(i), series_dash(i)) for i, (name, ds) in enumerate(results.items())
    )


def _named(given: Results) -> dict[str, xr.Dataset]:
    if isinstance(given, Mapping) and not isinstance(given, xr.Dataset):
        wrong = [name for name in given if not isinstance(name, str) or not name]
        if wrong or not given:
            what = f"the name {as_shown(wrong[0])} is not a text" if wrong else "an empty map"
            raise ValueError(f'results: got {what}; pass a map such as {{"step 1000": ds, "step 2000": ds}}')
        return dict(given)
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given:
            raise ValueError("results: got an empty list; pass at least one result")
        names = [_own_name(validate(ds)) for ds in given]
        return {
            n if names.count(n) == 1 else f"{n} ({i})": ds
            for i, (n, ds) in enumerate(zip(names, given, strict=True))
        }
    ds = validate(given)  # type: ignore[arg-type]
    if "condition" in ds.dims:
        return {name: condition(ds, name) for name in condition_names(ds)}
    return {_own_name(ds): ds}


def _own_name(ds: xr.Dataset) -> str:
    """The model's name, with the revision where one was asked for."""
    name, revision = str(ds.attrs.get("model", "model")), str(ds.attrs.get("revision", "unknown"))
    return name if revision in ("unknown", "main", "") else f"{name} @ {revision}"


def heading(series: Sequence[Series]) -> tuple[str, str]:
    """Title and subtitle: whose numbers, over how many prompts."""
    models = list(dict.fromkeys(str(s.ds.attrs.get("model", "model")) for s in series))
    sizes = sorted({s.ds.sizes["prompt"] for s in series})
    many = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    title = models[0] if len(models) == 1 else f"{len(models)} models"
    return title, f"{many} prompt{'' if many == '1' else 's'}"


def legend_of(series: Sequence[Series], name: str) -> Legend:
    """The legend; `name` is what stands at the measured position."""
    several = tuple((s.name, s.color, s.dash) for s in series) if len(series) > 1 else ()
    return Legend(several, bare=f"without the row of {name}", band=plain(BAND))


def line_of(array: xr.DataArray, series: Series, *, color: str | None = None, bare: bool = False) -> Line:
    """Mean over prompts of one variable, with its 95 % interval; heads are averaged, ranked axes cut.

    Raises:
        ValueError: an axis that a profile cannot draw.
    """
    axis = "depth" if "depth" in array.dims else "layer"
    for extra in [str(d) for d in array.dims if d not in ("prompt", axis, "head")]:
        if extra not in RANKED:
            raise ValueError(
                f"{array.name!r} has the axis {as_shown(extra)}, which a profile cannot draw; select one "
                f"entry first, for example ds.isel({extra}=0)"
            )
        array = array.isel({extra: 0})
    mean, low, high = mean_and_interval(array)
    return Line(
        series.name, mean, low, high, by_block=axis == "layer", n_layers=int(series.ds.attrs["n_layers"]),
        color=color or series.color, dash=series.dash, bare=bare,
        at=array[axis].values if axis in array.coords else None,
    )  # fmt: skip


def mean_and_interval(array: xr.DataArray) -> tuple[Any, Any, Any]:
    """Mean over prompts (and heads) and the ends of its 95 % interval; NaN where there is none.

    Infinite values count as missing: they are drawn as a gap.
    """
    numbers = array.astype(float)
    numbers = numbers.where(np.isfinite(numbers))
    with warnings.catch_warnings():  # NaN everywhere gives NaN, which is drawn as a gap
        warnings.simplefilter("ignore", RuntimeWarning)
        if "head" in numbers.dims:
            numbers = numbers.mean("head")
        found = confidence_interval(numbers)
    return found["mean"].values, found["low"].values, found["high"].values
