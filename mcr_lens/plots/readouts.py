"""What can be read at every depth: how well do a lens or a probe do there?"""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, is_iterable
from mcr_lens._optional import require
from mcr_lens.phases import Phases
from mcr_lens.plots.panels import Legend, Line, Panel, draw
from mcr_lens.plots.profile import WIDE, shades
from mcr_lens.plots.series import Results, Series, mean_and_interval
from mcr_lens.plots.theme import GREY, plain, series_color, series_dash

if TYPE_CHECKING:
    import plotly.graph_objects as go

METRICS = ("norms", "attention", "sinks", "spectral", "theory", "loss")
"""Groups of what is measured inside the model, which is no readout."""

REPEATS = ("prompt", "seed")
"""Axes over which a mean is taken; the interval is over seeds where there are any, else over prompts."""

BETTER = ("lower", "higher")


def plot_readouts(
    results: Results,
    variables: str | Sequence[str] | None = None,
    *,
    relative: bool | None = None,
    phases: "Phases | Literal['auto'] | None" = "auto",
    dark: bool = False,
) -> "go.Figure":
    """Draw what a lens or a probe reads at each depth, one panel per readout, with 95 % intervals.

    A readout is any variable with an axis `depth`. Its interval is what stands beside it as `<name>_low` and
    `<name>_high`; otherwise means are taken over `prompt` and `seed`, and the interval is that over seeds
    where there are any, else over prompts. Where the attribute `better` says "lower" or "higher", a star
    marks the best depth of the mean (the first of equals).

    Args:
        results: a Dataset with readouts by depth, of this library or your own; several (tasks, models), in a
            list or by name; or one with an axis `condition`. They are overlaid.
        variables: names of readouts; by default those whose attribute `group` is "readout", and where there
            are none, all numbers by depth that are not metrics of this library.
        relative: depth divided by the number of layers; by default where the results differ in depth.
        phases: shaded behind a single result; "auto" looks for them where the result holds what
            `detect_phases` needs.
        dark: light on dark.

    Raises:
        TypeError: something that is not a Dataset.
        ValueError: no results or readouts, an unknown name (the nearest is suggested), an axis that cannot
            be drawn, `better` that is neither "lower" nor "higher", phases of another depth, or absolute
            depth for results of different depth.
        ImportError: plotly is not installed.

    Source: arXiv 2510.06477 (logit-lens perplexity, question answering and probes by layer); drawing: this
    library.
    """
    series = _series(results)
    names = _names(series, variables)
    depths = sorted({int(s.ds.attrs["n_layers"]) for s in series})
    if relative is False and len(depths) > 1:
        listed = ", ".join(map(str, depths))
        raise ValueError(f"the results have {listed} layers; draw them with relative=True")
    relative = len(depths) > 1 if relative is None else relative
    panels = [_panel(series, name, number) for number, name in enumerate(names)]
    several = tuple((s.name, s.color, s.dash) for s in series) if len(series) > 1 else ()
    title, subtitle, over = _heading(series, names)
    shaded = shades(series, phases)
    fig = draw(
        panels,
        Legend(several, bare="", band=plain(f"95 % interval over {over}")),
        title=title,
        subtitle=subtitle,
        relative=relative,
        phases=shaded,
        dark=dark,
    )
    fig.update_traces(connectgaps=True, selector={"type": "scatter"})  # depths that were left out
    fig.update_traces(name=f"mean over {over}" if over else "value", selector={"name": "mean over prompts"})
    _mark_best(fig, series, panels, names, relative=relative)
    return fig


def _series(given: Any) -> tuple[Series, ...]:
    """One series per result, task or condition; each knows its number of layers."""
    named = _named(given)
    for name, ds in named.items():
        if not isinstance(ds, xr.Dataset):
            raise TypeError(
                f"results: {as_shown(name)} is a {type(ds).__name__}; pass Datasets with readouts by depth"
            )
        if "depth" not in ds.dims:
            raise ValueError(
                f"results: {as_shown(name)} has no axis `depth`, so there is nothing to draw by depth"
            )
    return tuple(
        Series(name, ds.assign_attrs(n_layers=_n_layers(name, ds)), series_color(i), series_dash(i))
        for i, (name, ds) in enumerate(named.items())
    )


