"""How do results, notes and errors look in a terminal or a pipe?"""

import _thread
import errno
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import xarray as xr

DEBUG = "MCR_LENS_DEBUG"
"""Set to 1, this environment variable lets errors through with their traceback."""

EXPECTED = (
    ValueError, TypeError, OSError, RuntimeError, ImportError, KeyError, AssertionError, MemoryError,
)  # fmt: skip
"""What we and torch raise for reasons a user can do something about (torch asserts that it has CUDA)."""


@contextmanager
def in_words() -> Iterator[None]:
    """Turn expected errors into one sentence and exit code 1, and our warnings into notes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = _Notes(warnings.showwarning)
        before, sys.unraisablehook = sys.unraisablehook, _Interrupts(sys.unraisablehook)
        try:
            yield
            sys.stdout.flush()  # a full disk behind it is told here, and not when Python ends
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except EXPECTED as error:
            if os.environ.get(DEBUG) == "1":
                raise
            say(f"error: {sentence(error)}")
            _give_up_output(error)
            raise typer.Exit(1) from None
        finally:
            sys.unraisablehook = before


def _give_up_output(error: BaseException) -> None:
    """What waits for a full disk is dropped, or Python would try again at its end, with a traceback."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(line: str) -> None:
    """Print a line on standard error."""
    typer.echo(line, err=True)


def sentence(error: BaseException) -> str:
    """What an exception says, on one line, with its type where it says nothing."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = str(error).strip().split("\n")[0].strip()
    if type(error) is KeyError:
        return f"{text} is missing"
    return text or type(error).__name__


class _Interrupts:
    """Send Ctrl-C once more where it came while an object was taken down, which Python would only report."""

    def __init__(self, others: Any) -> None:
        self._others = others

    def __call__(self, unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            again = threading.Timer(0.01, _thread.interrupt_main)  # here, it would be lost once more
            again.daemon = True
            again.start()
        else:
            self._others(unraisable)


class _Notes:
    """Show our warnings as notes, each once, and hand over those of other packages."""

    def __init__(self, others: Any) -> None:
        self._others = others
        self._said: set[str] = set()

    def __call__(self, message: Any, category: type[Warning], *args: Any, **more: Any) -> None:
        text = str(message)
        if text in self._said:
            return
        self._said.add(text)
        if category.__module__.split(".")[0] == "mcr_lens":
            say(f"note: {text}")
        else:
            self._others(message, category, *args, **more)


def print_profile(ds: "xr.Dataset") -> None:
    """Print means by depth, each block next to the depth that it wrote; 80 columns are enough."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mcr_lens.reading import caution, number
    from mcr_lens.tables import profile_table

    content = profile_table(ds)
    rows = content.n_layers + 1
    columns = [("depth", [str(depth) for depth in range(rows)])]
    columns += [(c.short, [number(v, c.digits) for v in c.values]) for c in content.state]
    if content.block:
        columns.append(("│\n│", ["│"] * rows))
        columns.append(("block", ["–", *map(str, range(rows - 1))]))
        columns += [(c.short, [number(v, c.digits) for v in c.values]) for c in content.block]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading, _ in columns:
        table.add_column(Text(heading, justify="right"), justify="right", no_wrap=True, vertical="bottom")
    for cells in zip(*(column for _, column in columns), strict=True):
        table.add_row(*map(Text, cells))
    meaning = "; ".join(
        f"{c.short.replace(chr(10), ' ')}: {c.note}" for c in (*content.state, *content.block) if c.note
    )
    out = console()
    for line in caution(ds):
        out.print(Text(line))
    side = " │ block l − 1, which wrote it" if content.block else ""
    out.print(Text(f"Each row: the residual stream at depth l{side}."))
    out.print(table)
    out.print(Text(f"Means over prompts ({ds.sizes['prompt']}) and heads. {meaning}"), style="dim")


def console() -> Any:
    """A console on the present standard output, as wide as the terminal and never below 80 columns."""
    from rich.console import Console

    found = Console(file=sys.stdout, highlight=False, emoji=False)
    # Below 80 columns rich would cut numbers off; a line that wraps can still be read.
    return found if found.width >= 80 else Console(file=sys.stdout, highlight=False, emoji=False, width=80)


def print_metrics(rows: list[dict[str, Any]]) -> None:
    """Print what can be measured: five columns where they fit, otherwise in two."""
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
