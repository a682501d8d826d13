"""A result written by hand: what `measure` would return, without a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens import get_metric, list_metrics
from mcr_lens.results import to_dataset

LAYERS, HEADS, WIDTH = 3, 2, 16
SIZES = {"depth": LAYERS + 1, "layer": LAYERS, "head": HEADS, "top": 3, "rank": 8}


def result(
    values: Mapping[str, Any] | None = None,
    *,
    n_tokens: Sequence[int] = (20, 12),
    seed: int = 0,
    **attrs: Any,
) -> xr.Dataset:
    """A Dataset with these variables (random ones for every registered metric if none are given)."""
    g = np.random.default_rng(seed)
    metrics = list_metrics() if values is None else [get_metric(name) for name in values]
    arrays = {}
    for m in metrics:
        shape = (len(n_tokens), *(SIZES[axis] for axis in m.axes[1:]))
        given = g.random(shape) if values is None else np.asarray(values[m.name], float)
        arrays[m.name] = np.broadcast_to(given, shape).copy()
    n = len(n_tokens)
    prompts = {
        "n_tokens": list(n_tokens),
        "prompt_hash": [f"{seed}-{i}" for i in range(n)],
        "text": [f"prompt {i} of {seed}, ünïcode" for i in range(n)],
        "position_token": ["<bos>"] * n,
        "has_bos": [True] * n,
        "bos_prepended": [True] * n,
        "truncated": [False] * n,
        "padding": [0] * n,
    }
    provenance = {
        "model": "hand-made", "revision": "main", "dtype": "float32", "processing": "raw", "n_layers": LAYERS,
        "n_heads": HEADS, "d_model": WIDTH, "position": 0, "interventions": "[]", "created": "today",
    }  # fmt: skip
    return to_dataset(arrays, metrics, prompts, provenance | attrs)
