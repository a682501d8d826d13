"""What remains of prompts that are too many to keep: count, mean, M2, smallest and largest, cell by cell?

M2 = Σ (x − mean)² over prompts. Moments of parts join into the moments of everything (Chan, Golub & LeVeque
1979), so a million prompts need the memory of one part. NaN (a prompt with a single token) is counted out,
cell by cell.
"""

import os
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.results import SAME, load_any
from mcr_lens.schema import SCHEMA, ResultSchemaError, validate

MOMENTS = ("count", "mean", "m2", "min", "max")
"""The axis `moment`."""

TALLIES = ("n_prompts", "n_tokens", "n_truncated", "n_single_token")
"""Attributes that are counted over prompts."""

NO_MEAN = ("token", "token id", "dimension")
"""Units of what names a place: position 3 and position 5 have no mean."""

Statistic = Literal["count", "mean", "sd", "standard_error", "min", "max"]
STATISTICS = ("count", "mean", "sd", "standard_error", "min", "max")


def moments(ds: xr.Dataset) -> xr.Dataset:
    """Moments of every variable over the axis `prompt`, on a new first axis `moment`; float64.

    A result of several conditions keeps its axis `condition`. Variables that name a place (units token, token
    id, dimension) have no mean: the attribute `left_out` names them. `read_moments` takes means and standard
    errors out of it, `merge_moments` joins parts.

    Raises:
        ResultSchemaError: not a result, or nothing in it has a mean.

    Source: this library; M2 as in Chan, Golub & LeVeque 1979.

    >>> mcr.moments(ds).bos_norm.dims
    ('moment', 'depth')
    """
    validate(ds)
    own = {str(name): v for name, v in ds.data_vars.items() if "prompt" in v.dims}
    kept = {name: v for name, v in own.items() if _has_mean(v)}
    if not kept:
        raise ResultSchemaError(
            f"nothing in the result has a mean over prompts (it holds {', '.join(own) or 'no variables'}); "
            "measure a metric that is no position"
        )
    variables = {}
    for name, array in kept.items():
        axis = array.dims.index("prompt")
        dims = ("moment", *(d for d in array.dims if d != "prompt"))
        variables[name] = (dims, _of(np.asarray(array.values, np.float64), axis), dict(array.attrs))
    used = {d for dims, _, _ in variables.values() for d in dims}
    coords = {n: c.variable for n, c in ds.coords.items() if set(c.dims) <= used and "prompt" not in c.dims}
    lengths = ds.n_tokens.values if "n_tokens" in ds.coords else np.zeros(0, int)
    cut = ds.truncated.values if "truncated" in ds.coords else np.zeros(0, bool)
    tallies = (ds.sizes["prompt"], int(lengths.sum()), int(cut.sum()), int((lengths == 1).sum()))
    about = {
        "left_out": ", ".join(n for n in own if n not in kept),
        **dict(zip(TALLIES, tallies, strict=True)),
    }
    made = xr.Dataset(variables, attrs={**ds.attrs, **about}).assign_coords(coords)
    return made.assign_coords(moment=("moment", np.array(MOMENTS, dtype=object)))


def _has_mean(array: xr.DataArray) -> bool:
    return array.dtype.kind in "fiub" and array.attrs.get("units") not in NO_MEAN


def _of(values: np.ndarray, axis: int) -> np.ndarray:
    """The moments of an array along an axis, [moment ...]."""
    known = ~np.isnan(values)
    count = known.sum(axis, dtype=np.float64)
    none = count == 0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = np.where(known, values, 0.0).sum(axis) / count
        # Twice: the first mean is rounded, and what is left over is tiny.
        mean = mean + np.where(known, values - np.expand_dims(mean, axis), 0.0).sum(axis) / count
        m2 = np.where(known, (values - np.expand_dims(mean, axis)) ** 2, 0.0).sum(axis)
    least = np.where(known, values, np.inf).min(axis, initial=np.inf)
    most = np.where(known, values, -np.inf).max(axis, initial=-np.inf)
    nan = [np.where(none, np.nan, v) for v in (mean, m2, least, most)]
    return np.stack([count, *nan])


def merge_moments(*parts: xr.Dataset) -> xr.Dataset:
    """Moments of several parts as those of all their prompts, joined from left to right.

    The same parts in the same order give the same bits; against all prompts at once it is exact to rounding.

        δ = mean_b − mean_a;  mean = mean_a + δ n_b / n;  M2 = M2_a + M2_b + δ² n_a n_b / n

    Raises:
        ResultSchemaError: nothing to merge, not moments, other variables or axes, or another model, state or
            intervention.

    Source: Chan, Golub & LeVeque 1979.

    >>> halves = [mcr.moments(ds.isel(prompt=part)) for part in (slice(2), slice(2, None))]
    >>> both = mcr.merge_moments(*halves)
    >>> int(mcr.read_moments(both, "count").bos_norm.min())
    4
    """
    return merge_stream(parts)


