"""Several conditions in one result, axis `condition`: how are they joined, taken apart and compared?"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.results import SAME, vocabulary_of, with_vocabulary
from mcr_lens.schema import ResultSchemaError, refuse_conditions, require_coords, require_variables, validate


def join_conditions(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Results of the same prompts under several conditions, stacked on a new first axis `condition`.

    The attribute `interventions` becomes a map from condition to interventions, as JSON.

    Raises:
        ResultSchemaError: no results, or results of other prompts, models or metrics, or ones that hold
            several conditions already.

    Source: this library.
    """
    if not results:
        raise ResultSchemaError("no results to join; pass at least one condition")
    parts = [validate(ds) for ds in results.values()]
    first, names = parts[0], list(results)
    for name, ds in zip(names, parts, strict=True):
        refuse_conditions(ds)
        other = [k for k in SAME if k != "interventions" and ds.attrs.get(k) != first.attrs.get(k)]
        if other:
            raise ResultSchemaError(
                f"condition {as_shown(name)} differs from {names[0]!r} in {other[0]}; they must "
                "be of one model"
            )
        if _axes(ds) != _axes(first) or set(ds.data_vars) != set(first.data_vars):
            raise ResultSchemaError(
                f"condition {as_shown(name)} has other variables or axes than {names[0]!r}"
            )
        if not np.array_equal(ds.prompt_hash, first.prompt_hash):
            raise ResultSchemaError(
                f"condition {as_shown(name)} was measured on other prompts than {names[0]!r}"
            )
    vocabulary = {i: text for ds in parts for i, text in vocabulary_of(ds).items()}
    bare = [ds.drop_dims("token_id") if "token_id" in ds.dims else ds for ds in parts]
    axis = xr.DataArray(names, dims="condition", name="condition")
    joined = xr.concat(
        bare, dim=axis, join="exact", combine_attrs="override", data_vars="all",
        coords="minimal", compat="override",
    )  # fmt: skip
    made = {name: json.loads(ds.attrs["interventions"]) for name, ds in results.items()}
    return with_vocabulary(joined.assign_attrs(interventions=json.dumps(made)), vocabulary)


def _axes(ds: xr.Dataset) -> dict[Any, int]:
    """Sizes of all axes but the vocabulary, which goes by what was found."""
    return {axis: size for axis, size in ds.sizes.items() if axis != "token_id"}


def condition(ds: xr.Dataset, name: str) -> xr.Dataset:
    """One condition of a result as a result of its own.

    Raises:
        ResultSchemaError: not a result of `compare`.
        ValueError: a condition it does not hold.

    Source: this library.
    """
    known = condition_names(ds)
    if str(name) not in known:
        raise ValueError(f"condition {as_shown(name)} is not in the result; it holds {', '.join(known)}")
    name = str(name)
    made = interventions_of(ds)[name]
    one = ds.sel(condition=name).drop_vars([c for c in ds.coords if "condition" in ds[c].dims])
    if "token_id" in one.dims:  # the tokens of the other conditions are not in it
        ids = [one[v].values for v in one.data_vars if one[v].attrs.get("units") == "token id"]
        held = np.unique(np.concatenate([i.ravel() for i in ids])) if ids else []
        one = one.sel(token_id=np.isin(one.token_id, held))
    return one.assign_attrs(interventions=json.dumps(made), condition=name)


def condition_names(ds: xr.Dataset) -> list[str]:
    """The conditions of a result of `compare`, in order.

    Raises:
        ResultSchemaError: not a result, or one without an axis `condition`.

    Source: this library.
    """
    validate(ds)
    if "condition" not in ds.dims:
        raise ResultSchemaError("the result has no axis `condition`; pass what mcr_lens.compare returns")
    require_coords(ds, "condition")
    return [str(name) for name in ds.condition.values]


def interventions_of(ds: xr.Dataset) -> dict[str, Any]:
    """What was done in each condition, as JSON values; a single result is the condition "".

    Raises:
        ResultSchemaError: not a result.

    Source: this library.
    """
    made = json.loads(validate(ds).attrs.get("interventions", "[]"))
    return made if isinstance(made, dict) else {"": made}


def change(ds: xr.Dataset, variable: str, name: str, *, baseline: str = "clean") -> xr.DataArray:
    """What a condition changes, value − value under `baseline`, prompt by prompt.

    Raises:
        ResultSchemaError: not a result of `compare`, or a variable it does not hold.
        ValueError: a condition it does not hold.

    Source: this library.
    """
    require_variables(validate(ds), variable)
    after, before = condition(ds, name)[variable], condition(ds, baseline)[variable]
    label = f"{before.attrs.get('long_name', variable)}: {name} − {baseline}"
    return (after - before).assign_attrs({**before.attrs, "long_name": label})
