"""What do norm, entropy and sinks look like, depth by depth, in one model or in several?"""

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, is_iterable
from mcr_lens.phases import Phases, detect_phases
from mcr_lens.plots.panels import Line, Panel, draw
from mcr_lens.plots.series import RANKED, Results, Series, heading, legend_of, line_of, read_series
from mcr_lens.plots.theme import series_color
from mcr_lens.reading import SINK_THRESHOLD, subject
from mcr_lens.summaries import layer_sink_identity, mlp_write_share, normalized_entropy, sink_rate

if TYPE_CHECKING:
    import plotly.graph_objects as go

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
    results: Results,
    variables: str | Sequence[str] | None = None,
    *,
    relative: bool | None = None,
    phases: "Phases | Literal['auto'] | None" = "auto",
    dark: bool = False,
) -> "go.Figure":
    """Draw quantities against depth, one panel each: mean over prompts, with its 95 % interval.

    Block l reads depth l and writes depth l + 1, so its quantities stand at l + 0.5. Heads are averaged.

    Args:
        results: what `measure` or `load` returns; one of `compare`, whose conditions are overlaid; or
            several results (models, checkpoints), in a list or by name.
        variables: names of variables with a depth or layer axis, or of the readings
            "normalized_entropy", "normalized_entropy_without_bos", "sink_rate", "layer_sink_identity",
            "mlp_write_share"; by default BOS norm ratio, normalised entropy and sink rate at 0.3, for
            several results without the row of BOS left out.
        relative: depth divided by the number of layers; by default where models differ in depth.
        phases: shaded behind the lines of a single result; "auto" looks for them with `detect_phases`.
        dark: light on dark.

    Raises:
        ResultSchemaError: not a result, or no prompts.
        ValueError: an unknown name (the nearest is suggested), nothing to draw, no results, phases of
            another depth, or absolute depth for models of different depth.
        ImportError: plotly is not installed.

    Source: arXiv 2510.06477, Fig. 1 and 2.
    """
    series = read_series(results)
    depths = {int(s.ds.attrs["n_layers"]) for s in series}
    if relative is False and len(depths) > 1:
        listed = ", ".join(map(str, sorted(depths)))
        raise ValueError(f"the models have {listed} layers; draw them with relative=True")
    panels = usual_panels(series) if variables is None else _named(series, variables)
    title, subtitle = heading(series)
    return draw(
        panels,
        legend_of(series, subject(series[0].ds)),
        title=title,
        subtitle=subtitle,
        relative=len(depths) > 1 if relative is None else relative,
        phases=shades(series, phases),
        dark=dark,
    )


def shades(
    series: Sequence[Series], phases: "Phases | Literal['auto'] | None"
) -> list[tuple[str, float, float]]:
    """What is shaded: phase, where it begins and where it ends, half-way between depths."""
    if phases is None or len(series) > 1:
        return []
    ds = series[0].ds
    if not isinstance(phases, Phases | str | None):
        raise TypeError(f"phases came as {as_shown(phases)}; pass what detect_phases returns, 'auto' or None")
    if phases == "auto" and "phase" in ds.coords and ds["phase"].dims == ("depth",):
        names = [str(name) for name in ds["phase"].values]
        spans = {name: [i for i, n in enumerate(names) if n == name] for name in dict.fromkeys(names) if name}
        return _between({name: range(at[0], at[-1] + 1) for name, at in spans.items()}, len(names) - 1)
    if phases == "auto":
        try:
            phases = detect_phases(ds)
        except ValueError:  # too few depths, or what they are told from was not measured or is not finite
            return []
    if not isinstance(phases, Phases):
        raise TypeError(f"phases came as {as_shown(phases)}; pass what detect_phases returns, 'auto' or None")
    last = int(ds.attrs["n_layers"])
    if phases.n_depths != last + 1:
        raise ValueError(
            f"the phases are of {phases.n_depths} depths and the result has {last + 1}; pass those "
            "of this result"
        )
    if not phases.compress:
        return []
    return _between({"mix": phases.mix, "compress": phases.compress, "refine": phases.refine}, last)


