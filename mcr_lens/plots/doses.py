"""Does the effect of an ablation grow with the dose?"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._optional import require
from mcr_lens.conditions import condition, condition_names, interventions_of
from mcr_lens.findings import entropy_valley
from mcr_lens.plots.panels import HEIGHT, Legend, Line, Panel, add_legend, dress_y
from mcr_lens.plots.series import BAND, mean_and_interval
from mcr_lens.plots.theme import GREY, faded, frame, panel_title, plain, series_color, wrapped
from mcr_lens.reading import SINK_THRESHOLD, subject
from mcr_lens.schema import ResultSchemaError
from mcr_lens.schema import require as require_measured
from mcr_lens.summaries import normalized_entropy, sink_rate

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN = ("massive_activation_ratio", "matrix_entropy", "sink_score", "next_token_loss")
"""What has a panel, where it was measured."""

SITES = {"mlp_out": "what the MLP writes", "attn_out": "what attention writes"}


def plot_dose_response(ds: xr.Dataset, *, dark: bool = False) -> "go.Figure":
    """Draw what a write does when it is scaled by λ: means over prompts with 95 % intervals, against λ.

    Up to four panels, for what was measured: the norm ratio of BOS at the depth where it is largest, prompt
    by prompt; the normalised entropy at the depth where it is lowest at λ = 1 (or at the dose nearest to it;
    the title says which depth and which dose); the mean over layers of the sink rate at 0.3; the next-token
    loss. At λ = 1 the model is as it is, at λ = 0 the write is cut; both are marked.

    Args:
        ds: what `dose_response` returns.
        dark: light on dark.

    Raises:
        ResultSchemaError: not a result of `dose_response`, or no prompts.
        ValueError: doses that are not different finite numbers, or nothing to draw.
        ImportError: plotly is not installed.

    Source: this library, after arXiv 2510.06477, Fig. 4 (a cut there, doses here).
    """
    names = condition_names(ds)
    if "factor" not in ds.coords or ds.factor.dims != ("condition",):
        raise ResultSchemaError(
            "the result has no doses (no coordinate `factor` on the axis `condition`); pass what "
            "mcr_lens.dose_response returns"
        )
    require_measured(ds, *(name for name in SHOWN if name in ds))
    if not ds.sizes["prompt"]:
        raise ResultSchemaError("the result holds no prompts; measure some first")
    doses = np.asarray(ds.factor.values, float)
    if not len(doses) or not np.isfinite(doses).all() or len(set(doses)) < len(doses):
        raise ValueError(f"factor holds {doses.tolist()}; every dose must be a finite number and come once")
    panels = _panels(ds.isel(condition=np.argsort(doses)), names[int(np.abs(doses - 1).argmin())])
    if not panels:
        raise ValueError(
            f"the result has none of {', '.join(SHOWN[:-1])} and {SHOWN[-1]}, which a dose-response shows; "
            "measure one of them"
        )
    return _draw(
        panels, np.sort(doses), title=str(ds.attrs.get("model", "model")), subtitle=_about(ds), dark=dark
    )


def _panels(ds: xr.Dataset, reference: str) -> list[Panel]:
    """One panel for each quantity that was measured; `reference` is the dose nearest to λ = 1."""
    name, panels = subject(ds), []

    def add(title: str, unit: str, array: xr.DataArray, **options: Any) -> None:
        mean, low, high = mean_and_interval(array.transpose("prompt", "condition"))
        color = series_color(len(panels))
        line = Line("", mean, low, high, by_block=False, n_layers=0, color=color)
        panels.append(Panel(title, unit, (line,), **options))

    if "massive_activation_ratio" in ds:
        ratio = ds.massive_activation_ratio.astype(float)
        with warnings.catch_warnings():  # a prompt of one token has no ratio at all, and is a gap
            warnings.simplefilter("ignore", RuntimeWarning)
            largest = ratio.where(np.isfinite(ratio)).max("depth")
        add(f"Largest norm of {name} / median norm", "norm ratio (log)", largest, log=True,
            least=(0.8, 12.0))  # fmt: skip
    valley = entropy_valley(condition(ds, reference)) if "matrix_entropy" in ds else None
    if valley is not None:
        entropy = normalized_entropy(ds).isel(depth=valley.depth, drop=True)
        title = f"Entropy at depth {valley.depth} (lowest at {reference})"
        add(title, "H / ln min(T, d)", entropy, least=(0.0, 1.0))
    if "sink_score" in ds:
        title = f"Mean sink rate: attention to {name} ≥\N{NO-BREAK SPACE}{SINK_THRESHOLD:g}"
        add(title, "share of heads", sink_rate(ds, SINK_THRESHOLD).mean("layer"), least=(0.0, 1.0))
    if "next_token_loss" in ds:
        add("Next-token loss", "nats/token", ds.next_token_loss)
    return panels


def _draw(
    panels: Sequence[Panel], doses: np.ndarray, *, title: str, subtitle: str, dark: bool
) -> "go.Figure":
    go = require("plotly.graph_objects", extra="plots")
    subplots = require("plotly.subplots", extra="plots")
    titles = [wrapped(panel.title) for panel in panels]
    room = 44 + 17 * max(text.count("<br>") + 1 for text in titles)
    inner = len(panels) * (HEIGHT + room) - room
    fig = subplots.make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True,
        vertical_spacing=room / inner if len(panels) > 1 else 0,
    )  # fmt: skip
    for row, (panel, text) in enumerate(zip(panels, titles, strict=True), start=1):
        (line,) = panel.lines
        edge = {"x": doses, "mode": "lines", "line_width": 0, "showlegend": False, "hoverinfo": "skip",
                "legendgroup": "band"}  # fmt: skip
        banded = bool(np.isfinite(line.low).any())
        if banded:
            fig.add_trace(go.Scatter(y=line.low, **edge), row=row, col=1)
            fill = {"fill": "tonexty", "fillcolor": faded(line.color, 0.22)}
            fig.add_trace(go.Scatter(y=line.high, **fill, **edge), row=row, col=1)
        between = " (%{customdata[0]:.4~g} to %{customdata[1]:.4~g})" if banded else ""
        fig.add_trace(
            go.Scatter(
                x=doses, y=line.mean, mode="lines+markers", marker_size=6, showlegend=False,
                legendgroup="mean", line={"color": line.color, "width": 2},
                customdata=np.stack([line.low, line.high], 1),
                hovertemplate=f"λ = %{{x:.4~g}}: <b>%{{y:.4~g}}</b>{between}<extra></extra>",
            ),
            row=row, col=1,
        )  # fmt: skip
        for dose in (0.0, 1.0):
            fig.add_vline(
                x=dose, row=row, col=1, layer="below", line={"color": GREY, "dash": "dot", "width": 1}
            )
        dress_y(fig, panel, row)
        panel_title(fig, text, y=fig.get_subplot(row, 1).yaxis.domain[1])
    names = add_legend(fig, panels, Legend((), bare="", band=plain(BAND)))
    frame(fig, title=title, subtitle=subtitle, inner=inner, above=room - 24, legend=names, dark=dark)
    fig.update_layout(hovermode="x")
    low, high = min(0.0, *doses), max(1.0, *doses)
    margin = 0.03 * (high - low)
    fig.update_xaxes(range=[low - margin, high + margin], showticklabels=True, nticks=8)
    fig.update_xaxes(title={"text": "dose λ (1: as the model is, 0: cut)"}, row=len(panels), col=1)
    return fig


def _about(ds: xr.Dataset) -> str:
    """Over how many prompts, and what is scaled, as far as the result says."""
    many = ds.sizes["prompt"]
    text = f"{many} prompt{'' if many == 1 else 's'}"
    scaled = [edit for edit in next(iter(interventions_of(ds).values()), [])
              if isinstance(edit, dict) and edit.get("kind") == "scale"]  # fmt: skip
    if len(scaled) != 1:
        return text
    edit = scaled[0]
    what = SITES.get(str(edit.get("site")), str(edit.get("site")))
    places = [_listed(axis, edit[f"{axis}s"]) for axis in ("layer", "position") if f"{axis}s" in edit]
    return f"{text}; scaled by λ: {', '.join([what, *places])}"


def _listed(axis: str, given: Any) -> str:
    if not isinstance(given, list):
        return f"{axis}s: {given}"
    return f"{axis}{'' if len(given) == 1 else 's'} {', '.join(map(str, given))}"
