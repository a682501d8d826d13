"""Write the numbers of the demo model's card: the shipped model in full, every trained seed in one row.

python examples/demo_card.py mcr_lens/demo seed-1 seed-2 seed-3 > tables.md
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr

import mcr_lens as mcr
from mcr_lens.models import demo_folder

METRICS = ["default", "loss"]


def prompts() -> list[str]:
    """The prompts that come with the model: none of it was trained on."""
    return (demo_folder() / "prompts.txt").read_text().splitlines()


def row(name: object, values: Iterable[float], digits: int = 2) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join([str(name), *(f"{v:.{digits}f}" for v in values)]) + " |"


def header(first: str, names: Iterable[object]) -> list[str]:
    """The two lines that open a Markdown table."""
    cells = [first, *map(str, names)]
    return ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def mean(array: xr.DataArray) -> np.ndarray:
    """Mean over prompts, and over heads where there are any."""
    return array.mean([axis for axis in ("prompt", "head") if axis in array.dims]).values


def profile(clean: xr.Dataset, cut: xr.Dataset) -> list[str]:
    """The shipped model by depth and by block, before and after the ablation."""
    lines = header("by depth", clean.depth.values)
    for name, ds in (("clean", clean), ("cut", cut)):
        lines += [
            row(f"BOS norm, {name}", mean(ds.bos_norm), 1),
            row(f"ratio, {name}", mean(ds.massive_activation_ratio), 1),
            row(f"entropy / ln min(T, d), {name}", mean(mcr.normalized_entropy(ds))),
        ]
    without = mcr.normalized_entropy(clean, variable="matrix_entropy_without_bos")
    theory = mcr.bounds(clean)
    lines += [
        row("entropy without the BOS row, clean", mean(without)),
        row("highest entropy that Theorem 1 allows, clean", mean(theory.normalized_entropy_upper_bound)),
        row("slack of that bound in nats, clean", mean(theory.entropy_upper_slack)),
        row("anisotropy p₁, clean", mean(clean.anisotropy), 3),
        row("lowest p₁ that Theorem 1 allows, clean", mean(theory.anisotropy_lower_bound), 3),
        "",
    ]
    lines += header("by block", clean.layer.values)
    for name, ds in (("clean", clean), ("cut", cut)):
        lines += [
            row(f"sink rate (τ = 0.3), {name}", mean(mcr.sink_rate(ds))),
            row(f"sink score, {name}", mean(ds.sink_score)),
        ]
    lines += [
        row("MLP write at BOS, clean", mean(clean.mlp_bos_norm), 1),
        row("attention write at BOS, clean", mean(clean.attn_bos_norm), 1),
        row("value drain, clean", mean(clean.value_drain)),
    ]
    return lines


def seed_line(folder: Path) -> str:
    """One trained model in one row: its largest ratio, entropy there and later, sinks, loss."""
    recipe = json.loads((folder / "training.json").read_text())["recipe"]
    ds = mcr.measure(mcr.load_model(folder, verbose=False), prompts(), METRICS, progress=False)
    ratio, entropy = mean(ds.massive_activation_ratio), mean(mcr.normalized_entropy(ds))
    peak = int(ratio.argmax())
    rates = " ".join(f"{rate:.2f}" for rate in mean(mcr.sink_rate(ds)))
    cells = [
        str(recipe["seed"]),
        f"{recipe['markov_steps']} + {recipe['text_steps']}",
        f"{ratio[peak]:.1f} at {peak}",
        f"{entropy[peak]:.2f}",
        f"{entropy[peak:-1].max():.2f}",
        rates,
        f"{ds.next_token_loss.mean().item():.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main(shipped: Path, others: list[Path]) -> str:
    """All tables of the card as Markdown."""
    model = mcr.load_model(shipped, verbose=False)
    clean = mcr.measure(model, prompts(), METRICS, progress=False)
    layer = mcr.massive_layer(clean)
    edit = mcr.zero_bos_mlp(layer)
    cut = mcr.measure(model, prompts(), METRICS, interventions=[edit], progress=False)
    share = mcr.mlp_write_share(clean).sel(layer=layer).mean().item()
    loss = [ds.next_token_loss.mean().item() for ds in (clean, cut)]
    lines = [
        f"Block {layer} makes BOS stand out; its MLP does {share:.0%} of the writing there. `cut` is the "
        f"same model with the MLP output of block {layer} set to zero at BOS. Loss per character: "
        f"{loss[0]:.3f} clean, {loss[1]:.3f} cut.",
        "",
        *profile(clean, cut),
        "",
        *header(
            "seed", ["steps", "largest ratio at depth", "H there", "highest H later", "sink rate", "loss"]
        ),
        *(seed_line(folder) for folder in [shipped, *others]),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shipped", type=Path)
    parser.add_argument("others", type=Path, nargs="*")
    given = parser.parse_args()
    print(main(given.shipped, given.others), end="")
