"""Where do prompts come from when they are too many to hold? Read in chunks, never as a whole."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from mcr_lens._checks import as_shown, first_line
from mcr_lens.prompt_files import FIELD, _from_json

Source: TypeAlias = Iterable[str]
"""Prompts that can be read from the beginning, any number of times."""


@dataclass(frozen=True)
class FilePrompts:
    """Prompts of a text file, one a line, or of JSON Lines, read line by line; blank lines are left out.

    JSON Lines when the name ends in .jsonl or a field is named, as `mcr-lens measure` reads them.

    Raises:
        FileNotFoundError: no such file, when it is read.
        ValueError: not UTF-8, or a line that is not what it should be, when it is read.

    Source: this library.
    """

    path: str | os.PathLike[str]
    field: str | None = None

    def __iter__(self) -> Iterator[str]:
        source = Path(self.path)
        if not source.is_file():
            raise FileNotFoundError(f"{source} is not a file")
        with source.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):  # bytes end at line ends only, as they should
                raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                raw = raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\n") else raw
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{source}, line {number} is not UTF-8 text (byte {error.start}); save it as UTF-8"
                    ) from None
                if not line.strip():
                    continue
                plain = self.field is None and source.suffix != ".jsonl"
                yield line if plain else _from_json(source, number, line, self.field or FIELD)


@dataclass(frozen=True)
class DatasetPrompts:
    """Prompts of a Hugging Face dataset, by hub name or local folder; blank ones are left out.

    Args:
        name: as `datasets.load_dataset` takes it.
        config: one of the dataset's configurations.
        split: "train", "validation", …
        field: the column that holds the text.
        revision: branch, tag or commit of the dataset.
        streaming: rows are fetched while they are read; False downloads everything first.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: no name, no such dataset or column, or a row without text, when it is read.

    Source: this library.
    """

    name: str
    config: str | None = None
    split: str = "train"
    field: str = FIELD
    revision: str | None = None
    streaming: bool = True

    def __iter__(self) -> Iterator[str]:
        for number, row in enumerate(self._rows()):
            if self.field not in row:
                raise ValueError(
                    f"dataset {as_shown(self.name)} has no column {as_shown(self.field)}; its columns are: "
                    f"{', '.join(row)}"
                )
            text = row[self.field]
            if not isinstance(text, str):
                raise ValueError(
                    f"dataset {as_shown(self.name)}, row {number}: {as_shown(self.field)} holds a "
                    f"{type(text).__name__}; a prompt is text"
                )
            if text.strip():
                yield text

    def _rows(self) -> Any:
        if not self.name.strip():
            raise ValueError("the name of a dataset is empty; pass a file, or what a dataset is called")
        datasets = _datasets()
        try:
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=self.streaming
            )
        except Exception as error:  # datasets raises kinds of its own, and those of the network
            raise ValueError(
                f"dataset {as_shown(self.name)} could not be opened ({first_line(error)})"
            ) from error


@dataclass(frozen=True)
class TextPrompts:
    """Prompts in memory, or a function that makes them: called anew for each reading, maybe a generator.

    Raises:
        ValueError: something that is no text, or an empty one, when it is read.

    Source: this library.
    """

    texts: Sequence[str] | Callable[[], Iterable[str]]

    def __iter__(self) -> Iterator[str]:
        for number, text in enumerate(self.texts() if callable(self.texts) else self.texts):
            if not isinstance(text, str) or not text:
                what = "an empty string" if text == "" else f"a {type(text).__name__}"
                raise ValueError(f"prompt {number} is {what}; a prompt is text")
            yield text


def _datasets() -> Any:
    try:
        return import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ImportError(
            "prompts from a Hugging Face dataset need datasets, which is not installed: pip install datasets",
            name="datasets",
        ) from None


def in_chunks(source: Iterable[str], size: int, limit: int | None = None) -> Iterator[list[str]]:
    """Prompts in lists of `size`, the last one maybe shorter; never reads further than it was asked for.

    >>> list(in_chunks(["a", "b", "c"], 2))
    [['a', 'b'], ['c']]

    Raises:
        ValueError: as the source.

    Source: this library.
    """
    rest = islice(iter(source), limit)
    while chunk := list(islice(rest, size)):
        yield chunk


def texts_digest(texts: Iterable[str]) -> str:
    """What these texts are, in this order: SHA-256 over their lengths and UTF-8 bytes.

    Source: this library.
    """
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()
