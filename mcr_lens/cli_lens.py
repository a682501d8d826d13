"""What does `mcr-lens lens` do: a model and a text in, what each depth predicts out?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcr_lens.cli_options import (
    Device,
    Dtype,
    ModelName,
    Revision,
    Served,
    make_folder,
    refuse_file,
    write_figure,
)
from mcr_lens.terminal import console, in_words

if TYPE_CHECKING:
    import xarray as xr

RESULT, PAGE = "result.nc", "lens.html"

COLUMNS = ("cross_entropy", "perplexity", "next_token_entropy", "kl_to_final", "rank", "accuracy")


def lens(
    model: ModelName,
    text: Annotated[Path, typer.Option(help="Text file; it is read as one text, in windows.")],
    out: Annotated[Path, typer.Option(help="Folder for result.nc and lens.html.")] = Path("mcr-lens-lens"),
    tuned: Annotated[
        bool, typer.Option("--tuned", help="Train a tuned lens on the first 80 % and read the rest.")
    ] = False,
    translators: Annotated[
        Path | None, typer.Option(help="A tuned lens (safetensors) that was trained already.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of training a tuned lens.")] = 500,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens read together (default: the context, up to 1,024).")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens that a window scores anew (default: half of it).")
    ] = None,
    dtype: Dtype = "float32",
    device: Device = None,
    revision: Revision = None,
    served: Served = False,
) -> None:
    """Read next-token predictions at every depth of a model: logit lens or tuned lens."""
    with in_words():
        import mcr_lens

        if tuned and translators is not None:
            raise ValueError("--tuned trains a lens and --translators names a finished one; pass one of them")
        if not text.is_file():
            raise FileNotFoundError(f"{text} is not a file")
        refuse_file(out)
        options: dict[str, Any] = {} if revision is None else {"revision": revision}
        loaded = (mcr_lens.serve if served else mcr_lens.load_model)(
            model, dtype=dtype, device=device, **options
        )
        make_folder(out)
        shared = {"window": window, "stride": stride, "progress": sys.stderr.isatty()}
        written = []
        if tuned:
            made = out / "lens.safetensors"
            ds = mcr_lens.tuned_lens(loaded, text, save=made, steps=steps, **shared)
            written.append(made)
        elif translators is not None:
            ds = mcr_lens.tuned_lens(loaded, text, translators, **shared)
        else:
            ds = mcr_lens.logit_lens(loaded, text, **shared)
        written = [mcr_lens.save(ds, out / RESULT), *written]
        written += write_figure(lambda: mcr_lens.plot_readouts(ds), out / PAGE)
        print_lens(ds)
        typer.echo(f"Written: {', '.join(map(str, written))}")


def print_lens(ds: "xr.Dataset") -> None:
    """Print a row for each depth."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mcr_lens.reading import number

    names = [name for name in (*COLUMNS, "gain") if name in ds]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for name in ("depth", *names):
        heading = Text(name.replace("_", "\n"), justify="right")  # 80 columns are enough
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for depth in ds.depth.values.tolist():
        table.add_row(str(depth), *(number(float(ds[name].sel(depth=depth))) for name in names))
    console().print(table)
    tokens = int(ds.n_scored.sum())
    typer.echo(f"{ds.attrs['task']}: {tokens:,} tokens in {ds.sizes['window']:,} windows")
