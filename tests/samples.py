"""Numbers of prompts to take means of, and the bounds that were found, as one array."""

import numpy as np
import xarray as xr

BOUNDS = ["mean", "low", "high"]


def sample(n=24, layers=3, heads=2, *, seed=0, **coords):
    """Skewed numbers [prompt, layer, head]."""
    values = np.random.default_rng(seed).lognormal(0, 0.5, (n, layers, heads))
    about = {"units": "1", "long_name": "Score", "source": "here"}
    array = xr.DataArray(values, dims=("prompt", "layer", "head"), attrs=about, name="score")
    return array.assign_coords(layer=range(layers), **coords)


def numbers(ds):
    """Mean, low and high of an interval."""
    return np.stack([ds[name].values for name in BOUNDS])
