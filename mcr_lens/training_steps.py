"""Results of one training at several steps, axis `step`: how are they joined, and what must they share?"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.results import SAME, vocabulary_of, with_vocabulary
from mcr_lens.schema import ResultSchemaError, check_sizes, refuse_conditions, require, validate


def join_steps(results: Mapping[int, xr.Dataset], *, model: str | None = None) -> xr.Dataset:
    """Results of the same prompts at several training steps as one, on a new first axis `step`.

    Args:
        results: training step → what `measure`, `load` or a sweep over revisions made.
        model: what the training is called; by default the model's name where it is the same at every step.

    Returns:
        The variables with `step` first, ascending; the coordinate `checkpoint` [step] is the name of each
        model, with its revision. Attributes are those of the first, `revision` "several".

    Raises:
        ResultSchemaError: no results, several conditions, or results that differ in layers, heads, width,
            dtype, position, interventions, variables or prompts.
        TypeError: not a map, or a model that is no name.
        ValueError: a step that is not a whole number from 0 on.

    Source: this library.

    >>> mcr.join_steps({1000: ds, 2000: ds}).step.values.tolist()
    [1000, 2000]
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"results came as {type(results).__name__}; pass a map from training step to result")
    if model is not None and not isinstance(model, str):
        raise TypeError(f"model={as_shown(model)}: pass the name that the checkpoints go by")
    if not results:
        raise ResultSchemaError("no results to join; pass at least one training step")
    steps = sorted(check_step(step) for step in results)
    parts = [validate(results[step]) for step in steps]
    for step, ds in zip(steps, parts, strict=True):
        check_agreement(steps[0], parts[0], step, ds)
    vocabulary = {i: text for ds in parts for i, text in vocabulary_of(ds).items()}
    bare = [ds.drop_dims("token_id") if "token_id" in ds.dims else ds for ds in parts]
    check_sizes(bare)
    axis = xr.DataArray(
        steps, dims="step", name="step", attrs={"long_name": "Training step", "units": "step"}
    )
    joined = xr.concat(
        bare, dim=axis, join="exact", combine_attrs="override", data_vars="all",
        coords="minimal", compat="override",
    )  # fmt: skip
    names = [str(ds.attrs.get("model", "model")) for ds in parts]
    revisions = [str(ds.attrs.get("revision", "unknown")) for ds in parts]
    called = [n if r == "unknown" else f"{n} @ {r}" for n, r in zip(names, revisions, strict=True)]
    joined = with_vocabulary(joined, vocabulary).assign_coords(checkpoint=("step", called))
    title = model or (names[0] if len(set(names)) == 1 else f"{len(steps)} checkpoints")
    made = {str(step): str(ds.attrs.get("created", "unknown")) for step, ds in zip(steps, parts, strict=True)}
    return joined.assign_attrs(model=title, revision="several", measured=json.dumps(made))


def check_step(step: Any) -> int:
    """A training step as a whole number.

    Raises:
        ValueError: it is none.

    Source: this library.
    """
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
        raise ValueError(f"training step {as_shown(step)}: pass whole numbers from 0 on")
    return int(step)


def check_agreement(one: int, first: xr.Dataset, other: int, ds: xr.Dataset) -> None:
    """Refuse in words two steps that are not of one training, measured alike.

    Raises:
        ResultSchemaError: they differ, or hold several conditions.

    Source: this library.
    """
    refuse_conditions(ds)
    for name in (name for name in SAME if name not in ("model", "revision")):
        if ds.attrs.get(name) != first.attrs.get(name):
            raise ResultSchemaError(
                f"step {other} differs from step {one} in {name} ({ds.attrs.get(name)} and "
                f"{first.attrs.get(name)}); checkpoints must be of one model, measured alike"
            )
    if set(ds.data_vars) != set(first.data_vars):
        odd = sorted(map(str, set(ds.data_vars) ^ set(first.data_vars)))
        raise ResultSchemaError(f"step {other} and step {one} do not hold the same variables ({odd[0]})")
    if not np.array_equal(ds.prompt_hash, first.prompt_hash):
        raise ResultSchemaError(
            f"step {other} and step {one} were not measured on the same tokens; pass the same prompts, and "
            "checkpoints with one tokenizer"
        )


def require_steps(ds: xr.Dataset, *names: str) -> None:
    """Refuse in words what is not one result over training steps, with prompts and these variables.

    Raises:
        ResultSchemaError: it is not.

    Source: this library.
    """
    require(ds, *names)
    if "step" not in ds.dims or not ds.sizes["step"]:
        raise ResultSchemaError("the result has no axis `step`; pass what mcr_lens.emergence returns")
    if "condition" in ds.dims:
        refuse_conditions(ds.isel(step=0))
    if not ds.sizes["prompt"]:
        raise ResultSchemaError("the result holds no prompts; measure some first")
