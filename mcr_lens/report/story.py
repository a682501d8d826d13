"""What does a page tell: which result, which ablations, which verdicts, which prompt from close by?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens.conditions import condition, condition_names
from mcr_lens.schema import ResultSchemaError, require_single, validate

if TYPE_CHECKING:
    from mcr_lens.diagnosis import Diagnosis

BASELINE = "clean"
"""The condition of a comparison that is the model as it is."""


@dataclass(frozen=True)
class Story:
    """What stands on a page; None is what was not done."""

    clean: xr.Dataset
    conditions: xr.Dataset | None = None
    baseline: str = BASELINE
    verdicts: Mapping[str, Any] | None = None
    close_up: xr.Dataset | None = None


def read_story(
    ds: xr.Dataset,
    diagnosis: "Diagnosis | Mapping[str, Any] | None" = None,
    conditions: xr.Dataset | None = None,
    close_up: xr.Dataset | None = None,
) -> Story:
    """Put together what belongs together.

    Raises:
        ResultSchemaError: not a result, no prompts, or parts of different models or prompts.
    """
    validate(ds)
    if diagnosis is not None and not isinstance(diagnosis, Mapping) and not hasattr(diagnosis, "findings"):
        raise TypeError(
            f"diagnosis came as {type(diagnosis).__name__}; pass what mcr_lens.diagnose returns, or its "
            "to_json()"
        )
    if isinstance(diagnosis, Mapping) and not {"summary", "claims"} <= set(diagnosis):
        raise ValueError("diagnosis lacks its summary or claims; pass what Diagnosis.to_json() returns")
    if conditions is None and "condition" in ds.dims:
        conditions = ds
    baseline = BASELINE
    if conditions is None and diagnosis is not None and not isinstance(diagnosis, Mapping):
        conditions = diagnosis.findings.experiments
    if conditions is not None:
        names = condition_names(conditions)
        baseline = BASELINE if BASELINE in names else names[0]
    clean = condition(ds, baseline) if "condition" in ds.dims else ds
    require_single(clean)
    if conditions is not None and conditions is not ds:
        _same_model(clean, conditions, "the conditions are")
        if not np.array_equal(conditions.prompt_hash, clean.prompt_hash):
            raise ResultSchemaError("the conditions were measured on other prompts than the result")
    if close_up is not None:
        if "token_norm" not in getattr(close_up, "variables", ()):
            raise ResultSchemaError("close_up: no token_norm in it; pass what mcr_lens.close_up returns")
        _same_model(clean, close_up, "the close-up is")
    verdicts = diagnosis if diagnosis is None or isinstance(diagnosis, Mapping) else diagnosis.to_json()
    return Story(clean, conditions, baseline, verdicts, close_up)


def _same_model(ds: xr.Dataset, other: xr.Dataset, what: str) -> None:
    for key in ("model", "n_layers", "d_model"):
        if ds.attrs.get(key) != other.attrs.get(key):
            raise ResultSchemaError(
                f"{what} of another model than the result: {key} is {other.attrs.get(key)!r} and "
                f"{ds.attrs.get(key)!r}"
            )
