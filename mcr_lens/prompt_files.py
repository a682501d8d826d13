"""Which prompts stand in a file?"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mcr_lens._checks import as_shown, path_of

FIELD = "text"
"""The field of a JSON Lines file that is read when none is named."""


def read_prompt_file(path: str | os.PathLike[str], field: str | None = None) -> tuple[list[str], int]:
    """Read prompts from a text file, one a line, or from JSON Lines; also say how many lines were blank.

    JSON Lines when the name ends in .jsonl or a field is named.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, no prompts in it, or a line that is not what it should be.

    Source: this library.
    """
    source = path_of(path)
    if field is not None and not isinstance(field, str):
        raise TypeError(f"field={as_shown(field)}: pass the name of a field, or None")
    text = read_utf8(source)
    # Only line ends divide prompts: str.splitlines would also cut at form feeds and the like.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        raise ValueError(f"{source} holds no prompts; write one a line")
    if field is None and source.suffix != ".jsonl":
        return [line for _, line in filled], len(lines) - len(filled)
    prompts = [_from_json(source, number, line, field or FIELD) for number, line in filled]
    return prompts, len(lines) - len(filled)


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8.

    Source: this library.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def names_in(record: Iterable[Any]) -> str:
    """The names that a record holds, for a message.

    Source: this library.
    """
    return ", ".join(str(name)[:40] for name in record) or "none"


def what_is_wrong(error: ValueError | RecursionError) -> str:
    """What json says about a line, in a few words.

    Source: this library.
    """
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deep" if isinstance(error, RecursionError) else "a number of too many digits"


def _from_json(source: Path, number: int, line: str, field: str) -> str:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}, line {number} is not JSON ({what_is_wrong(error)})") from None
    if not isinstance(record, dict):
        raise ValueError(
            f"{source}, line {number} holds a {type(record).__name__}; every line must be an object such as "
            f'{{"{field}": "…"}}'
        )
    if field not in record:
        there = names_in(record)
        raise ValueError(
            f"{source}, line {number} has no field {as_shown(field)}; its fields are: {there} (see --field)"
        )
    text = record[field]
    if not isinstance(text, str) or not text:
        what = "an empty string" if text == "" else f"a {type(text).__name__}"
        raise ValueError(f"{source}, line {number}: field {as_shown(field)} holds {what}; a prompt is text")
    return text
