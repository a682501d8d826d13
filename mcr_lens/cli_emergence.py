"""What does `mcr-lens emergence` do: the checkpoints of a training in, a table, a result and a figure out?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcr_lens.cli_options import (
    Device,
    Dtype,
    Field,
    Limit,
    MaxLength,
    Served,
    make_folder,
    named_prompts,
    refuse_file,
    write_figure,
)
from mcr_lens.terminal import console, in_words

if TYPE_CHECKING:
    import xarray as xr

RESULT, PAGE = "result.nc", "emergence.html"

DIGITS = {"step": 0, "ratio": -1, "ratio at": 0, "entropy at": 0, "loss": -3}
"""Decimals of a column, as `number` takes them, where it is not two; 0: whole numbers."""


def emergence(
    checkpoints: Annotated[
        str, typer.Argument(help="Folder that holds step500, … or checkpoint-500, …; or a hub name.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file with one prompt a line, or JSON Lines (default: 16 sentences)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for result.nc and emergence.html.")] = Path(
        "mcr-lens-emergence"
    ),
    revisions: Annotated[
        str | None, typer.Option(help="Of a hub name, with commas between: step1,step1000,step143000.")
    ] = None,
    field: Field = None,
    limit: Limit = None,
    max_length: MaxLength = None,
    dtype: Dtype = "float32",
    device: Device = None,
    served: Served = False,
) -> None:
    """Measure the checkpoints of a training: when do spike, valley and sinks appear?"""
    with in_words():
        import mcr_lens

        texts = named_prompts(prompts, field)[:limit]
        named = None if revisions is None else [name.strip() for name in revisions.split(",") if name.strip()]
        refuse_file(out)
        ds = mcr_lens.emergence(
            checkpoints, texts, revisions=named, served=served, max_length=max_length, dtype=dtype,
            device=device, progress=sys.stderr.isatty(),
        )  # fmt: skip
        make_folder(out)
        written = [mcr_lens.save(ds, out / RESULT)]
        written += write_figure(lambda: mcr_lens.plot_emergence(ds), out / PAGE)
        print_emergence(ds)
        typer.echo(f"Written: {', '.join(map(str, written))}")


def print_emergence(ds: "xr.Dataset") -> None:
    """Print a row for each checkpoint, and from which step on what is there."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mcr_lens.growth import emergence_steps, emergence_table, in_sentences

    rows, digits = emergence_table(ds), DIGITS
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for name in rows.columns:
        heading = Text(str(name).replace(" ", "\n"), justify="right")  # 80 columns are enough
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for row in rows.to_dict("records"):
        table.add_row(*(_number(float(value), digits.get(str(name), -2)) for name, value in row.items()))
    console().print(table)
    for line in in_sentences(emergence_steps(ds)):
        typer.echo(line)


def _number(value: float, digits: int) -> str:
    from mcr_lens.reading import number

    return number(value, digits) if digits or value != value else f"{value:,.0f}"