def merge_stream(parts: Iterable[xr.Dataset]) -> xr.Dataset:
    """As `merge_moments`, holding two parts at a time.

    Raises:
        ResultSchemaError: as `merge_moments`.

    Source: this library.
    """
    whole: xr.Dataset | None = None
    for part in parts:
        check_moments(part)
        if whole is None:
            whole = part.copy(deep=True)
            continue
        _check_alike(whole, part)
        for name in whole.data_vars:
            whole[name].values[...] = _joined(whole[name].values, part[name].values)
        sums = {t: int(whole.attrs.get(t, 0)) + int(part.attrs.get(t, 0)) for t in TALLIES}
        whole.attrs.update(sums)
    if whole is None:
        raise ResultSchemaError("merge_moments needs at least one part")
    return whole


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    count = a[0] + b[0]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        delta = b[1] - a[1]
        mean = a[1] + delta * (b[0] / count)
        m2 = a[2] + b[2] + delta**2 * (a[0] * b[0] / count)
    both = np.stack([count, mean, m2, np.fmin(a[3], b[3]), np.fmax(a[4], b[4])])
    return np.where(b[0] == 0, a, np.where(a[0] == 0, b, both))


def _check_alike(one: xr.Dataset, other: xr.Dataset) -> None:
    different = [k for k in SAME if one.attrs.get(k) != other.attrs.get(k)]
    if different:
        k = different[0]
        raise ResultSchemaError(
            f"moments differ in {k}: {one.attrs.get(k)!r} and {other.attrs.get(k)!r}; only moments of one "
            "model in one state can be merged"
        )
    if set(one.data_vars) != set(other.data_vars):
        odd = sorted(map(str, set(one.data_vars) ^ set(other.data_vars)))
        raise ResultSchemaError(
            f"moments do not hold the same variables ({', '.join(odd[:3])}); select the common ones first"
        )
    for name in one.data_vars:
        if one[name].dims != other[name].dims or one[name].shape != other[name].shape:
            raise ResultSchemaError(
                f"moments of {name} have other axes ({dict(one[name].sizes)} and {dict(other[name].sizes)}); "
                "measure them with the same options"
            )
    for axis in one.dims:
        if axis in one.coords and not np.array_equal(one[axis].values, other[axis].values):
            raise ResultSchemaError(f"moments have other labels on the axis {axis}; merge those of one sweep")


def read_moments(ds: xr.Dataset, statistic: Statistic = "mean") -> xr.Dataset:
    """One statistic over prompts, as variables without the axis `moment`.

    sd = √(M2 / (n − 1)), standard_error = sd / √n, with n the prompts counted in that cell; both are NaN
    below two.

    Args:
        ds: what `moments`, `merge_moments` or a sweep that keeps moments returns.
        statistic: count, mean, sd, standard_error, min or max.

    Raises:
        ResultSchemaError: not moments.
        ValueError: another statistic.

    Source: standard.

    >>> mean = mcr.read_moments(mcr.moments(ds), "mean").bos_norm
    >>> bool(abs(mean - ds.bos_norm.mean("prompt")).max() < 1e-4)
    True
    """
    check_moments(ds)
    if not isinstance(statistic, str) or statistic not in STATISTICS:
        raise ValueError(f"statistic={as_shown(statistic)}: pass one of {', '.join(STATISTICS)}")
    read = {str(name): _read(array, statistic) for name, array in ds.data_vars.items()}
    return xr.Dataset(read, attrs={**ds.attrs, "statistic": statistic})


def _read(array: xr.DataArray, statistic: str) -> xr.DataArray:
    at = {name: array.isel(moment=i, drop=True) for i, name in enumerate(MOMENTS)}
    if statistic in at:
        found = at[statistic]
    else:
        found = (at["m2"] / (at["count"] - 1).where(at["count"] > 1)) ** 0.5
        if statistic == "standard_error":
            found = found / at["count"] ** 0.5
    units = {"units": "prompt"} if statistic == "count" else {}
    label = f"{array.attrs.get('long_name', array.name)}: {statistic.replace('_', ' ')} over prompts"
    return found.assign_attrs({**array.attrs, **units, "long_name": label})


def load_moments(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read moments that a sweep wrote, wholly into memory.

    Raises:
        FileNotFoundError: no such file.
        TypeError: not a path.
        ResultSchemaError: a file of another kind, or a damaged one.

    Source: this library.
    """
    return check_moments(load_any(path))


def check_moments(ds: Any) -> xr.Dataset:
    """The Dataset, if it holds moments.

    Raises:
        ResultSchemaError: it does not, or a newer version of mcr_lens wrote it.

    Source: this library.
    """
    if not isinstance(ds, xr.Dataset):
        raise ResultSchemaError(f"expected a Dataset from mcr_lens.moments, got {type(ds).__name__}")
    if "schema" not in ds.attrs or "moment" not in ds.dims:
        raise ResultSchemaError(
            "this Dataset holds no moments (no `schema` attribute or no `moment` axis); pass what "
            "mcr_lens.moments returns"
        )
    schema = ds.attrs["schema"]
    if isinstance(schema, bool) or not isinstance(schema, int | np.integer):
        raise ResultSchemaError(f"the attribute schema is {as_shown(schema)} and no whole number")
    if schema > SCHEMA:
        raise ResultSchemaError(
            f"these moments have schema {ds.attrs['schema']} and this mcr_lens reads up to {SCHEMA}; upgrade "
            "mcr-lens"
        )
    if tuple(map(str, ds.moment.values)) != MOMENTS:
        raise ResultSchemaError(f"the axis moment must be {', '.join(MOMENTS)}; do not select along it")
    return ds
