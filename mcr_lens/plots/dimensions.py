"""Do the same few dimensions hold the largest activations at every depth, how large, and at which token?"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._optional import require
from mcr_lens.plots.panels import MARKED, dress_depth, log_ticks
from mcr_lens.plots.series import mean_and_interval
from mcr_lens.plots.theme import (
    BAR,
    GREY,
    PALETTE,
    SEQUENTIAL,
    color_bar,
    faded,
    frame,
    panel_title,
    shortened,
    wrapped,
)
from mcr_lens.results import vocabulary_of
from mcr_lens.schema import require_single

if TYPE_CHECKING:
    import plotly.graph_objects as go

NEEDED = ("top_activation", "top_activation_dimension", "top_activation_token", "median_activation")
"""What the figure is drawn from."""

MOST = 12
"""Dimensions that get a row of their own; the others share one."""

ABSOLUTE, TIMES = 100.0, 1000.0
"""An activation is massive above this magnitude and from so many medians on (arXiv 2402.17762)."""

HEIGHT, ROW = 260, 20
"""Pixels of the inside of the upper panel, and of a row of the lower one."""

PLACES = ("largest", "second largest", "third largest")


def plot_massive_dimensions(ds: xr.Dataset, *, dark: bool = False) -> "go.Figure":
    """Draw the three largest activations by depth against the median, and which dimensions they are in.

    Above, mean over prompts of the three largest |x| with the interval of the largest, of the median |x|,
    and of max(100, 1000 median), from which on arXiv 2402.17762 calls an activation massive; hover names the
    dimension and the token that are most frequent over prompts. Below, the share of prompts in which a
    dimension is among the three largest (at any token), for the 12 most frequent ones and for all others
    together. Numbers that are not finite are left out; where nothing is left, there is a gap.

    Args:
        ds: what `measure`, `load` or `condition` returns.
        dark: light on dark.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or the activations were not measured.
        ValueError: no finite activation.
        ImportError: plotly is not installed.

    Source: arXiv 2402.17762 (largest and median activations); the map of dimensions: this library.
    """
    require_single(ds, *NEEDED)
    top = ds.top_activation.transpose("prompt", "depth", "top")
    finite = np.isfinite(top.values)
    if not finite.any():
        raise ValueError("no activation is finite; measure in a precision that holds them, such as float32")
    subplots = require("plotly.subplots", extra="plots")
    dimensions = ds.top_activation_dimension.transpose("prompt", "depth", "top").values
    dimensions = np.where(finite, dimensions, -1).astype(int)
    names, shares = dimension_shares(dimensions)
    titles = [
        wrapped("Largest activations |x| and the median"),
        wrapped("Dimensions among the three largest"),
    ]
    room = 44 + 17 * max(text.count("<br>") + 1 for text in titles)
    strip = max(60, ROW * len(names))
    inner = HEIGHT + room + strip
    fig = subplots.make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[HEIGHT, strip], vertical_spacing=room / inner
    )
    places = _most_frequent(ds, dimensions)
    legend = _add_activations(fig, ds, places)
    _add_strip(fig, names, shares, ds.depth.values)
    for row, text in enumerate(titles, start=1):
        panel_title(fig, text, y=fig.get_subplot(row, 1).yaxis.domain[1])
    many = ds.sizes["prompt"]
    frame(
        fig, title=str(ds.attrs.get("model", "model")),
        subtitle=f"single activations of the residual stream, {many} prompt{'' if many == 1 else 's'}",
        inner=inner, above=room - 24, right=BAR, legend=legend, dark=dark,
    )  # fmt: skip
    dress_depth(fig, 2, n_layers=int(ds.attrs["n_layers"]), relative=False)
    fig.update_xaxes(range=[-0.5, int(ds.attrs["n_layers"]) + 0.5])
    return fig


def dimension_shares(dimensions: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of the most frequent dimensions, and the share of prompts that hold them, by row and depth.

    `dimensions` by prompt, depth and place, −1 where there is none. A prompt that holds a dimension at two
    tokens counts once; the last row, "others", is the share of prompts that hold any other dimension. NaN
    at a depth where no prompt holds any.

    >>> names, shares = dimension_shares(np.array([[[7, 7, 2]], [[7, 5, 5]]]))
    >>> names, shares[:, 0].tolist()
    (['7', '2', '5'], [1.0, 0.5, 0.5])
    """
    held = [[set(row[row >= 0].tolist()) for row in prompt] for prompt in dimensions]
    counts = Counter(d for prompt in held for row in prompt for d in row)
    ranked = sorted(counts, key=lambda d: (-counts[d], d))
    listed, rest = ranked[:MOST], set(ranked[MOST:])
    tests = [{d} for d in listed] + ([rest] if rest else [])
    shares = np.full((len(tests), dimensions.shape[1]), np.nan)
    for depth in range(dimensions.shape[1]):
        rows = [prompt[depth] for prompt in held if prompt[depth]]
        if rows:
            shares[:, depth] = [np.mean([bool(row & test) for row in rows]) for test in tests]
    return [str(d) for d in listed] + (["others"] if rest else []), shares


