"""What can be done from a shell: `mcr-lens demo`, `measure`, `diagnose`, `sweep`, `emergence`, …?"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mcr_lens.cli_emergence import emergence
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
from mcr_lens.terminal import in_words, print_metrics, say

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
Served = Annotated[
    bool, typer.Option("--served", help="As transformers serves it, with its fast attention: no bridge.")
]


class Bos(StrEnum):
    """Whether to put BOS in front of every prompt."""

    auto = "auto"
    yes = "yes"
    no = "no"


BOS: dict[Bos, Any] = {Bos.auto: "auto", Bos.yes: True, Bos.no: False}

Field = Annotated[
    str | None, typer.Option(help="Field of the JSON Lines that holds the text (default: text).")
]
BatchSize = Annotated[str, typer.Option(help="Prompts that run together, or auto.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Cut prompts to so many tokens.")]
PrependBos = Annotated[
    Bos, typer.Option(help="Put BOS first; auto: the tokenizer's own BOS where it has one.")
]
Position = Annotated[
    int, typer.Option(min=0, help="The token to take for BOS, counted from 0 at the first token.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many prompts.")]


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

        _make_folder(out)
        prompts = _bundled_prompts()
        model = mcr_lens.load_model("demo")
        bar = sys.stderr.isatty()
        found = mcr_lens.diagnose(model, prompts, progress=bar)
        ds = found.findings.clean
        layer = mcr_lens.massive_layer(ds)
        cut = mcr_lens.zero_bos_mlp(layer)
        edited = mcr_lens.measure(model, prompts, interventions=[cut], progress=bar)
        seen = look_closely(model, prompts[0], ds, prepend_bos="auto", cut=cut)
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
        texts = _texts(prompts, field)[:limit]
        _make_folder(out)
        loaded = (mcr_lens.serve if served else mcr_lens.load_model)(
            model, dtype=dtype, device=device, revision=revision
        )
        ds = mcr_lens.measure(
            loaded, texts, wanted, batch_size=size, max_length=max_length,
            prepend_bos=BOS[prepend_bos], position=position,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        seen = look_closely(loaded, texts[0], ds, prepend_bos=BOS[prepend_bos])
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
        texts = (_bundled_prompts() if prompts is None else _texts(prompts, field))[:limit]
        if out is not None:
            _make_folder(out)
        if as_json is not None and not as_json.parent.is_dir():
            raise FileNotFoundError(f"{as_json.parent} is not a folder; create it first")
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
        _make_folder(out)
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


def _bundled_prompts() -> list[str]:
    from importlib.resources import as_file, files

    from mcr_lens.prompt_files import read_prompt_file

    with as_file(files("mcr_lens").joinpath(DEMO_PROMPTS)) as bundled:
        return read_prompt_file(bundled)[0]


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
