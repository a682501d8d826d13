"""What can be done from a shell: `mcr-lens demo`, `measure`, `diagnose`, `lens`, `sweep`, …?"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mcr_lens.cli_emergence import emergence
from mcr_lens.cli_lens import lens
from mcr_lens.cli_options import (
    BOS,
    BatchSize,
    Bos,
    Device,
    Dtype,
    Field,
    Limit,
    MaxLength,
    ModelName,
    Position,
    PrependBos,
    Revision,
    Served,
    make_folder,
    named_prompts,
    refuse_file,
    refuse_target,
)
from mcr_lens.cli_sweep import sweep
from mcr_lens.delivery import (
    PAGE,
    beside,
    deliver,
    look_closely,
    print_comparison,
    print_diagnosis,
    print_result,
    print_written,
    write_page,
    write_verdicts,
)
from mcr_lens.terminal import in_words, print_metrics

app: typer.Typer = typer.Typer(
    name="mcr-lens",
    help="Measure attention sinks, massive activations and compression valleys of transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
            print_metrics(rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for result.nc and report.html.")] = Path("mcr-lens-demo"),
) -> None:
    """Measure the bundled model, and again with the MLP silenced that writes the massive activation."""
    with in_words():
        import mcr_lens

        refuse_file(out)
        prompts = named_prompts(None, None)
        model = mcr_lens.load_model("demo")
        bar = sys.stderr.isatty()
        found = mcr_lens.diagnose(model, prompts, progress=bar)
        ds = found.findings.clean
        layer = mcr_lens.massive_layer(ds)
        cut = mcr_lens.zero_bos_mlp(layer)
        edited = mcr_lens.measure(model, prompts, interventions=[cut], progress=bar)
        seen = look_closely(model, prompts[0], ds, prepend_bos="auto", cut=cut)
        make_folder(out)
        written = deliver(ds, out, close_up=seen, found=found)
        print_result(ds)
        print_comparison(ds, edited, layer)
        typer.echo(f"\n{found.summary}")
        print_written(written)


@app.command()
def measure(
    model: ModelName,
    prompts: Annotated[Path, typer.Option(help="Text file with one prompt a line, or JSON Lines (.jsonl).")],
    out: Annotated[Path, typer.Option(help="Folder for result.nc and report.html.")],
    field: Field = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names or groups with commas between (default: all but those with * in `mcr-lens metrics`)."
        ),
    ] = None,
    batch_size: BatchSize = "auto",
    max_length: MaxLength = None,
    prepend_bos: PrependBos = Bos.auto,
    position: Position = 0,
    limit: Limit = None,
    dtype: Dtype = "float32",
    device: Device = None,
    revision: Revision = None,
    served: Served = False,
) -> None:
    """Measure a model on prompts from a file; write result.nc and report.html, and print a table."""
    with in_words():
        import mcr_lens

        wanted, size = _names(metrics), _batch_size(batch_size)
        texts = named_prompts(prompts, field)[:limit]
        refuse_file(out)
        loaded = (mcr_lens.serve if served else mcr_lens.load_model)(
            model, dtype=dtype, device=device, revision=revision
        )
        ds = mcr_lens.measure(
            loaded, texts, wanted, batch_size=size, max_length=max_length,
            prepend_bos=BOS[prepend_bos], position=position,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        seen = look_closely(loaded, texts[0], ds, prepend_bos=BOS[prepend_bos])
        make_folder(out)
        written = deliver(ds, out, close_up=seen)
        print_result(ds)
        print_written(written)


@app.command()
def diagnose(
    model: ModelName,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file with one prompt a line, or JSON Lines (default: 16 sentences)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for result.nc and report.html.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for the verdicts as JSON.")] = None,
    field: Field = None,
    batch_size: BatchSize = "auto",
    max_length: MaxLength = None,
    prepend_bos: PrependBos = Bos.auto,
    position: Position = 0,
    limit: Limit = None,
    ratio: Annotated[float, typer.Option(help="A row is massive from this norm ratio on.")] = 10.0,
    threshold: Annotated[float, typer.Option(help="A head is a sink from this mean attention on.")] = 0.3,
    valley: Annotated[float, typer.Option(help="A valley is this deep, in normalised entropy.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the controls.")] = 0,
    dtype: Dtype = "float32",
    device: Device = None,
    revision: Revision = None,
    served: Served = False,
) -> None:
    """Ask whether the paper's claim holds in a model: ablations with controls, and a verdict on each part."""
    with in_words():
        import mcr_lens

        size = _batch_size(batch_size)
        texts = named_prompts(prompts, field)[:limit]
        if out is not None:
            refuse_file(out)
        if as_json is not None:
            refuse_target(as_json)
        loaded = (mcr_lens.serve if served else mcr_lens.load_model)(
            model, dtype=dtype, device=device, revision=revision
        )
        found = mcr_lens.diagnose(
            loaded, texts, ratio=ratio, threshold=threshold, valley=valley, seed=seed, batch_size=size,
            max_length=max_length, prepend_bos=BOS[prepend_bos], position=position,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        print_diagnosis(found)
        written = []
        if out is not None:
            ds, layers = found.findings.clean, found.findings.cut_layers
            cut = mcr_lens.zero_ablation("mlp_out", layers=layers, positions=position) if layers else None
            seen = look_closely(loaded, texts[0], ds, prepend_bos=BOS[prepend_bos], cut=cut)
            make_folder(out)
            written += deliver(ds, out, close_up=seen, found=found)
        if as_json is not None:
            written.append(write_verdicts(found, as_json))
        print_written(written)


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="A result.nc that measure or diagnose wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html.")],
) -> None:
    """Write the page of a result anew, with what lies beside it: ablations, verdicts, a prompt close by."""
    with in_words():
        import mcr_lens

        ds = mcr_lens.load(result)
        make_folder(out)
        parts = beside(ds, result.parent)
        page = write_page(ds, out / PAGE, parts)
        if page is None:
            raise typer.Exit(1)
        print_written([page])


@app.command()
def inspect(
    model: ModelName,
    dtype: Dtype = "float32",
    device: Device = None,
    revision: Revision = None,
    served: Served = False,
) -> None:
    """Say what can be measured in a model, and what to know before believing it."""
    with in_words():
        import mcr_lens

        loaded = (mcr_lens.serve if served else mcr_lens.load_model)(
            model, dtype=dtype, device=device, revision=revision
        )
        seen = mcr_lens.inspect_model(loaded)
        typer.echo(str(seen))
        if not seen.supported:
            raise typer.Exit(1)


app.command()(sweep)
app.command()(emergence)
app.command()(lens)


def _names(given: str | None) -> list[str] | None:
    """Metrics by name, looked up at once: a misspelt one should not cost the time to load a model."""
    from mcr_lens.metrics._registry import select

    names = None if given is None else [name.strip() for name in given.split(",") if name.strip()]
    select(names)
    return names


def _batch_size(given: str) -> Any:
    if given == "auto":
        return given
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"--batch-size {given}: pass a positive number or auto")
    return int(given)
