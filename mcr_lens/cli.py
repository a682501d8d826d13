"""What can be done from a shell: `mcr-lens demo`, `measure`, `inspect`, `metrics` and `version`?"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcr_lens.terminal import console, in_words, print_profile, say, sentence

if TYPE_CHECKING:
    import xarray as xr

app = typer.Typer(
    name="mcr-lens",
    help="Measure attention sinks, massive activations and compression valleys of transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEMO_PROMPTS = "demo/prompts.txt"

ModelName = Annotated[str, typer.Argument(help='Hugging Face name, local folder, or "demo".')]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, … (default: a GPU where there is one).")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]


class Bos(StrEnum):
    """Whether to put BOS in front of every prompt."""

    auto = "auto"
    yes = "yes"
    no = "no"


def _show_version(wanted: bool) -> bool:
    if wanted:
        version()
        raise typer.Exit
    return wanted


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Measure attention sinks, massive activations and compression valleys of transformers."""


@app.command()
def version() -> None:
    """Show the version."""
    from mcr_lens import __version__

    typer.echo(f"mcr-lens {__version__}")


@app.command()
def metrics(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List everything that can be measured, with axes, units and source."""
    with in_words():
        from mcr_lens.metrics import list_metrics

        rows = [
            {"name": m.name, "axes": list(m.axes), "units": m.units, "description": m.label,
             "source": m.source, "group": m.group, "default": m.default}
            for m in list_metrics()
        ]  # fmt: skip
        if as_json:
            typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        else:
            _print_metrics(rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for result.nc and report.html.")] = Path("mcr-lens-demo"),
) -> None:
    """Measure the bundled model, then again with the MLP silenced that writes the massive activation."""
    with in_words():
        from importlib.resources import as_file, files

        import mcr_lens
        from mcr_lens.prompt_files import read_prompt_file

        _make_folder(out)
        with as_file(files("mcr_lens").joinpath(DEMO_PROMPTS)) as bundled:
            prompts, _ = read_prompt_file(bundled)
        model = mcr_lens.load_model("demo")
        bar = sys.stderr.isatty()
        ds = mcr_lens.measure(model, prompts, progress=bar)
        _deliver(ds, out)
        culprit = mcr_lens.massive_layer(ds)
        cut = mcr_lens.zero_bos_mlp(culprit)
        edited = mcr_lens.measure(model, prompts, interventions=[cut], progress=bar)
        _print_comparison(ds, edited, culprit)


@app.command()
def measure(
    model: ModelName,
    prompts: Annotated[Path, typer.Option(help="Text file with one prompt a line, or JSON Lines (.jsonl).")],
    out: Annotated[Path, typer.Option(help="Folder for result.nc and report.html.")],
    field: Annotated[
        str | None, typer.Option(help="Field of the JSON Lines that holds the text (default: text).")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names or groups with commas between (default: all but those with * in `mcr-lens metrics`)."
        ),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Prompts that run together, or auto.")] = "auto",
    max_length: Annotated[int | None, typer.Option(min=1, help="Cut prompts to so many tokens.")] = None,
    prepend_bos: Annotated[
        Bos, typer.Option(help="Put BOS first; auto: the tokenizer's own BOS where it has one.")
    ] = Bos.auto,
    position: Annotated[
        int, typer.Option(min=0, help="The token to take for BOS, counted from 0 at the first token.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many prompts.")] = None,
    dtype: Dtype = "float32",
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Measure a model on prompts from a file; write result.nc and report.html, and print a table."""
    with in_words():
        import mcr_lens

        wanted, size = _names(metrics), _batch_size(batch_size)
        texts = _texts(prompts, field)[:limit]
        _make_folder(out)
        loaded = mcr_lens.load_model(model, dtype=dtype, device=device, revision=revision)
        ds = mcr_lens.measure(
            loaded, texts, wanted, batch_size=size, max_length=max_length,
            prepend_bos={"yes": True, "no": False}.get(prepend_bos.value, "auto"), position=position,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        _deliver(ds, out)


@app.command()
def inspect(
    model: ModelName,
    dtype: Dtype = "float32",
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Say what can be measured in a model, and what to know before believing it."""
    with in_words():
        import mcr_lens

        loaded = mcr_lens.load_model(model, dtype=dtype, device=device, revision=revision)
        seen = mcr_lens.inspect_model(loaded)
        typer.echo(str(seen))
        if not seen.supported:
            raise typer.Exit(1)


def _names(given: str | None) -> list[str] | None:
    """Metrics by name, looked up at once: a misspelt one should not cost the time to load a model."""
    from mcr_lens.metrics._registry import select

    names = None if given is None else [name.strip() for name in given.split(",") if name.strip()]
    select(names)
    return names


def _texts(prompts: Path, field: str | None) -> list[str]:
    from mcr_lens.prompt_files import read_prompt_file

    texts, blank = read_prompt_file(prompts, field)
    if blank:
        say(f"note: {blank} blank line{'s' if blank > 1 else ''} of {prompts} skipped")
    return texts


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder with --out")
    out.mkdir(parents=True, exist_ok=True)


def _batch_size(given: str) -> Any:
    if given == "auto":
        return given
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"--batch-size {given}: pass a positive number or auto")
    return int(given)


def _deliver(ds: "xr.Dataset", out: Path) -> None:
    """Write the files, print the table and the words, and say where the files are."""
    import mcr_lens
    from mcr_lens.reading import reading
    from mcr_lens.results import ResultSchemaError

    written = [mcr_lens.save(ds, out / "result.nc")]
    page = out / "report.html"
    try:
        written.append(mcr_lens.write_report(ds, page))
    except (ImportError, ValueError) as error:
        old = f" ({page} is from an earlier run)" if page.exists() else ""
        say(f"note: no report was written: {sentence(error)}{old}")
    try:
        print_profile(ds)
    except ResultSchemaError as error:
        say(f"note: no table: {sentence(error)}")
    for line in reading(ds):
        typer.echo(line)
    typer.echo(f"Written: {', '.join(str(path) for path in written)}")


def _print_comparison(before: "xr.Dataset", after: "xr.Dataset", layer: int) -> None:
    """The causal check as numbers: ratio, entropy and sinks, before and after."""
    from mcr_lens.reading import SINK_LAYER, extremes, number, subject

    old = extremes(before)
    new = extremes(after, old.depth)
    name, layers = subject(before), before.attrs["n_layers"]
    typer.echo(f"\nCausal check: the same prompts, with the MLP of block {layer} writing nothing at {name}.")
    typer.echo(f"  largest norm ratio: {number(old.ratio)} before, {number(new.ratio)} after")
    typer.echo(
        f"  normalised entropy at depth {old.depth}, the lowest before: {number(old.entropy)} before, "
        f"{number(new.entropy)} after"
    )
    typer.echo(
        f"  layers with a sink rate of {SINK_LAYER:g} or more: {old.sink_layers} of {layers} before, "
        f"{new.sink_layers} of {layers} after"
    )


def _print_metrics(rows: list[dict[str, Any]]) -> None:
    """Five columns where they fit, otherwise axes and units below the name and the source below the text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    wide = out.width >= 130
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, show_lines=False)
    headings = ("name", "axes", "units", "description", "source")
    for heading in headings if wide else ("name, axes, units", "description, source"):
        table.add_column(heading, no_wrap=heading.startswith("name"))
    for row in rows:
        name = row["name"] if row["default"] else f"{row['name']} *"
        axes, source = Text(" ".join(row["axes"]), style="dim"), Text(row["source"], style="dim")
        if wide:
            table.add_row(name, axes, row["units"], Text(row["description"]), source)
        else:
            below = Text(f"  {axes} [{row['units']}]", style="dim")
            table.add_row(Text(f"{name}\n").append(below), Text(f"{row['description']}\n").append(source))
    out.print(table)
    out.print(Text("* measured only when named"))
