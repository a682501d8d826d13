"""Is a Dataset a result of this library, and does it hold what its reader asks for?"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown

SCHEMA = 1
"""Version of the layout of a result; files say which one they have."""

KINDS = ("readout", "task divergence", "early exit", "complexity response", "emergence steps")
"""What else than results of `measure` is saved and read: attribute `kind`."""

GROUPS = ("spectral", "norms", "attention", "sinks", "theory", "loss")
"""Groups of the library's own variables, whose axes are known."""

AXES = ("prompt", "depth", "layer", "head", "top", "rank", "condition", "step", "seed", "draw")


class ResultSchemaError(ValueError):
    """A file or Dataset is not a result of mcr_lens."""


def validate(ds: xr.Dataset) -> xr.Dataset:
    """Return the Dataset if it is a result of this library.

    Raises:
        ResultSchemaError: it is not, or a newer version of mcr_lens wrote it.
    """
    if not isinstance(ds, xr.Dataset):
        raise ResultSchemaError(f"expected a Dataset from mcr_lens.measure, got {type(ds).__name__}")
    if "kind" in ds.attrs and "prompt" not in ds.dims:
        raise ResultSchemaError(
            f"this Dataset is a {ds.attrs['kind']}, which has no `prompt` axis; pass what mcr_lens.measure "
            "returns"
        )
    if "schema" in ds.attrs and "prompt" in ds.dims:
        _whole(ds)
    if "schema" not in ds.attrs or "prompt" not in ds.dims:
        raise ResultSchemaError(
            "this Dataset does not come from mcr_lens (no `schema` attribute or no `prompt` axis); pass "
            "what mcr_lens.measure or mcr_lens.load returns"
        )
    return _readable(ds)


def validate_any(ds: xr.Dataset) -> xr.Dataset:
    """A result, or one of `KINDS`, which says in the attribute `kind` what it is."""
    own_kind = isinstance(ds, xr.Dataset) and ds.attrs.get("kind") in KINDS and "schema" in ds.attrs
    return _readable(ds) if own_kind else validate(ds)


def _whole(ds: xr.Dataset) -> None:
    """Refuse in words a result that has lost what every result has, or whose axes are called otherwise."""
    lost = [name for name in ("n_tokens", "prompt_hash", "text") if name not in ds.variables]
    lost += [name for name in ("n_layers", "n_heads", "d_model", "model") if name not in ds.attrs]
    if lost and "created" in ds.attrs:  # it was measured, and had them once
        raise ResultSchemaError(
            f"the result has lost {lost[0]!r}, which every result of mcr_lens has; keep its coordinates and "
            "attributes, or load it anew"
        )
    empty = [axis for axis in AXES if axis != "prompt" and ds.sizes.get(axis) == 0]
    if empty:
        raise ResultSchemaError(f"the result holds no {empty[0]}; pass one or more")
    for name, array in ds.data_vars.items():
        if array.attrs.get("group") in GROUPS:
            odd = [axis for axis in array.dims if axis not in AXES]
            if odd:
                raise ResultSchemaError(
                    f"{str(name)!r} has an axis {str(odd[0])!r} that no result has; rename it back"
                )


def _readable(ds: xr.Dataset) -> xr.Dataset:
    schema = ds.attrs["schema"]
    if isinstance(schema, bool) or not isinstance(schema, int | np.integer) or schema < 0:
        raise ResultSchemaError(
            f"the attribute schema is {as_shown(schema)} and no whole number; this is no result of "
            "mcr_lens, or its attributes were changed"
        )
    if schema > SCHEMA:
        raise ResultSchemaError(
            f"this result has schema {schema} and this mcr_lens reads up to {SCHEMA}; upgrade mcr-lens"
        )
    return ds


def with_axes(ds: xr.Dataset) -> xr.Dataset:
    """The Dataset, each variable of which says in the attribute `axes` which ones it was made with.

    So a reader can tell a variable that has lost an axis from one that never had it.

    Source: this library.
    """
    for name in ds.data_vars:
        variable = ds.variables[name]  # `ds[name]` would gather its coordinates, every time
        variable.attrs["axes"] = " ".join(map(str, variable.dims))
    return ds


def require(ds: xr.Dataset, *names: str, picked: Sequence[str] = ()) -> None:
    """Refuse in words when a result lacks a variable, or the variable an axis that it was measured with.

    Args:
        ds: what `measure`, `load` or `compare` returns.
        names: variables it must hold.
        picked: axes of which one place may have been picked, so that the axis is gone.

    Raises:
        ResultSchemaError: not a result, a variable that was not measured, or that has lost an axis.
    """
    validate(ds)
    require_variables(ds, *names)
    for name in names:
        made_with = str(ds[name].attrs.get("axes", "")).split()
        require_axes(ds, *(axis for axis in made_with if axis not in picked), of=name)


def require_variables(ds: xr.Dataset, *names: str) -> None:
    """Refuse in words when a Dataset lacks a variable.

    Raises:
        ResultSchemaError: which was not measured.

    Source: this library.
    """
    missing = [name for name in names if not isinstance(name, Hashable) or name not in ds]
    if missing:
        raise ResultSchemaError(
            f"the result has no {', '.join(map(_called, missing))}; measure again with metrics that include "
            f"{as_shown(missing[0])}"
        )


def _called(name: Any) -> str:
    return name[:100] if isinstance(name, str) else as_shown(name)


