"""What do commands make of odd options and files? A code and words, no traceback, nothing half-written."""

from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from typer.testing import CliRunner
from world import World

import mcr_lens as mcr
from fuzz.targets import Call
from fuzz.values import TEXTS_ODD
from mcr_lens.cli import app

CODES = (0, 1, 2)
"""Done; refused in a sentence; options that there are not."""

NAME = "acme/tiny"
"""What stands for the tiny model in memory."""


class CommandError(Exception):
    """A command did what it must not."""


def draw(name: str, rng: Random, world: World) -> Call:
    """A command with drawn options."""
    arguments = [name.removeprefix("mcr-lens "), *map(str, _ARGUMENTS[name](rng, world))]
    if rng.random() < 0.3:
        arguments += [
            rng.choice(["--limit", "--position", "--max-length", "--field", "--dtype", "--odd", "--window"])
        ]
        arguments += [rng.choice(["0", "-1", "1", "x", "1.5", "", "\U0001f600", "9" * 30])]
    return Call(name, partial(_run, arguments, world), " ".join(arguments)[:300], (world.reader,))


def _run(arguments: list[str], world: World) -> None:
    out = world.folder / "out"
    before = _files(out)
    loaders, models = (mcr.load_model, mcr.serve), (world.reader, world.served)

    def stand_in(number: int, name: Any, *args: Any, **options: Any) -> Any:
        return models[number] if name == NAME else loaders[number](name, *args, **options)

    mcr.load_model, mcr.serve = partial(stand_in, 0), partial(stand_in, 1)  # type: ignore[assignment]
    try:
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "MCR_LENS_DEBUG": None})
    finally:
        mcr.load_model, mcr.serve = loaders  # type: ignore[assignment]
    said = done.output + done.stderr
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise CommandError(f"{type(done.exception).__name__}: {done.exception}") from done.exception
    if done.exit_code not in CODES or "Traceback" in said:
        raise CommandError(f"code {done.exit_code}: {said[-300:]}")
    if done.exit_code and not done.stderr.strip():
        raise CommandError(f"code {done.exit_code} and no word on standard error")
    if done.exit_code == 2 and _files(out) != before:
        raise CommandError(f"refused, and yet it wrote {_files(out) - before}")


def _files(out: Path) -> set[str]:
    return {str(path) for path in out.rglob("*")} if out.exists() else set()


def _prompts(rng: Random, world: World) -> Path:
    """A file of prompts, odd ones among them."""
    lines = rng.sample([t for t in TEXTS_ODD if "\ud800" not in t], 3)
    kind = rng.choice(["good", "odd", "bytes", "none", "folder", "empty"])
    if kind in ("none", "folder"):
        return world.folder / ("no.txt" if kind == "none" else ".")
    held = {
        "good": b"one text\nanother\n",
        "odd": "\n".join(lines).encode(),
        "bytes": b"\xff\0\n",
        "empty": b"",
    }
    return world.file("prompts.txt", held[kind])


def _out(rng: Random, world: World) -> Path:
    return rng.choice([world.folder / "out", world.folder / "out" / "deep", world.file("taken", "x")])


def _model(rng: Random) -> str:
    return rng.choice([NAME, NAME, NAME, NAME, "", "no/such", "/none", "\U0001f600", "a" * 300])


def _measure(rng: Random, w: World) -> list[Any]:
    metrics = rng.choice(["norms", "sinks,norms", "bos_nrm", ",", "all"])
    return [_model(rng), "--prompts", _prompts(rng, w), "--out", _out(rng, w), "--metrics", metrics]


def _diagnose(rng: Random, w: World) -> list[Any]:
    ratio = rng.choice(["10", "nan", "-1", "x"])
    return [
        _model(rng),
        "--prompts",
        _prompts(rng, w),
        "--out",
        _out(rng, w),
        "--ratio",
        ratio,
        "--limit",
        "3",
    ]


def _report(rng: Random, w: World) -> list[Any]:
    raw = w.result_file.read_bytes()
    file = rng.choice(
        [w.result_file, w.file("bad.nc", raw[: rng.randrange(len(raw))]), w.folder, w.folder / "no.nc"]
    )
    for name in ("verdicts.json", "conditions.nc", "close_up.nc"):
        if rng.random() < 0.3:
            w.file(name, rng.choice([b"", b"{", b"[]", b"\xff", b"{}"]))
        else:
            (w.folder / name).unlink(missing_ok=True)
    return [file, "--out", _out(rng, w)]


def _lens(rng: Random, w: World) -> list[Any]:
    more = rng.choice(
        [[], ["--translators", w.lens_file], ["--translators", w.file("x.st", "x")], ["--window", "8"]]
    )
    return [_model(rng), "--text", _prompts(rng, w), "--out", _out(rng, w), *more]


def _sweep(rng: Random, w: World) -> list[Any]:
    plan = rng.choice([b"", b"out = 1", b"[[[", b"\xff", b'out = "o"\n[[models]]\nname = "a"'])
    return [rng.choice([w.file("plan.toml", plan), w.folder, w.folder / "no.toml"]), "--out", _out(rng, w)]


def _emergence(rng: Random, w: World) -> list[Any]:
    where = rng.choice([w.folder, "acme/none", "", w.folder / "none"])
    more = rng.choice([[], ["--revisions", ","], ["--revisions", "a,b"]])
    return [where, "--prompts", _prompts(rng, w), "--out", _out(rng, w), *more]


_ARGUMENTS = {
    "mcr-lens measure": _measure,
    "mcr-lens diagnose": _diagnose,
    "mcr-lens report": _report,
    "mcr-lens lens": _lens,
    "mcr-lens sweep": _sweep,
    "mcr-lens emergence": _emergence,
    "mcr-lens inspect": lambda rng, w: [_model(rng)],
    "mcr-lens version": lambda rng, w: [],
    "mcr-lens metrics": lambda rng, w: rng.choice([[], ["--json"], ["--odd"]]),
}
COMMANDS = tuple(_ARGUMENTS)
"""All of them but demo, which measures a real model and takes no input but a folder."""
