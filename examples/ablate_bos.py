"""Zero the MLP output at BOS where the massive activation is written, and see what follows.

python examples/ablate_bos.py demo prompts.txt
"""

import argparse
from pathlib import Path
from typing import Any

import xarray as xr

import mcr_lens as mcr


def main(model: Any, prompts: list[str]) -> xr.Dataset:
    """The paper's ablation on one model: ratio, entropy, sinks and loss, before and after."""
    bridge = mcr.load_model(model) if isinstance(model, str) else model
    metrics = ["default", "loss"]
    before = mcr.measure(bridge, prompts, metrics)
    layer = mcr.massive_layer(before)
    after = mcr.measure(bridge, prompts, metrics, interventions=[mcr.zero_bos_mlp(layer)])
    depth = layer + 1
    both = xr.concat(
        [
            xr.Dataset(
                {
                    "ratio": ds.massive_activation_ratio.sel(depth=depth).mean("prompt"),
                    "entropy": mcr.normalized_entropy(ds).sel(depth=depth).mean("prompt"),
                    "sink_rate": mcr.sink_rate(ds).mean("prompt"),
                    "loss": ds.next_token_loss.mean("prompt"),
                }
            )
            for ds in (before, after)
        ],
        dim=xr.DataArray(["clean", f"MLP {layer} zeroed at BOS"], dims="condition", name="condition"),
    )
    print(both[["ratio", "entropy", "loss"]].to_dataframe().round(3))
    print(both.sink_rate.to_series().unstack("condition").round(2))
    return both


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="hub name, local folder, or 'demo'")
    parser.add_argument("prompts", type=Path)
    given = parser.parse_args()
    main(given.model, given.prompts.read_text().splitlines())
