"""Watch spike, valley and sinks grow: train the bundled model from its seed and measure its checkpoints.

    python examples/emergence.py --out emergence-201            # trains: half an hour on one core
    python examples/emergence.py --out emergence-201 --checkpoints demo-201/checkpoints

Writes result.nc, emergence.html and emergence.md (the table it prints) into the folder, and with
`--image png` a picture, which needs `pip install kaleido` and Chrome or Chromium.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import mcr_lens as mcr
from mcr_lens.growth import emergence_table, in_sentences

PROMPTS = (Path(mcr.__file__).parent / "demo" / "prompts.txt").read_text("utf-8").splitlines()
EVERY = 500  # training steps between two checkpoints


def trained(out: Path, recipe: Any = None, every: int = EVERY) -> Path:
    """Train the model of examples/train_demo.py, on one thread, and say where its checkpoints are."""
    sys.path.insert(0, str(Path(__file__).parent))
    from train_demo import Recipe, train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more, and sums are rounded otherwise: another model
    try:
        train(Recipe() if recipe is None else recipe, out, every)
    finally:
        torch.set_num_threads(threads)
    return out / "checkpoints"


def as_text(table: pd.DataFrame, lines: list[str]) -> str:
    """A table in Markdown, and what was found, below it."""
    digits = {"step": 0, "ratio": 1, "ratio at": 0, "entropy at": 0, "loss": 3}
    rows = [
        [f"{value:,.{digits.get(name, 2)}f}" for name, value in row.items()]
        for row in table.to_dict("records")
    ]
    cells = [list(table.columns), ["---:"] * len(table.columns), *rows]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in cells), "", *(f"- {line}" for line in lines)])


def main(
    out: Path,
    checkpoints: Path | None = None,
    recipe: Any = None,
    every: int = EVERY,
    image: str | None = None,
) -> str:
    """Measure every checkpoint of a training and write what was found."""
    out.mkdir(parents=True, exist_ok=True)
    folder = trained(out, recipe, every) if checkpoints is None else checkpoints
    ds = mcr.emergence(folder, PROMPTS, progress=sys.stderr.isatty())
    mcr.save(ds, out / "result.nc")
    text = as_text(emergence_table(ds), in_sentences(mcr.emergence_steps(ds)))
    (out / "emergence.md").write_text(text + "\n", encoding="utf-8")
    fig = mcr.plot_emergence(ds)
    fig.write_html(out / "emergence.html")
    if image is not None:
        fig.write_image(out / f"emergence.{image}", width=900)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--checkpoints", type=Path, help="of a training that has been done already")
    parser.add_argument("--every", type=int, default=EVERY, help="training steps between two checkpoints")
    parser.add_argument("--image", choices=["svg", "png"], help="write a picture too")
    print(main(**vars(parser.parse_args())))