def _named(given: Any) -> dict[str, Any]:
    if isinstance(given, xr.Dataset):
        if "condition" not in given.dims:
            return {_own_name(given) or "result": given}
        if not given.sizes["condition"]:
            raise ValueError("results: the Dataset holds no conditions; pass at least one")
        return {str(name): given.isel(condition=i) for i, name in enumerate(given["condition"].values)}
    if isinstance(given, Mapping):
        wrong = [name for name in given if not isinstance(name, str) or not name]
        if wrong or not given:
            what = f"the name {as_shown(wrong[0])} is not a text" if wrong else "an empty map"
            raise ValueError(f'results: got {what}; pass a map such as {{"task one": ds, "task two": ds}}')
        found = dict(given)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        if not given:
            raise ValueError("results: got an empty list; pass at least one Dataset")
        own = [_own_name(ds) if isinstance(ds, xr.Dataset) else "" for ds in given]
        found = {n if n and own.count(n) == 1 else f"{n or 'result'} ({i})": ds
                 for i, (n, ds) in enumerate(zip(own, given, strict=True))}  # fmt: skip
    else:
        raise TypeError(f"results is a {type(given).__name__}; pass a Dataset, several, or a map of them")
    for name, ds in found.items():
        if isinstance(ds, xr.Dataset) and "condition" in ds.dims:
            raise ValueError(
                f"results: {as_shown(name)} holds several conditions; pick one of each, or draw it alone"
            )
    return found


def _own_name(ds: xr.Dataset) -> str:
    """The task it was read from, or the model."""
    return str(ds.attrs.get("task", ds.attrs.get("model", "")))


def _n_layers(name: str, ds: xr.Dataset) -> int:
    depths = np.asarray(ds["depth"].values)
    last = int(ds.attrs.get("n_layers", max(depths, default=0)))
    if depths.dtype.kind not in "iu" or len(set(depths.tolist())) < len(depths) or not len(depths):
        raise ValueError(
            f"results: the depths of {as_shown(name)} are {depths.tolist()}; they must be whole, once each"
        )
    if depths.min() < 0 or depths.max() > last:
        raise ValueError(
            f"results: {as_shown(name)} has depths {depths.min()} to {depths.max()} and {last} layers; "
            "depths go from 0 to the number of layers"
        )
    return last


def _names(series: Sequence[Series], variables: str | Sequence[str] | None) -> list[str]:
    """What is drawn: present in every result, by depth, and with no axis that a line cannot have."""
    common = [str(v) for v in series[0].ds.data_vars if all(_by_depth(s.ds, str(v)) for s in series)]
    if variables is None:
        groups = {v: str(series[0].ds[v].attrs.get("group", "")) for v in common}
        names = [v for v in common if groups[v] == "readout"]
        names = names or [v for v in common if groups[v] not in METRICS]
        if not names:
            held = ", ".join(common) or "nothing by depth"
            raise ValueError(f'no readouts (attribute group="readout") to draw; name some of {held}')
    else:
        if not is_iterable(variables):
            raise TypeError(f"variables came as {type(variables).__name__}; name one or more of the result")
        names = [variables] if isinstance(variables, str) else list(variables)
        if not names:
            raise ValueError("variables is empty; name at least one, or leave it out for all readouts")
    for name in names:
        if str(name) not in common:
            near = difflib.get_close_matches(str(name), common, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(common) or 'none'}"
            where = "the result" if len(series) == 1 else "every result"
            raise ValueError(f"{as_shown(name)} is not a number by depth in {where}: {hint}")
        for s in series:
            _check(s.ds[name], name)
    return names


def _by_depth(ds: xr.Dataset, name: str) -> bool:
    return name in ds.data_vars and "depth" in ds[name].dims and ds[name].dtype.kind in "fiub"


def _check(array: xr.DataArray, name: str) -> None:
    extra = [str(d) for d in array.dims if d not in ("depth", *REPEATS)]
    if extra:
        raise ValueError(
            f"{as_shown(name)} has the axis {extra[0]!r}, which a line over depth cannot have; select one "
            f"entry first, for example ds.isel({extra[0]}=0)"
        )
    if array.attrs.get("better", "lower") not in BETTER:
        raise ValueError(
            f"{as_shown(name)} has the attribute better={array.attrs['better']!r}; it must be 'lower' or "
            "'higher'"
        )


def _panel(series: Sequence[Series], name: str, number: int) -> Panel:
    color = series_color(number) if len(series) == 1 else None
    lines = tuple(_line(s.ds[name], s, color or s.color) for s in series)
    values = np.concatenate([part for line in lines for part in (line.mean, line.low, line.high)])
    values = values[np.isfinite(values)]
    log = bool(values.size and values.min() > 0 and values.max() / values.min() > WIDE)
    about = series[0].ds[name].attrs
    units = str(about.get("units", "1"))
    unit = "pure number" if units == "1" else units
    title = str(about.get("long_name", name))
    if "better" in about:
        title += f" (★\N{NO-BREAK SPACE}{'lowest' if about['better'] == 'lower' else 'highest'})"
    return Panel(title, f"{unit} (log)" if log else unit, lines, log=log)


