"""How much of the compression must follow from the massive row: what was measured, between its bounds?"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens.plots.panels import Legend, Line, Panel, draw
from mcr_lens.plots.series import mean_and_interval
from mcr_lens.plots.theme import PALETTE, faded
from mcr_lens.reading import subject
from mcr_lens.schema import require_single
from mcr_lens.theorem import NEEDED, bound_violations, bounds

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEASURED, LOWER, BEST = "measured", "lower bound", "best upper bound, by any rows"
UPPER, ROOM = "upper bound by the row of {}", "room between the bounds"
OWN, ALONG = "the row of {} itself, M", "other rows along it, αR"

STYLE = {
    ROOM: (PALETTE[5], "solid"),
    MEASURED: (PALETTE[0], "solid"),
    LOWER: (PALETTE[2], "solid"),
    UPPER: (PALETTE[1], "solid"),
    BEST: (PALETTE[1], "dash"),
    OWN: (PALETTE[3], "solid"),
    ALONG: (PALETTE[4], "dash"),
}
"""Colour and dash of every quantity, the same in all panels."""


def plot_bounds(ds: xr.Dataset, *, dark: bool = False) -> "go.Figure":
    """Draw spectrum and entropy between what the theorem allows, by depth, averaged over prompts.

    Four panels: the share of the strongest direction, p₁ = σ₁²/‖X‖_F², above p; the normalised entropy
    between its lower and its upper bound; spectral dominance σ₁²/Σ_{j ≥ 2} σⱼ² above (c + α)/(1 − α), with
    geometric means on a logarithmic axis; and what the bound on σ₁², M + αR, is made of. Formulas:
    `mcr_lens.bounds`. The closer the measured line is to a bound, the more of the compression follows from
    that row alone. "Best upper bound" is the lowest one by any row or rows. The subtitle counts violations,
    of which there are none unless something is wrong with the numbers.

    A prompt counts at a depth where all quantities of a panel are finite: rank one has infinite dominance.

    Args:
        ds: what `measure`, `load` or `condition` returns, with the variables that `bounds` reads.
        dark: light on dark.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or a variable was not measured.
        ImportError: plotly is not installed.

    Source: arXiv 2510.06477, Fig. 3, Theorem 1 and Corollary 2; this library for the lower bound on the
    entropy and the best upper bound.
    """
    require_single(ds, *NEEDED)
    broken, name, n_layers = bound_violations(ds), subject(ds), int(ds.attrs["n_layers"])
    found = bounds(ds).reindex(depth=np.arange(n_layers + 1))  # a gap where a depth was left out

    def lines(variables: dict[str, str], *, geometric: bool = False) -> tuple[Line, ...]:
        arrays: list[Any] = list(xr.broadcast(*(found[v].astype(float) for v in variables.values())))
        if geometric:
            arrays = [array.where(array > 0).pipe(np.log) for array in arrays]
        whole = np.logical_and.reduce([np.isfinite(array) for array in arrays])
        pairs = zip(variables, arrays, strict=True)
        made = [_line(array.where(whole), kind, name, n_layers) for kind, array in pairs]
        return tuple(_exp(line) if geometric else line for line in made)

    entropy = lines({
        MEASURED: "normalized_entropy", LOWER: "normalized_entropy_lower_bound",
        UPPER: "normalized_entropy_upper_bound", BEST: "normalized_best_entropy_upper_bound",
    })  # fmt: skip
    _, lowest, highest, _ = entropy
    room = replace(
        lowest, name=ROOM, color=STYLE[ROOM][0], mean=np.full(n_layers + 1, np.nan), low=lowest.mean,
        high=highest.mean,
    )  # fmt: skip
    panels = [
        Panel(
            "Anisotropy: the strongest direction, p₁", "σ₁² / ‖X‖²",
            lines({MEASURED: "anisotropy", LOWER: "anisotropy_lower_bound"}), least=(0.0, 1.0),
        ),
        Panel("Matrix entropy between its bounds", "H / ln min(T, d)", (*entropy, room), least=(0.0, 1.0)),
        Panel(
            "Dominance: strongest direction / the rest", "σ₁² / Σ σⱼ² (geom. mean)",
            lines({MEASURED: "dominance", LOWER: "dominance_lower_bound"}, geometric=True), log=True,
            least=(0.8, 12.0),
        ),
        Panel(
            "What the bound on σ₁² is made of", "share of M + αR",
            lines({OWN: "bos_part", ALONG: "alignment_part"}), least=(0.0, 1.0),
        ),
    ]  # fmt: skip
    series = tuple((kind.format(name), *style) for kind, style in STYLE.items())
    fig = draw(
        panels,
        Legend(series, bare="", band="95 % interval of what was measured"),
        title=str(ds.attrs.get("model", "model")),
        subtitle=f"{_prompts(ds)}; {_violations(len(broken))}",
        relative=False,
        dark=dark,
    )
    _shade_room(fig)
    return fig


def _line(array: xr.DataArray, kind: str, name: str, n_layers: int) -> Line:
    """The mean over prompts; with an interval for what was measured alone, so that it can be seen."""
    mean, low, high = mean_and_interval(array.transpose("prompt", "depth"))
    if kind != MEASURED:
        low = high = np.full_like(mean, np.nan)
    color, dash = STYLE[kind]
    return Line(kind.format(name), mean, low, high, by_block=False, n_layers=n_layers, color=color, dash=dash)


def _exp(line: Line) -> Line:
    return replace(line, mean=np.exp(line.mean), low=np.exp(line.low), high=np.exp(line.high))


def _shade_room(fig: Any) -> None:
    """The room between the bounds is an area, in the figure and in the legend."""
    color = faded(STYLE[ROOM][0], 0.25)
    for trace in fig.select_traces({"legendgroup": f"series {ROOM}"}):
        if trace.fill:
            trace.fillcolor = color
        if trace.showlegend:
            trace.update(mode="markers", marker={"symbol": "square", "size": 14, "color": color})


def _prompts(ds: xr.Dataset) -> str:
    many = ds.sizes["prompt"]
    return f"{many} prompt{'' if many == 1 else 's'}"


def _violations(many: int) -> str:
    if not many:
        return "no bound is violated at any depth"
    return f"{many} violation{'' if many == 1 else 's'} of a bound, see mcr_lens.bound_violations"