def require_axes(ds: xr.Dataset, *axes: str, of: str, kind: str = "result") -> None:
    """Refuse in words a variable, `of` a result or a close-up, that has lost an axis or calls it otherwise.

    Raises:
        ResultSchemaError: which axis, and which the variable has.

    Source: this library.
    """
    missing = [axis for axis in axes if axis not in ds[of].dims]
    if missing:
        held = ", ".join(map(str, ds[of].dims)) or "none"
        raise ResultSchemaError(
            f"{of!r} has no axis {missing[0]!r}, its axes are {held}; pass the {kind} as "
            f"mcr_lens.{'close_up' if kind == 'close-up' else 'measure'} returns it, and select or rename "
            "afterwards"
        )


def require_coords(ds: xr.Dataset, *names: str, of: str = "result") -> None:
    """Refuse in words what has lost a coordinate that it was made with.

    Raises:
        ResultSchemaError: which one.

    Source: this library.
    """
    lost = [name for name in names if name not in ds.coords]
    if lost:
        made = "mcr_lens.close_up" if of == "close-up" else "mcr_lens"
        raise ResultSchemaError(f"the {of} has lost {lost[0]!r}; pass it as {made} returns it")


def require_alike(ds: xr.Dataset, *axes: str, of: str) -> None:
    """Refuse in words axes that do not hold the same places in the same rising order.

    Raises:
        ResultSchemaError: how many each holds.

    Source: this library.
    """
    places = [ds[axis].values for axis in axes]  # counted from 0 where the axis has no coordinate
    rising = places[0].ndim == 1 and len(places[0]) and (np.diff(places[0]) > 0).all()
    if not rising or not all(np.array_equal(places[0], other) for other in places[1:]):
        held = ", ".join(f"{axis} {ds.sizes.get(axis, 'none')}" for axis in axes)
        raise ResultSchemaError(
            f"the axes of the {of} do not hold the same places in order ({held}); cut all of them alike"
        )


def require_closeup(closeup: Any, variable: str, *axes: str) -> None:
    """Refuse in words what is no close-up, or one that has lost this variable, its axes or its places.

    Raises:
        ResultSchemaError: what is missing.

    Source: this library.
    """
    if not isinstance(closeup, xr.Dataset) or "position" not in closeup.dims:
        what = "this Dataset" if isinstance(closeup, xr.Dataset) else type(closeup).__name__
        raise ResultSchemaError(f"expected a close-up, got {what}; pass what mcr_lens.close_up returns")
    if variable not in closeup:
        hint = "heads=[(layer, head), ...]" if variable == "pattern" else "a prompt"
        raise ResultSchemaError(f"the close-up has no {variable}; call mcr_lens.close_up with {hint}")
    require_axes(closeup, *axes, of=variable, kind="close-up")
    require_coords(closeup, "condition", "token", of="close-up")
    if "shown" in axes:
        require_coords(closeup, "layer", "head", of="close-up")
        require_alike(closeup, "position", "query", "key", of="close-up")
    if not closeup[variable].size:
        raise ResultSchemaError(f"the close-up holds no {variable}; pass it as mcr_lens.close_up returns it")


def require_single(ds: xr.Dataset, *names: str, empty: bool = False, picked: Sequence[str] = ()) -> None:
    """Refuse in words what is not one result, under one condition, with prompts and these variables.

    Args:
        ds: what `measure`, `load` or `condition` returns.
        names: variables it must hold.
        empty: whether no prompts will do.
        picked: axes of which one place may have been picked.

    Raises:
        ResultSchemaError: not a result, several conditions, seeds or draws, a variable that was not measured,
            no prompts.

    Source: this library.
    """
    require(ds, *names, picked=picked)
    refuse_conditions(ds)
    repeated = [axis for axis in ("seed", "draw") if axis in ds.dims]
    if repeated:
        raise ResultSchemaError(
            f"the result has an axis {repeated[0]!r} (of {ds.sizes[repeated[0]]}); pick one with "
            f"ds.isel({repeated[0]}=0)"
        )
    if not empty and not ds.sizes["prompt"]:
        raise ResultSchemaError("the result holds no prompts; measure some first")


def refuse_conditions(given: xr.Dataset | xr.DataArray) -> None:
    """Refuse in words what would be averaged over conditions, or over training steps.

    Raises:
        ResultSchemaError: it has an axis `condition` or `step`.

    Source: this library.
    """
    if "condition" in given.dims:
        names = [str(name) for name in given["condition"].values]
        raise ResultSchemaError(
            f"the result holds several conditions ({', '.join(names)}); pick one with "
            f"mcr_lens.condition(ds, {names[0] if names else ''!r})"
        )
    if "step" in given.dims:
        raise ResultSchemaError(
            f"the result holds {given.sizes['step']} training steps; pick one with ds.isel(step=-1) or "
            "ds.sel(step=...)"
        )


def check_sizes(results: Sequence[xr.Dataset]) -> None:
    """Refuse in words what does not fit together along another axis than that of prompts.

    Raises:
        ResultSchemaError: an axis that differs, or that one of them lacks.

    Source: this library.
    """
    first, *others = results
    for ds in others:
        for axis in set(first.sizes) | set(ds.sizes):
            if axis != "prompt" and first.sizes.get(axis) != ds.sizes.get(axis):
                raise ResultSchemaError(
                    f"results differ along {str(axis)!r} ({first.sizes.get(axis)} and {ds.sizes.get(axis)}); "
                    "select the same of each first"
                )
            both = axis != "prompt" and axis in first.indexes and axis in ds.indexes
            if both and not first.indexes[axis].equals(ds.indexes[axis]):
                raise ResultSchemaError(f"results differ along {str(axis)!r}; select the same of each first")
