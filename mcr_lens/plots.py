"""What does a result look like, layer by layer?

Here it is decided what is drawn; `figures` draws it with plotly.
"""

import difflib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from mcr_lens.figures import Line, Panel, draw
from mcr_lens.reading import SINK_THRESHOLD, subject
from mcr_lens.results import require_single
from mcr_lens.summaries import layer_sink_identity, mlp_write_share, normalized_entropy, sink_rate

if TYPE_CHECKING:
    import plotly.graph_objects as go

BAND = (0.1, 0.9)
"""The band holds this part of the prompts: from the 10 % to the 90 % quantile."""

RANKED = ("top", "rank")
"""Axes of which a profile draws the first entry, the largest value."""

WIDE = 50.0
"""A positive quantity whose largest value is so many times its smallest gets a logarithmic axis."""

DERIVED: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
    "normalized_entropy": normalized_entropy,
    "normalized_entropy_without_bos": lambda ds: normalized_entropy(
        ds, variable="matrix_entropy_without_bos"
    ),
    "sink_rate": sink_rate,
    "layer_sink_identity": layer_sink_identity,
    "mlp_write_share": mlp_write_share,
}
"""Names that a profile takes besides the variables of the result: computed from them when drawing."""


def plot_profile(
    ds: xr.Dataset, variables: str | Sequence[str] | None = None, *, relative: bool = False
) -> "go.Figure":
    """Draw quantities against depth, one panel each: mean over prompts, with a band of 10-90 % of them.

    Block l reads depth l and writes depth l + 1, so its quantities stand at l + 0.5. Heads are averaged.

    Args:
        ds: what `measure` or `load` returns.
        variables: names of variables with a depth or layer axis, or of the readings
            "normalized_entropy", "normalized_entropy_without_bos", "sink_rate", "layer_sink_identity",
            "mlp_write_share"; by default BOS norm ratio, normalised entropy and sink rate at 0.3.
        relative: depth divided by the number of layers, to compare models of different depth.

    Raises:
        ResultSchemaError: not a result, several conditions, or no prompts.
        ValueError: an unknown name (the nearest is suggested), or nothing to draw.
        ImportError: plotly is not installed.

    Source: arXiv 2510.06477, Fig. 1.
    """
    require_single(ds)
    panels = _default_panels(ds) if variables is None else _named_panels(ds, variables)
    many = ds.sizes["prompt"]
    return draw(
        panels,
        title=str(ds.attrs.get("model", "model")),
        subtitle=f"{many} prompt{'s' if many > 1 else ''}",
        without=f"without the row of {subject(ds)}",
        n_layers=int(ds.attrs["n_layers"]),
        relative=relative,
    )


def _default_panels(ds: xr.Dataset) -> list[Panel]:
    panels = []
    name = subject(ds)
    if "massive_activation_ratio" in ds:
        title = f"Norm of {name} / median norm of the others"
        line = _line(ds.massive_activation_ratio)
        panels.append(Panel(title, "norm ratio (log)", (line,), log=True, least=(0.8, 12.0)))
    lines = [
        _line(normalized_entropy(ds, variable=entropy), dashed=entropy.endswith("without_bos"))
        for entropy in ("matrix_entropy", "matrix_entropy_without_bos")
        if entropy in ds
    ]
    if lines:
        title = "Normalised matrix entropy"
        panels.append(Panel(title, "H / ln min(T, d)", tuple(lines), least=(0.0, 1.0)))
    if "sink_score" in ds:
        title = f"Sink rate: attention to {name} ≥\N{NO-BREAK SPACE}{SINK_THRESHOLD:g}"
        line = _line(sink_rate(ds, SINK_THRESHOLD))
        panels.append(Panel(title, "share of heads", (line,), least=(0.0, 1.0)))
    if not panels:
        raise ValueError(
            "the result has none of massive_activation_ratio, matrix_entropy and sink_score, which the "
            "profile draws; measure one of them or name the variables to draw"
        )
    return panels


def _named_panels(ds: xr.Dataset, variables: str | Sequence[str]) -> list[Panel]:
    names = [variables] if isinstance(variables, str) else list(variables)
    if not names:
        raise ValueError("variables is empty; name at least one, or leave it out for the usual profile")
    return [_named_panel(ds, name) for name in names]


def _named_panel(ds: xr.Dataset, name: str) -> Panel:
    if name not in ds.data_vars and name not in DERIVED:
        drawable = [str(v) for v in ds.data_vars if {"depth", "layer"} & set(ds[v].dims)]
        near = difflib.get_close_matches(str(name), [*drawable, *DERIVED], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it holds {', '.join(drawable) or 'no profile'}"
        raise ValueError(f"the result has no variable {name!r}: {hint}")
    array = ds[name] if name in ds.data_vars else DERIVED[name](ds)
    if not {"depth", "layer"} & set(array.dims):
        raise ValueError(
            f"{name!r} has no depth or layer axis, so it has no profile; choose another variable"
        )
    line = _line(array)
    units = str(array.attrs.get("units", "1"))
    unit = "pure number" if units == "1" else units
    values = np.concatenate([line.mean, line.low, line.high])
    values = values[np.isfinite(values)]
    log = bool(values.size and values.min() > 0 and values.max() / values.min() > WIDE)
    title = str(array.attrs.get("long_name", name))
    if set(RANKED) & set(array.dims):
        title += " (here the largest)"
    return Panel(title, f"{unit} (log)" if log else unit, (line,), log=log)


def _line(array: xr.DataArray, *, dashed: bool = False) -> Line:
    """Mean and band over prompts of one variable; heads are averaged, of ranked axes the first is taken."""
    axis = "depth" if "depth" in array.dims else "layer"
    for extra in [str(d) for d in array.dims if d not in ("prompt", axis, "head")]:
        if extra not in RANKED:
            raise ValueError(
                f"{array.name!r} has the axis {extra!r}, which a profile cannot draw; select one entry "
                f"first, for example ds.isel({extra}=0)"
            )
        array = array.isel({extra: 0})
    numbers = array.astype(float)
    numbers = numbers.where(np.isfinite(numbers))
    with warnings.catch_warnings():  # NaN everywhere gives NaN, which is drawn as a gap
        warnings.simplefilter("ignore", RuntimeWarning)
        if "head" in numbers.dims:
            numbers = numbers.mean("head")
        values = numbers.transpose("prompt", axis).values
        low, high = np.nanquantile(values, BAND, axis=0)
        return Line(np.nanmean(values, axis=0), low, high, by_block=axis == "layer", dashed=dashed)