def _between(spans: Mapping[str, range], last: int) -> list[tuple[str, float, float]]:
    return [
        (name, max(0.0, span.start - 0.5), min(float(last), span.stop - 0.5))
        for name, span in spans.items()
        if span
    ]


def usual_panels(series: Sequence[Series]) -> list[Panel]:
    """Norm ratio, normalised entropy and sink rate, as far as they were measured."""
    single, panels = len(series) == 1, []
    name = subject(series[0].ds)

    def lines(
        variable: str, read: Callable[[xr.Dataset], xr.DataArray], bare: bool = False
    ) -> tuple[Line, ...]:
        color = series_color(len(panels)) if single else None
        return tuple(line_of(read(s.ds), s, color=color, bare=bare) for s in series if variable in s.ds)

    found = lines("massive_activation_ratio", lambda ds: ds.massive_activation_ratio)
    if found:
        title = f"Norm of {name} / median norm of the others"
        panels.append(Panel(title, "norm ratio (log)", found, log=True, least=(0.8, 12.0)))
    found = lines("matrix_entropy", normalized_entropy)
    if single or not found:
        found += lines("matrix_entropy_without_bos", DERIVED["normalized_entropy_without_bos"], bare=True)
    if found:
        title = "Normalised matrix entropy"
        panels.append(Panel(title, "H / ln min(T, d)", found, least=(0.0, 1.0)))
    found = lines("sink_score", lambda ds: sink_rate(ds, SINK_THRESHOLD))
    if found:
        title = f"Sink rate: attention to {name} ≥\N{NO-BREAK SPACE}{SINK_THRESHOLD:g}"
        panels.append(Panel(title, "share of heads", found, least=(0.0, 1.0)))
    if not panels:
        raise ValueError(
            "the result has none of massive_activation_ratio, matrix_entropy and sink_score, which the "
            "profile draws; measure one of them or name the variables to draw"
        )
    return panels


def _named(series: Sequence[Series], variables: str | Sequence[str]) -> list[Panel]:
    if not is_iterable(variables):
        raise TypeError(f"variables came as {type(variables).__name__}; name one or more of the result")
    names = [variables] if isinstance(variables, str) else list(variables)
    if not names:
        raise ValueError("variables is empty; name at least one, or leave it out for the usual profile")
    return [_panel(series, name, number) for number, name in enumerate(names)]


def _panel(series: Sequence[Series], name: str, number: int) -> Panel:
    arrays = [_read(s.ds, name) for s in series]
    color = series_color(number) if len(series) == 1 else None
    with warnings.catch_warnings():
        lines = tuple(line_of(array, s, color=color) for array, s in zip(arrays, series, strict=True))
    units = str(arrays[0].attrs.get("units", "1"))
    unit = "pure number" if units == "1" else units
    values = np.concatenate([part for line in lines for part in (line.mean, line.low, line.high)])
    values = values[np.isfinite(values)]
    # Shares and scores stay on their own scale, from 0 to 1.
    log = bool(values.size and values.min() > 0 and values.max() > max(1, WIDE * values.min()))
    title = str(arrays[0].attrs.get("long_name", name))
    if set(RANKED) & set(arrays[0].dims):
        title += " (here the largest)"
    return Panel(title, f"{unit} (log)" if log else unit, lines, log=log)


def _read(ds: xr.Dataset, name: str) -> xr.DataArray:
    if str(name) not in ds.data_vars and str(name) not in DERIVED:
        drawable = [str(v) for v in ds.data_vars if {"depth", "layer"} & set(ds[v].dims)]
        near = difflib.get_close_matches(str(name), [*drawable, *DERIVED], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it holds {', '.join(drawable) or 'no profile'}"
        raise ValueError(f"the result has no variable {as_shown(name)}: {hint}")
    array = ds[name] if name in ds.data_vars else DERIVED[name](ds)
    if not {"depth", "layer"} & set(array.dims):
        raise ValueError(
            f"{as_shown(name)} has no depth or layer axis, so it has no profile; choose another variable"
        )
    return array