def _line(array: xr.DataArray, series: Series, color: str) -> Line:
    last = int(series.ds.attrs["n_layers"])
    if _has_interval(series.ds, str(array.name)):
        ends = [_at_depths(series.ds[f"{array.name}{end}"], last).values for end in ("", "_low", "_high")]
        return Line(series.name, *ends, by_block=False, n_layers=last, color=color, dash=series.dash)
    array = _at_depths(array, last)
    if set(REPEATS) <= set(array.dims):
        array = array.mean("prompt")
    array = array.rename({axis: "prompt" for axis in ("seed",) if axis in array.dims})
    if "prompt" in array.dims:
        mean, low, high = mean_and_interval(array.transpose("prompt", "depth"))
    else:
        mean = array.values
        low = high = np.full_like(mean, np.nan)
    return Line(series.name, mean, low, high, by_block=False, n_layers=last, color=color, dash=series.dash)


def _at_depths(array: xr.DataArray, last: int) -> xr.DataArray:
    """Numbers at depths 0..last, NaN where there is none or one that is not finite."""
    array = array.astype(float)
    array = array.where(np.isfinite(array)).reset_coords(drop=True)
    if "depth" not in array.coords:
        array = array.assign_coords(depth=np.arange(array.sizes["depth"]))
    return array.reindex(depth=np.arange(last + 1))


def _has_interval(ds: xr.Dataset, name: str) -> bool:
    """Whether a readout by depth comes with its interval, beside it."""
    return ds[name].dims == ("depth",) and all(f"{name}_{end}" in ds for end in ("low", "high"))


def _mark_best(
    fig: Any, series: Sequence[Series], panels: Sequence[Panel], names: Sequence[str], *, relative: bool
) -> None:
    """A star on the best depth of every line."""
    go = require("plotly.graph_objects", extra="plots")
    for row, (panel, name) in enumerate(zip(panels, names, strict=True), start=1):
        better = series[0].ds[name].attrs.get("better")
        for line in panel.lines if better else ():
            if np.isnan(line.mean).all():
                continue
            best = int(np.nanargmin(line.mean if better == "lower" else -line.mean))
            fig.add_trace(
                go.Scatter(
                    x=[best / line.n_layers if relative else best], y=[line.mean[best]], mode="markers",
                    hoverinfo="skip", showlegend=False, cliponaxis=False, legendgroup=f"series {line.name}",
                    marker={"symbol": "star", "size": 14, "color": line.color,
                            "line": {"color": GREY, "width": 1}},
                ),
                row=row, col=1,
            )  # fmt: skip


def _heading(series: Sequence[Series], names: Sequence[str]) -> tuple[str, str, str]:
    """Title, subtitle, and what the intervals are over."""
    models = list(dict.fromkeys(str(s.ds.attrs["model"]) for s in series if "model" in s.ds.attrs))
    title = models[0] if len(models) == 1 else f"{len(models)} models" if models else "Readouts by depth"
    used = {axis for s in series for name in names for axis in s.ds[name].dims}
    beside = [(s.ds, s.ds[name].attrs) for s in series for name in names if _has_interval(s.ds, name)]
    told = list(dict.fromkeys(str(about["interval_over"]) for _, about in beside if "interval_over" in about))
    counted = [_count([s.ds.sizes[axis] for s in series if axis in s.ds.sizes], axis)
               for axis in REPEATS if axis in used]  # fmt: skip
    for over in told:
        sizes = [len(ds[about["samples"]]) for ds, about in beside
                 if about.get("interval_over") == over and about.get("samples") in ds]  # fmt: skip
        unit = over.split(" and ")[0].removesuffix("s")
        counted.append(_count(sizes, unit) if sizes else f"intervals over {over}")
    tasks = list(dict.fromkeys(str(s.ds.attrs["task"]) for s in series if "task" in s.ds.attrs))
    subtitle = ", ".join([*(tasks if len(series) == 1 else ()), *(counted or ["one number per depth"])])
    over = [*(f"{axis}s" for axis in reversed(REPEATS) if axis in used), *told]
    return title, subtitle, over[0] if over else ""


def _count(sizes: Sequence[int], axis: str) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low}{'' if low == high else f' to {high}'} {axis}{'' if high == 1 else 's'}"
