"""Measure any causal language model on a text file, one prompt a line, and keep the numbers.

python examples/measure_model.py EleutherAI/pythia-410m prompts.txt result.nc
"""

import argparse
from pathlib import Path
from typing import Any

import xarray as xr

import mcr_lens as mcr


def main(model: Any, prompts: list[str], out: Path | None = None) -> xr.Dataset:
    """Measure, save, and print the profile that the paper's first figure shows."""
    bridge = mcr.load_model(model) if isinstance(model, str) else model
    ds = mcr.measure(bridge, prompts)
    profile = xr.Dataset({"ratio": ds.massive_activation_ratio, "entropy": mcr.normalized_entropy(ds)}).mean(
        "prompt"
    )
    print(profile.to_dataframe().round(2))
    print(mcr.sink_rate(ds, threshold=0.3).mean("prompt").to_series().round(2))
    if out is not None:
        print("saved", mcr.save(ds, out))
    return ds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="hub name, local folder, or 'demo'")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    given = parser.parse_args()
    main(given.model, given.prompts.read_text().splitlines(), given.out)
