"""What does a command leave behind: which files, which words on the screen?

A folder holds one story: `result.nc`, and beside it what belongs to it, `conditions.nc`, `close_up.nc` and
`verdicts.json`. What lies there from another result is left alone and not told.
"""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mcr_lens._checks import first_line
from mcr_lens.terminal import console, print_profile, say, sentence

if TYPE_CHECKING:
    import xarray as xr

    from mcr_lens.diagnosis import Diagnosis

RESULT, CONDITIONS, CLOSE_UP, VERDICTS, PAGE = (
    "result.nc", "conditions.nc", "close_up.nc", "verdicts.json", "report.html",
)  # fmt: skip

OF = "result_created"
"""Attribute of what lies beside a result: when that result was made."""

LOOKED_AT = 40
"""Tokens of the prompt that a page shows from close by: each takes a line."""


def deliver(
    ds: "xr.Dataset", out: Path, *, close_up: "xr.Dataset | None" = None, found: "Diagnosis | None" = None
) -> list[Path]:
    """Write the files of a story and its page; say where a page could not be written."""
    import mcr_lens
    from mcr_lens._files import replacing
    from mcr_lens._netcdf import netcdf_bytes

    of = {OF: ds.attrs["created"]}
    written = [mcr_lens.save(ds, out / RESULT)]
    experiments = None if found is None else found.findings.experiments
    if experiments is not None:
        written.append(mcr_lens.save(experiments.assign_attrs(of), out / CONDITIONS))
    if close_up is not None:
        with replacing(out / CLOSE_UP) as part:
            part.write_bytes(netcdf_bytes(close_up.assign_attrs(of)))
        written.append(out / CLOSE_UP)
    if found is not None:
        written.append(write_verdicts(found, out / VERDICTS))
    page = write_page(ds, out / PAGE, {"diagnosis": found, "conditions": experiments, "close_up": close_up})
    return written if page is None else [*written, page]


def write_verdicts(found: "Diagnosis", file: Path) -> Path:
    """Write the verdicts as JSON."""
    from mcr_lens._files import replacing
    from mcr_lens.diagnosis import to_json_text

    with replacing(file) as part:
        part.write_text(to_json_text(found), encoding="utf-8")
    return file


def write_page(ds: "xr.Dataset", page: Path, parts: dict[str, Any]) -> Path | None:
    """Write the page, or say why not."""
    import mcr_lens

    try:
        return mcr_lens.write_report(ds, page, **parts)
    except (ImportError, ValueError) as error:
        old = f" ({page} is from an earlier run)" if page.exists() else ""
        say(f"note: no report was written: {sentence(error)}{old}")
        return None


def beside(ds: "xr.Dataset", folder: Path) -> dict[str, Any]:
    """What lies beside a result and belongs to it, as `write_report` takes it."""
    from mcr_lens._netcdf import read_netcdf

    parts: dict[str, Any] = {}
    for name, file in (("conditions", CONDITIONS), ("close_up", CLOSE_UP)):
        if (folder / file).is_file():
            try:
                parts[name] = read_netcdf(folder / file)
            except Exception as error:  # in a damaged file, HDF5 and xarray trip over anything
                raise ValueError(
                    f"{folder / file} cannot be read as netCDF ({first_line(error, 300)}); take it away, or "
                    "write it anew"
                ) from None
    kept = {name: part for name, part in parts.items() if part.attrs.get(OF) == ds.attrs.get("created")}
    if (folder / VERDICTS).is_file():
        try:
            verdicts = json.loads((folder / VERDICTS).read_text("utf-8"))
        except (ValueError, RecursionError):
            verdicts = None
        if not isinstance(verdicts, dict):
            raise ValueError(f"{folder / VERDICTS} holds no verdicts; take it away, or write it anew")
        if all(verdicts.get(key) == ds.attrs.get(key) for key in ("model", "created")):
            kept["diagnosis"] = verdicts
    return kept


def look_closely(
    model: Any, prompt: str, ds: "xr.Dataset", *, prepend_bos: Any, cut: Any = None
) -> "xr.Dataset | None":
    """A prompt with the patterns of the heads worth a look, before and after the cut, if it can be."""
    import mcr_lens
    from mcr_lens.schema import ResultSchemaError

    try:
        # A model as it is served has no patterns to be shown.
        heads = None if hasattr(model, "lacks") else mcr_lens.notable_heads(ds)
    except ResultSchemaError:  # the scores of the heads were not measured
        heads = None
    conditions = None if cut is None else {"cut": cut}
    with warnings.catch_warnings():  # a long prompt is cut, as the page says
        warnings.simplefilter("ignore", mcr_lens.PromptWarning)
        try:
            return mcr_lens.close_up(
                model, prompt, heads, conditions=conditions, max_tokens=LOOKED_AT, prepend_bos=prepend_bos
            )
        except (ValueError, RuntimeError, mcr_lens.MissingHookPointError) as error:
            say(f"note: no prompt from close by: {sentence(error)}")
            return None


def print_result(ds: "xr.Dataset") -> None:
    """The table and the words."""
    from mcr_lens.reading import reading
    from mcr_lens.schema import ResultSchemaError

    try:
        print_profile(ds)
    except ResultSchemaError as error:
        say(f"note: no table: {sentence(error)}")
    for line in reading(ds):
        typer.echo(line)


def print_written(written: list[Path]) -> None:
    """Where the files are."""
    if written:
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


def print_diagnosis(found: "Diagnosis") -> None:
    """Print verdicts and evidence."""
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
