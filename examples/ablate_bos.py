"""Zero the MLP output at BOS where the massive activation is written, beside controls that should do nothing.

python examples/ablate_bos.py demo prompts.txt
"""

import argparse
from pathlib import Path
from typing import Any

import xarray as xr

import mcr_lens as mcr


def main(model: Any, prompts: list[str]) -> xr.Dataset:
    """The paper's ablation on one model: ratio, entropy, sinks and loss in every condition."""
    bridge = mcr.load_model(model) if isinstance(model, str) else model
    clean = mcr.measure(bridge, prompts)
    layer = mcr.massive_layer(clean)
    cut = mcr.zero_bos_mlp(layer)
    ds = mcr.compare(bridge, prompts, {"clean": [], "cut": cut, **mcr.matched_controls(cut, clean)})
    behind = ds.sel(depth=layer + 1)
    table = xr.Dataset(
        {
            "ratio": behind.massive_activation_ratio.mean("prompt"),
            "entropy": mcr.normalized_entropy(ds).sel(depth=layer + 1).mean("prompt"),
            "sink_rate": mcr.sink_rate(ds).mean(["prompt", "layer"]),
            "loss": ds.next_token_loss.mean("prompt"),
            "kl": ds.kl_divergence.mean("prompt"),
        }
    )
    print(f"The MLP of block {layer}, at BOS; ratio and entropy at depth {layer + 1}, where it writes:")
    print(table.reset_coords(drop=True).to_dataframe().round(3))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="hub name, local folder, or 'demo'")
    parser.add_argument("prompts", type=Path)
    given = parser.parse_args()
    main(given.model, given.prompts.read_text().splitlines())
