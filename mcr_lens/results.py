"""The door between running models and reading results: a plain `xarray.Dataset`.

Axes: `prompt`; `depth` 0..L for the residual stream between blocks (0 enters the first block, L leaves
the last one, before the final norm); `layer` 0..L−1 for what a block does; `head`. Block l reads depth l
and writes depth l + 1. Every variable carries units, source and the names of its axes, the attributes
carry provenance.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._checks import first_line, path_of
from mcr_lens._files import replacing
from mcr_lens._netcdf import netcdf_bytes, read_netcdf
from mcr_lens.schema import (
    SCHEMA,
    ResultSchemaError,
    check_sizes,
    refuse_conditions,
    require,
    require_variables,
    validate,
    validate_any,
    with_axes,
)

if TYPE_CHECKING:
    import pandas as pd

    from mcr_lens.metrics import Metric


SAME = (
    "schema", "model", "revision", "dtype", "processing", "n_layers", "n_heads", "d_model",
    "position", "interventions",
)  # fmt: skip
"""Attributes that two results must share to be one measurement."""


def to_dataset(
    values: Mapping[str, np.ndarray],
    metrics: "Sequence[Metric]",
    prompts: Mapping[str, Sequence[Any]],
    attrs: Mapping[str, Any],
    token_ids: Mapping[str, np.ndarray] | None = None,
    vocabulary: Mapping[int, str] | None = None,
) -> xr.Dataset:
    """Label arrays with the axes that their metrics declare.

    A metric that holds positions of tokens comes with a variable `<name>_id` that holds the vocabulary ids
    of those tokens (−1: not known); the coordinate `token_text` spells them.
    """
    variables = {
        m.name: (
            m.axes,
            values[m.name],
            {"units": m.units, "long_name": m.label, "source": m.source, "group": m.group},
        )
        for m in metrics
    }
    for m in metrics:
        if m.name in (token_ids or {}):
            about = {"units": "token id", "long_name": f"{m.label}: token id", "source": m.source}
            variables[f"{m.name}_id"] = (m.axes, (token_ids or {})[m.name], {**about, "group": m.group})
    used = {axis for dims, *_ in variables.values() for axis in dims} | {"prompt"}
    axes = {"prompt": len(prompts["n_tokens"]), "depth": attrs["n_layers"] + 1}
    axes |= {"layer": attrs["n_layers"], "head": attrs["n_heads"]}
    coords: dict[str, Any] = {a: np.arange(n) for a, n in axes.items() if a in used}
    coords |= {name: ("prompt", np.asarray(column)) for name, column in prompts.items()}
    coords |= _spelled(vocabulary or {})
    return with_axes(xr.Dataset(variables, coords, {"schema": SCHEMA, **attrs}))


def with_vocabulary(ds: xr.Dataset, vocabulary: Mapping[int, str]) -> xr.Dataset:
    """The Dataset with the spelling of the token ids it holds, on an axis of its own (none for no ids)."""
    return ds.assign_coords(_spelled(vocabulary))


def _spelled(vocabulary: Mapping[int, str]) -> dict[str, Any]:
    ids = sorted(vocabulary)
    texts = np.array([vocabulary[i] for i in ids], dtype=object)
    return {"token_id": np.array(ids, dtype=np.int64), "token_text": ("token_id", texts)} if ids else {}


def vocabulary_of(ds: xr.Dataset) -> dict[int, str]:
    """The spelling of the token ids that a result holds."""
    if "token_text" not in ds.coords:
        return {}
    ids, texts = np.atleast_1d(ds.token_id.values), np.atleast_1d(ds.token_text.values)
    return dict(zip(ids.tolist(), map(str, texts), strict=True))


def interventions_text(ds: xr.Dataset) -> str:
    """What was done to the model, as JSON: that of one condition where `ds.sel(condition=...)` picked it.

    Source: this library.
    """
    made = str(ds.attrs.get("interventions", "[]"))
    if "condition" not in ds.coords or "condition" in ds.dims:
        return made
    every, name = json.loads(made), str(ds.condition.item())
    return json.dumps(every[name]) if isinstance(every, dict) and name in every else made


def save(ds: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a result or readout as netCDF, all of it or nothing: a temporary file takes the place at the end.

    Raises:
        ResultSchemaError: not a result, or one that holds what netCDF cannot.
        TypeError: not a path.
        OSError: the folder does not exist or cannot be written, or the path is a folder.
    """
    validate_any(ds)
    target = path_of(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a folder; create it first")
    with replacing(target) as part:
        try:
            part.write_bytes(netcdf_bytes(bare(ds)))
        except (TypeError, ValueError) as error:  # what is in it, not where it goes
            raise ResultSchemaError(
                f"the result holds what netCDF cannot ({first_line(error, 300)}); take it out, or turn it "
                "into numbers or text"
            ) from None
    return target


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a result that `save` wrote, wholly into memory.

    Raises:
        FileNotFoundError: no such file.
        TypeError: not a path.
        ResultSchemaError: a file of another kind, or a damaged one.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     mcr.load(mcr.save(ds, f"{folder}/result.nc")).identical(ds)
    True
    """
    return validate_any(load_any(path))


def load_any(path: str | os.PathLike[str]) -> xr.Dataset:
    """A Dataset of a netCDF file, wholly in memory, whatever it is of.

    Raises:
        FileNotFoundError: no such file.
        TypeError: not a path.
        ResultSchemaError: not netCDF, or damaged.

    Source: this library.
    """
    source = path_of(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file")
    try:
        return bare(read_netcdf(source))
    except Exception as error:  # in a damaged file, HDF5 and xarray trip over anything
        raise ResultSchemaError(
            f"{source} cannot be read as netCDF ({first_line(error, 300)}); it is damaged or of another kind"
        ) from None


def bare(ds: xr.Dataset) -> xr.Dataset:
    """The Dataset without memory of its file: texts of another length would be cut to those of the old one.

    Source: this library.
    """
    return ds.drop_encoding()


def merge(*results: xr.Dataset, repeated: bool = False) -> xr.Dataset:
    """Join results of the same model along `prompt`, exactly: split and merged equals measured at once.

    Prompts are numbered anew. An empty result changes nothing.

    Args:
        results: what `measure` or `load` returns.
        repeated: whether a prompt may be in two results, and counts each time.

    Raises:
        ResultSchemaError: nothing to merge, several conditions, other variables, or another model, state or
            intervention.
        ValueError: a prompt that is in two results, unless `repeated`.

    >>> mcr.merge(ds.isel(prompt=[0]), ds.isel(prompt=[1, 2])).sizes["prompt"]
    3
    """
    if not results:
        raise ResultSchemaError("merge needs at least one result")
    parts = [validate(ds) for ds in results if validate(ds).sizes["prompt"]] or [results[0]]
    first = parts[0]
    seen: set[str] = set()
    for number, ds in enumerate(parts):
        refuse_conditions(ds)
        one, other = _state(first), _state(ds)
        different = [k for k in SAME if one[k] != other[k]]
        if different:
            k = different[0]
            raise ResultSchemaError(
                f"results differ in {k}: {one[k]!r} and {other[k]!r}; only results of "
                "one model in one state can be merged"
            )
        if set(ds.data_vars) != set(first.data_vars):
            odd = sorted(map(str, set(ds.data_vars) ^ set(first.data_vars)))
            raise ResultSchemaError(
                f"results do not hold the same variables ({', '.join(odd[:3])}); select the common ones "
                "first, for example ds[['bos_norm']]"
            )
        lost = sorted(map(str, (set(ds.coords) ^ set(first.coords)) - {"token_id", "token_text"}))
        if lost:
            raise ResultSchemaError(
                f"some of the results have {lost[0]!r} and others have not; take it out with "
                f"drop_vars({lost[0]!r}), or keep it in all"
            )
        require(ds, "prompt_hash")
        hashes = {h for h in ds.prompt_hash.values.tolist() if h}
        if seen & hashes and not repeated:
            where = ds.prompt_hash.values.tolist().index(sorted(seen & hashes)[0])
            raise ValueError(
                f"a prompt would be counted twice: {str(ds.text.values[where])!r} of result {number} is "
                "in an earlier one too; drop it from one of them, or pass repeated=True"
            )
        seen |= hashes
    vocabulary = {i: text for ds in parts for i, text in vocabulary_of(ds).items()}
    bare = [ds.drop_dims("token_id") if "token_id" in ds.dims else ds for ds in parts]
    check_sizes(bare)
    joined = xr.concat(
        bare, dim="prompt", join="exact", combine_attrs="override", data_vars="all",
        coords="different", compat="equals",
    )  # fmt: skip
    return with_vocabulary(joined.assign_coords(prompt=np.arange(joined.sizes["prompt"])), vocabulary)


def _state(ds: xr.Dataset) -> dict[str, Any]:
    """The attributes that make it one measurement; of one condition, its own interventions."""
    return {k: ds.attrs.get(k) for k in SAME} | {"interventions": interventions_text(ds)}


def tidy(ds: xr.Dataset, *names: str) -> "pd.DataFrame":
    """A long pandas frame: one row per number, with columns variable, prompt, depth, layer, head, value.

    A result of several conditions has a column `condition` too. Axes that a variable does not have are left
    empty. Without names, every variable.

    Raises:
        ResultSchemaError: not a result, or a variable it does not hold.

    >>> mcr.tidy(ds, "bos_norm").columns.tolist()
    ['variable', 'prompt', 'depth', 'value', 'units']
    """
    import pandas as pd

    require_variables(validate(ds), *names)
    frames = []
    for name in names or tuple(ds.data_vars):
        array = ds[name].reset_coords(drop=True).rename("value")
        frame = array.to_dataframe().reset_index()
        frame.insert(0, "variable", str(name))
        frame["units"] = ds[name].attrs.get("units", "")
        frames.append(frame)
    long = pd.concat(frames, ignore_index=True)
    axes = [a for a in ("condition", "prompt", "depth", "layer", "head") if a in long]
    others = [c for c in long if c not in ("variable", "value", "units", *axes)]
    for axis in axes + others:
        if ds[axis].dtype.kind in "iu":  # not the names of conditions
            long[axis] = long[axis].astype("Int64")
    return long.loc[:, ["variable", *axes, *others, "value", "units"]]
