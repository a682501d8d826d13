"""Residual matrices held in the hand, measured as if they were the only depth of a model."""

from typing import Any

import torch
import xarray as xr
from pure import evaluate

from mcr_lens.metrics import get_metric
from mcr_lens.metrics._registry import get_derived
from mcr_lens.results import to_dataset
from mcr_lens.theorem import NEEDED

SHARED = ("row_energies", "token_norms", "top_rows", "spectrum", "tightest_row", "span_of_top_rows")


def measured(matrices: Any, *, position: int = 0) -> xr.Dataset:
    """What `bounds` reads from matrices [n, T, d] (numpy, torch or lists), one prompt for each."""
    given: dict[str, Any] = {"resid": torch.as_tensor(matrices)}
    for name in SHARED:
        given[name] = evaluate(get_derived()[name], given, position=position)
    metrics = [get_metric(name) for name in NEEDED]
    values = {m.name: evaluate(m, given, position=position).numpy()[:, None] for m in metrics}
    n, length, width = given["resid"].shape
    prompts = {"n_tokens": [length] * n, "text": [""] * n}
    return to_dataset(values, metrics, prompts, {"n_layers": 0, "n_heads": 1, "d_model": width})
