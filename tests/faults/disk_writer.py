"""Writes everything that can be written where it cannot be; run by test_disk in a process of its own.

Prints a JSON line for each attempt: what was written, how it was refused, and what lies in the folder then.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import handmade
import torch
from typer.testing import CliRunner

import mcr_lens
from mcr_lens import cli, cli_options
from mcr_lens._files import replacing
from mcr_lens.sweep_store import write

OLD = b"what was there before"
ROOM = 4096
"""Bytes that a file may have: less than any of these files needs."""


def writers() -> dict:
    """File name → function that writes it."""
    ds = handmade.result()
    lens = mcr_lens.TunedLens(torch.zeros(3, 32, 32), torch.zeros(3, 32))
    view = mcr_lens.AttentionView("<p>" + "x" * 2 * ROOM, "a view")

    class Figure:
        """What plotly draws, as far as it is asked for here."""

        def to_html(self, **options) -> str:
            return "<p>" + "x" * 2 * ROOM

    return {
        "result.nc": lambda path: mcr_lens.save(ds, path),
        "part.nc": lambda path: write(ds, path, "digest"),
        "report.html": lambda path: mcr_lens.write_report(ds, path),
        "lens.safetensors": lens.save,
        "heads.html": view.save,
        "figure.html": lambda path: cli_options.write_figure(Figure, path),
        "verdicts.json": write_text,
    }


def write_text(path: Path) -> None:
    with replacing(path) as part:
        part.write_text("x" * 2 * ROOM, encoding="utf-8")


def tried(name: str, write, path: Path) -> None:
    """Say what came of writing a file over an old one."""
    said = ""
    try:
        write(path)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    there = sorted(p.name for p in path.parent.iterdir())
    print(json.dumps({"name": name, "said": said, "there": there, "kept": path.read_bytes() == OLD}))


def command(folder: Path) -> None:
    """The same from the command line: exit code, words, and what is left."""
    prompts, out = folder / "prompts.txt", folder / "new" / "out"
    prompts.write_text("The river runs to the sea.\n")
    given = ["measure", "demo", "--prompts", prompts, "--metrics", "bos_norm", "--out", out]
    done = CliRunner().invoke(cli.app, list(map(str, given)), env={"MCR_LENS_DEBUG": ""})
    there = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    about = {"name": "command", "said": done.stderr, "there": there, "code": done.exit_code}
    print(json.dumps(about | {"raised": repr(done.exception)}))


def limit() -> None:
    """From now on no file grows beyond `ROOM`, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))


def main(folder: Path) -> None:
    made = writers()
    places = {name: folder / name.replace(".", "-") / name for name in made}
    for name, path in places.items():
        path.parent.mkdir()
        made[name](path)  # on a disk with room all of them can be written, and everything is imported
        assert path.stat().st_size > ROOM
        path.write_bytes(OLD)
    limit()
    for name, function in made.items():
        tried(name, function, places[name])
    command(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    for path in places.values():
        path.parent.chmod(0o555)
    if os.geteuid() == 0:
        os.setuid(65534)  # nobody: what root may is no test
    for name, function in made.items():
        tried(name, function, places[name])
    tried("folder", lambda path: cli_options.refuse_file(path.parent / "new" / "out"), places["result.nc"])
    tried("target", cli_options.refuse_target, places["result.nc"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
