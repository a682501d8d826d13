"""What does `mcr-lens sweep` do: a plan in, progress on standard error, a table at the end?"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcr_lens.terminal import console, in_words, say, sentence

if TYPE_CHECKING:
    from mcr_lens.sweeps import SweepResult

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


class EngineName(StrEnum):
    """Who measures."""

    local = "local"
    ray = "ray"


def sweep(
    plan: Annotated[Path, typer.Argument(help="TOML file; see examples/sweep_plan.toml.")],
    out: Annotated[Path | None, typer.Option(help="Folder instead of the plan's.")] = None,
    engine: Annotated[EngineName | None, typer.Option(help="Engine instead of the plan's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers instead of the plan's.")] = None,
) -> None:
    """Measure models × revisions × prompt sets × conditions; stopped, it goes on where it stopped."""
    with in_words():
        import mcr_lens

        changes: dict[str, Any] = {"out": out, "engine": engine and engine.value, "workers": workers}
        changes = {key: value for key, value in changes.items() if value is not None}
        progress = True if sys.stderr.isatty() else say
        try:
            found = mcr_lens.sweep(plan, progress=progress, **changes)
        except KeyboardInterrupt:
            say("stopped; what is finished is kept, and the same command goes on from there")
            raise typer.Exit(STOPPED) from None
        except mcr_lens.SweepError as error:
            if error.result is None:
                raise
            print_sweep(error.result)
            say(f"error: {sentence(error)}")
            raise typer.Exit(1) from None
        print_sweep(found)


def print_sweep(found: "SweepResult") -> None:
    """A row for each result, and what kept it from being finished."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("result", overflow="fold")
    for heading in ("prompts", "parts", "reused"):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold")
    rows: list[dict[str, Any]] = found.table.to_dict("records")  # type: ignore[assignment]
    for row in rows:
        numbers = [str(row[key]) for key in ("n_prompts", "parts", "reused")]
        state = Text("done", style="green") if row["done"] else Text(row["error"] or "not done", style="red")
        table.add_row(Text(row["name"]), *numbers, state)
    console().print(table)
    typer.echo(f"Results: {found.out / 'results'}")
