"""How is a readout laid out: which variables, with which attributes, on which axes?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.batches import largest_batch
from mcr_lens.labelled import Variable, about, with_interval
from mcr_lens.provenance import describe
from mcr_lens.schema import SCHEMA, with_axes

__all__ = ["Variable", "about", "readout", "with_interval"]


def check_task(task: Any) -> None:
    """Refuse what no task can be called.

    Raises:
        TypeError: not a text.

    Source: this library.
    """
    if not isinstance(task, str):
        raise TypeError(f"task={as_shown(task)}: pass what the texts are about, as text")


def readout(
    model: Any,
    variables: Mapping[str, Variable],
    *,
    task: str,
    score: str,
    coords: Mapping[str, Any] | None = None,
    interventions: Sequence[Any] = (),
    **attrs: Any,
) -> xr.Dataset:
    """A readout of this model as a Dataset: depths 0..L, provenance, task, and the name of its main score.

    Source: this library.
    """
    ds = xr.Dataset({name: (tuple(axes), values, dict(a)) for name, (axes, values, a) in variables.items()})
    ds = with_axes(ds.assign_coords(depth=np.arange(model.cfg.n_layers + 1), **dict(coords or {})))
    made = describe(model, interventions=interventions) | {"batch_size": largest_batch(model)}
    return ds.assign_attrs(
        {"schema": SCHEMA, "kind": "readout", **made, "task": task, "score": score, **attrs}
    )