def _most_frequent(ds: xr.Dataset, dimensions: np.ndarray) -> list[list[str]]:
    """By place and depth, in words: the dimension and the token most frequent over prompts."""
    tokens = ds.top_activation_token.transpose("prompt", "depth", "top").values.astype(int)
    ids = None
    if "top_activation_token_id" in ds:
        ids = ds.top_activation_token_id.transpose("prompt", "depth", "top").values.astype(int)
    spelled = vocabulary_of(ds)
    found = []
    for place in range(dimensions.shape[2]):
        texts = []
        for depth in range(dimensions.shape[1]):
            held = dimensions[:, depth, place] >= 0
            if not held.any():
                texts.append("")
                continue
            dimension, share = _mode(dimensions[held, depth, place])
            position, where = _mode(tokens[held, depth, place])
            token = f"position {position} in {100 * where:.0f} %"
            if ids is not None:
                number, often = _mode(ids[held, depth, place])
                if number in spelled:
                    token = f"token {shortened(repr(spelled[number]), 24)} in {100 * often:.0f} %<br>{token}"
            texts.append(f"dimension {dimension} in {100 * share:.0f} % of prompts<br>{token}")
        found.append(texts)
    return found


def _mode(values: np.ndarray) -> tuple[int, float]:
    """The most frequent value, the smallest among equals, and its share."""
    numbers, counts = np.unique(values, return_counts=True)
    return int(numbers[counts.argmax()]), float(counts.max() / counts.sum())


def _add_activations(fig: Any, ds: xr.Dataset, places: Sequence[Sequence[str]]) -> list[str]:
    """The lines of the upper panel; returns the names of the legend."""
    go = require("plotly.graph_objects", extra="plots")
    depth = ds.depth.values
    median = mean_and_interval(ds.median_activation)[0]
    limit = mean_and_interval(np.maximum(ABSOLUTE, TIMES * ds.median_activation.astype(float)))[0]
    curves = [mean_and_interval(ds.top_activation.isel(top=i)) for i in range(ds.sizes["top"])]
    mean, low, high = curves[0]
    names = []
    if np.isfinite(low).any():
        edge = {"x": depth, "mode": "lines", "line_width": 0, "hoverinfo": "skip", "showlegend": False}
        fig.add_trace(go.Scatter(y=low, **edge), row=1, col=1)
        fig.add_trace(
            go.Scatter(y=high, fill="tonexty", fillcolor=faded(PALETTE[0], 0.22), **edge), row=1, col=1
        )
    mode = "lines+markers" if len(depth) <= MARKED else "lines"
    for i, ((mean, low, high), texts) in enumerate(zip(curves, places, strict=True)):
        name = PLACES[i] if i < len(PLACES) else f"number {i + 1}"
        between = (
            "<br>95 % interval %{customdata[2]:.4~g} to %{customdata[3]:.4~g}"
            if np.isfinite(low).any()
            else ""
        )
        fig.add_trace(
            go.Scatter(
                x=depth, y=mean, mode=mode, name=name, legendgroup=name, marker_size=6 - i,
                line={"color": PALETTE[i % len(PALETTE)], "width": 2 if i == 0 else 1.5},
                customdata=np.stack([depth, texts, low, high], 1, dtype=object, casting="unsafe").tolist(),
                hovertemplate=f"{name}, depth %{{customdata[0]}}: <b>%{{y:.4~g}}</b>{between}"
                "<br>%{customdata[1]}<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
        names.append(name)
    for name, values, dash in (
        ("median |x|", median, "solid"),
        ("massive from here on (arXiv 2402.17762)", limit, "dot"),
    ):
        fig.add_trace(
            go.Scatter(
                x=depth, y=values, mode="lines", name=name, legendgroup=name,
                line={"color": GREY, "width": 1.5, "dash": dash},
                hovertemplate=f"{name}, depth %{{x:d}}: <b>%{{y:.4~g}}</b><extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
        names.append(name)
    _dress_log(fig, [*(part for curve in curves for part in curve), median, limit])
    return names


def _dress_log(fig: Any, parts: Sequence[np.ndarray]) -> None:
    values = np.concatenate([np.asarray(part) for part in parts])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = float(np.log10(values.min())) - 0.08, float(np.log10(values.max())) + 0.08
    ticks = log_ticks(low, high)
    labels = [f"{t / 1000:g}k" if t >= 1e4 else f"{t:,.0f}" if t >= 1 else f"{t:g}" for t in ticks]
    fig.update_yaxes(
        type="log", range=[low, high], tickvals=ticks, ticktext=labels,
        title={"text": "|x| (log)", "standoff": 4}, row=1, col=1,
    )  # fmt: skip


def _add_strip(fig: Any, names: Sequence[str], shares: np.ndarray, depth: np.ndarray) -> None:
    go = require("plotly.graph_objects", extra="plots")
    rows = list(range(len(names)))
    words = [name if name == "others" else f"dimension {name}" for name in names]
    fig.add_trace(
        go.Heatmap(
            x=depth, y=rows, z=shares, zmin=0, zmax=1, colorscale=SEQUENTIAL, hoverongaps=False, ygap=1,
            colorbar=color_bar(
                fig.get_subplot(2, 1).yaxis.domain, "share of prompts", tickvals=[0, 0.5, 1],
                ticktext=["0", "0.5", "1"],
            ),
            customdata=[[word] * len(depth) for word in words],
            hovertemplate="%{customdata}, depth %{x:d}<br>among the three largest<br>"
            "in <b>%{z:.0%}</b> of prompts<extra></extra>",
        ),
        row=2, col=1,
    )  # fmt: skip
    fig.update_yaxes(
        tickvals=rows, ticktext=list(names), range=[len(names) - 0.5, -0.5], showgrid=False,
        title={"text": "dimension", "standoff": 4}, row=2, col=1,
    )  # fmt: skip
    fig.update_xaxes(showgrid=False, row=2, col=1)
