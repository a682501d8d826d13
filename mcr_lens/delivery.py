"""What does a command leave behind: which files, which words on the screen?"""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mcr_lens.terminal import console, print_profile, say, sentence

if TYPE_CHECKING:
    import xarray as xr

    from mcr_lens.diagnosis import Diagnosis


def deliver(ds: "xr.Dataset", out: Path) -> None:
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


def print_comparison(before: "xr.Dataset", after: "xr.Dataset", layer: int) -> None:
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


def print_diagnosis(found: "Diagnosis", out: Path | None, as_json: Path | None) -> None:
    """Print verdicts and evidence, and write what was asked for."""
    from rich.table import Table
    from rich.text import Text

    from mcr_lens.reading import caution

    styles = {"holds": "green", "fails": "red", "untestable": "dim"}
    table = Table.grid(padding=(0, 2, 0, 0))
    for claim in found.claims:
        verdict = Text(claim.verdict, style=styles[claim.verdict])
        table.add_row(
            verdict, Text(claim.statement, style="bold").append(f"\n{claim.evidence}", style="not bold")
        )
    screen = console()
    for line in caution(found.findings.clean):
        screen.print(Text(line))
    screen.print(table)
    screen.print()
    screen.print(Text(found.summary, style="bold"))
    written = _files(found, out, as_json)
    if written:
        typer.echo(f"Written: {', '.join(str(path) for path in written)}")


def _files(found: "Diagnosis", out: Path | None, as_json: Path | None) -> list[Path]:
    import mcr_lens
    from mcr_lens._files import replacing
    from mcr_lens.diagnosis import to_json_text

    written, findings = [], found.findings
    if out is not None:
        written.append(mcr_lens.save(findings.clean, out / "result.nc"))
        if findings.experiments is not None:
            written.append(mcr_lens.save(findings.experiments, out / "conditions.nc"))
        try:
            written.append(mcr_lens.write_report(findings.clean, out / "report.html", diagnosis=found))
        except (ImportError, ValueError) as error:
            say(f"note: no report was written: {sentence(error)}")
    if as_json is not None:
        with replacing(as_json) as part:
            part.write_text(to_json_text(found), encoding="utf-8")
        written.append(as_json)
    return written
