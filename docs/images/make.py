"""Make the pictures of this folder, small enough for a repository.

python docs/images/make.py       every figure for the bundled model
python docs/images/make.py 32    sheets with all of them, for a planted model of 32 layers (or 80)

Needs `pip install kaleido pillow`, and Chrome or Chromium. The figures are those of examples/make_figures.py.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import mcr_lens as mcr
from mcr_lens.testing import Massive, Sinks, plant
from PIL import Image
from transformers import AutoTokenizer

HERE = Path(__file__).parent
WIDTH, COLORS = 900, 256
PLANTED = {32: 32, 80: 64}
"""Layers and heads of the models on the sheets, as in models of 8 and 70 billion parameters."""
SHEETS = (
    ("profile", "sink_curves", "dose_response", "readouts"),
    ("several", "massive_dimensions", "complexity"),
    ("heads", "token_norms", "pattern"),
    ("attention_shares", "bounds", "comparison"),
)
"""What stands together: heat maps would take the lines' share of the few colours."""
COLUMNS, SHRUNK = 3, 300
"""Columns of a sheet, and pixels of a figure across."""


def picture(fig: Any, width: int = WIDTH) -> Image.Image:
    """A figure as an image."""
    return Image.open(io.BytesIO(fig.to_image("png", width=width))).convert("RGB")


def save(image: Image.Image, name: str) -> None:
    """Write an image with few colours, which is what makes it small."""
    path = HERE / f"{name}.png"
    image.quantize(COLORS, kmeans=3, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    print(
        f"{path.name}: {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB"
    )


def planted(layers: int, prompts: list[str]) -> tuple[Any, list[str]]:
    """A random model with a massive activation and sinks in its weights, and prompts that it takes."""
    heads = PLANTED[layers]
    many, some = range(heads * 3 // 5), range(heads * 3 // 5, heads * 4 // 5)
    model = plant(
        "llama3",
        Massive(2, ratio=300.0, removed_by=layers - 3),
        Sinks(tuple(range(4, layers - 5)), tuple(many)),
        Sinks(tuple(range(8, layers - 10)), tuple(some), attention=0.5),
        layers=layers,
        width=8 * heads,
        heads=heads,
    )
    tokenizer = AutoTokenizer.from_pretrained(Path(mcr.__file__).parent / "demo")
    return mcr.load_model(model, tokenizer=tokenizer), [
        prompt[:44] for prompt in prompts[:12]
    ]


def sheet(figures: list[Any]) -> Image.Image:
    """Figures on one image, each in the column that is shortest so far."""
    columns: list[list[Image.Image]] = [[] for _ in range(COLUMNS)]
    for fig in figures:
        large = picture(fig, 2 * SHRUNK)
        small = large.resize(
            (SHRUNK, large.height * SHRUNK // large.width), Image.Resampling.LANCZOS
        )
        min(columns, key=lambda column: sum(image.height for image in column)).append(
            small
        )
    height = max(sum(image.height for image in column) for column in columns)
    made = Image.new("RGB", (COLUMNS * SHRUNK, height), "white")
    for number, column in enumerate(columns):
        top = 0
        for image in column:
            made.paste(image, (number * SHRUNK, top))
            top += image.height
    return made


def main(layers: int | None = None) -> None:
    """Every figure for the bundled model, or sheets of them for a planted one."""
    sys.path.insert(0, str(HERE.parents[1] / "examples"))
    from make_figures import PROMPTS, figures

    if layers is None:
        for name, fig in figures(mcr.load_model("demo"), PROMPTS).items():
            save(picture(fig), f"demo_{name}")
        return
    model, prompts = planted(layers, PROMPTS)
    made = figures(model, prompts, prompts[0])
    for number, names in enumerate(SHEETS, start=1):
        save(sheet([made[name] for name in names]), f"sheet_{layers}_layers_{number}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("layers", type=int, choices=PLANTED, nargs="?")
    main(parser.parse_args().layers)
