"""Which numbers of a result tell its phases apart, and from which depths?"""

import warnings

import numpy as np
import xarray as xr

from mcr_lens.schema import ResultSchemaError, require_single
from mcr_lens.segments import Curve, Segments, segment
from mcr_lens.summaries import ShortPromptWarning, normalized_entropy, sink_rate

ENTROPY, RATIO, SINKS, MIXING = "normalized_entropy", "massive_activation_ratio", "sink_rate", "mixing_score"

SUPPORT = 0.25
"""Weight of sink rate and mixing score beside entropy and ratio: they settle what those leave open."""

STEP = 0.1
"""The smallest step of sink rate and mixing score, both between 0 and 1."""


def check(ds: xr.Dataset) -> int:
    """How many depths a result has, if phases can be looked for in it.

    Raises:
        ResultSchemaError: not a result, no prompts, neither entropy nor ratio, an axis `condition`, or depths
            that do not count from 0.
        ValueError: fewer than three depths.

    Source: this library.
    """
    require_single(ds)
    if "matrix_entropy" not in ds and RATIO not in ds:
        raise ResultSchemaError(
            "the result has neither matrix_entropy nor massive_activation_ratio; measure again with metrics "
            "that include one of them"
        )
    depths = ds.sizes.get("depth", 0)
    if "depth" in ds.coords and ds.depth.values.tolist() != list(range(depths)):
        raise ResultSchemaError(
            "phases need every depth from 0 on; select none, or leave out last ones with "
            "ds.isel(depth=slice(None, -1))"
        )
    if depths < 3:
        raise ValueError(f"{depths} depths: three phases need at least three; measure a model of two blocks")
    return depths


def signals_that_decide(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Normalised entropy and −ln(massive activation ratio), by prompt and depth: low when it compresses.

    Ratios below 1 count as 1.

    Raises:
        ValueError: a prompt with a number that is not finite.

    Source: arXiv 2510.06477 (signals); the logarithm is this library's.
    """
    found: dict[str, np.ndarray] = {}
    if "matrix_entropy" in ds:
        found[ENTROPY] = normalized_entropy(ds).values.astype(float)
    if RATIO in ds:
        times = ds[RATIO].transpose("prompt", "depth").values.astype(float)
        found[RATIO] = -np.log(np.maximum(times, 1.0))  # a BOS shorter than the others is not less massive
    for name, values in found.items():
        if not np.isfinite(values).all():
            prompt, depth = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise ValueError(
                f"{name} of prompt {ds.prompt.values[prompt]} is not a finite number at depth {depth}; leave "
                "such prompts out, for example with ds.isel(prompt=ds.n_tokens.values > 1) if they have one "
                "token"
            )
    return found


def signals_that_support(ds: xr.Dataset, threshold: float, remarks: list[str]) -> dict[str, Curve]:
    """−sink rate and mixing score, by prompt and the depth that the layer reads; the last depth has none.

    What cannot be used is named in `remarks`.

    Source: arXiv 2510.06477 (signals).
    """
    depths = ds.sizes["depth"]
    found: dict[str, xr.DataArray] = {}
    if "sink_score" in ds:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", ShortPromptWarning)
                found[SINKS] = -sink_rate(ds, threshold)
        except ShortPromptWarning as short:
            remarks.append(f"{SINKS} was left out: {short}")
    if MIXING in ds:
        found[MIXING] = ds[MIXING].mean("head", skipna=False)
    curves: dict[str, Curve] = {}
    for name, array in found.items():
        layers = array.transpose("prompt", "layer").values[:, :depths]
        values = np.full((ds.sizes["prompt"], depths), np.nan)
        values[:, : layers.shape[1]] = layers
        seen = ~np.isnan(np.where(np.isfinite(values), values, np.nan).sum(0))
        missing = np.flatnonzero(~seen[: layers.shape[1]]).tolist()
        if missing:
            remarks.append(f"{name} is not finite in layers {missing} of some prompts: left out there")
        if seen.sum() >= 3:
            curves[name] = Curve(values, seen, SUPPORT, decides=False)
        else:
            remarks.append(f"{name} was left out: fewer than three layers have it")
    return curves


def segment_seen(curve: Curve) -> Segments:
    """What a supporting signal says alone, in depths: points that are missing take no part.

    Source: this library.
    """
    where = np.flatnonzero(curve.seen)
    found = segment(curve.values[:, where], smallest=STEP)
    if found.start is None or found.stop is None:
        return found
    stop = int(where[found.stop]) if found.stop < len(where) else int(where[-1]) + 1
    return Segments(found.shape, int(where[found.start]), stop, found.levels)
