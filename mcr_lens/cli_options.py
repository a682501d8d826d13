"""Which options do several commands share, and what does their help say?"""

import os
from collections.abc import Callable
from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer

from mcr_lens.terminal import say, sentence

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


def named_prompts(prompts: Path | None, field: str | None) -> list[str]:
    """The prompts of a file, with a note on blank lines; without one, those that come with the library."""
    from mcr_lens.prompt_files import read_prompt_file

    if prompts is None:
        with as_file(files("mcr_lens").joinpath(DEMO_PROMPTS)) as bundled:
            return read_prompt_file(bundled)[0]
    texts, blank = read_prompt_file(prompts, field)
    if blank:
        say(f"note: {blank} blank line{'s' if blank > 1 else ''} of {prompts} skipped")
    return texts


def refuse_file(out: Path) -> None:
    """What is no folder and cannot become one, or cannot be written to, before anything is done."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder with --out")
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file and no folder; name another path with --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{nearest} may not be written to; name another folder with --out")


def refuse_target(file: Path) -> None:
    """A file that cannot be written, before anything is done."""
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; name a file in it")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent} is not a folder; create it first")
    if not os.access(file if file.exists() and not file.is_file() else file.parent, os.W_OK):
        raise PermissionError(f"{file} may not be written; name another file")


def make_folder(out: Path) -> None:
    """The folder for what a command writes."""
    refuse_file(out)
    out.mkdir(parents=True, exist_ok=True)


def write_figure(draw: Callable[[], Any], path: Path) -> list[Path]:
    """Write a figure as a page, and say where; without plotly, say that there is none."""
    from mcr_lens._files import replacing

    try:
        page = draw().to_html(div_id="figure")  # by itself, it would have another name each time
    except ImportError as error:
        say(f"note: no figure was written: {sentence(error)}")
        return []
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")
    return [path]
