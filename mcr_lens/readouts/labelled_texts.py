"""Where do labelled texts, and pairs of texts with a score, come from: a file, or a Hugging Face dataset?"""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mcr_lens._checks import as_shown, check_limit, path_of
from mcr_lens.prompt_files import names_in, what_is_wrong
from mcr_lens.prompt_sources import DatasetPrompts

TEXTS, LABELS = ("text", "sentence"), ("label",)
PAIRS, SCORES = ("sentence1", "sentence2"), ("score", "similarity_score", "label")
"""Columns that are looked for where none is named, in this order."""

FILES = (".tsv", ".txt", ".csv", ".jsonl", ".json", ".parquet")
"""Endings of what is meant as a file, though there is none."""


def read_labelled(
    source: str | os.PathLike[str],
    *,
    text: str | None = None,
    label: str | None = None,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = True,
    limit: int | None = None,
) -> tuple[list[str], list[str] | list[int]]:
    """Texts and their labels, from a file or from a Hugging Face dataset; blank texts are left out.

    A file whose name ends in .jsonl holds an object on each line. Any other holds a text, a tab and a label
    on each line, or has a first line that names its columns (as GLUE writes SST-2: "sentence", "label"); a
    quotation mark is a character like any other there. Everything else is a dataset, by hub name or local
    folder. Labels that a dataset has names for come as these names; else whole numbers as integers, the
    rest as strings.

    Args:
        source: a file, or a dataset as `datasets.load_dataset` takes it.
        text: the column or field of texts; by default "text" or "sentence".
        label: that of labels; by default "label".
        config: one of the dataset's configurations; this and what follows is for datasets alone.
        split: "train", "validation", …
        revision: branch, tag or commit of the dataset.
        streaming: rows are fetched while they are read; False downloads everything first.
        limit: read so many rows at most, of files too; where rows are sorted by label, they are of one.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a dataset, and `datasets` is not installed.
        TypeError: a source that is neither a path nor a name.
        ValueError: no such dataset or column, no rows, or one that is not a text with a label.

    Source: this library.
    """
    wanted = [(text, TEXTS, "text"), (label, LABELS, "label")]
    table = _table(source, wanted, DatasetPrompts(str(source), config, split, "", revision, streaming))
    found = [
        (words, _label(table, number, given))
        for number, (words, given) in table.columns(limit)
        if _text(table, number, words).strip()
    ]
    _some(table, found)
    texts, labels = [words for words, _ in found], [given for _, given in found]
    whole = [given for given in labels if isinstance(given, int)]
    if len(whole) == len(labels):
        return texts, whole
    if not table.typed and all(map(_is_whole, labels)):
        return texts, [int(given) for given in labels]
    if whole:
        raise ValueError(f"{table.name} holds both numbers and texts for labels; make them of one kind")
    return texts, [str(given) for given in labels]


def read_pairs(
    source: str | os.PathLike[str],
    *,
    first: str | None = None,
    second: str | None = None,
    score: str | None = None,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = True,
    limit: int | None = None,
) -> tuple[list[tuple[str, str]], list[float]]:
    """Pairs of texts and the similarity they were given, from a file or from a Hugging Face dataset.

    As `read_labelled`, with two columns of texts and one of numbers; without a line of names, a file has
    them in this order. Pairs with a blank text are left out.

    Args:
        source: a file, or a dataset as `datasets.load_dataset` takes it.
        first: the column or field of the first texts; by default "sentence1".
        second: that of the second ones; by default "sentence2".
        score: that of scores; by default "score", "similarity_score" or "label".
        config, split, revision, streaming, limit: as for `read_labelled`.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: as `read_labelled`.

    Source: this library.
    """
    wanted = [(first, PAIRS[:1], "first"), (second, PAIRS[1:], "second"), (score, SCORES, "score")]
    table = _table(source, wanted, DatasetPrompts(str(source), config, split, "", revision, streaming))
    found = [
        ((one, other), _score(table, number, given))
        for number, (one, other, given) in table.columns(limit)
        if _text(table, number, one).strip() and _text(table, number, other).strip()
    ]
    _some(table, found)
    return [pair for pair, _ in found], [given for _, given in found]


Wanted = Sequence[tuple[str | None, Sequence[str], str]]
"""Columns: the name that was given, names to look for, and the argument that names it."""


@dataclass(frozen=True)
class _Table:
    """Rows by column, each with the number it is called by; `typed` where values need no guessing."""

    name: str
    rows: Iterator[tuple[int, dict[str, Any]]]
    wanted: Wanted
    unit: str = "line"
    typed: bool = True

    def columns(self, limit: int | None) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """The wanted columns of each row."""
        check_limit(limit, "rows")
        names: list[str] = []
        for number, row in islice(self.rows, limit):
            names = names or [self._pick(row, *each) for each in self.wanted]
            missing = [name for name in names if name not in row]
            if missing:
                raise self.error(number, f"has no {missing[0]!r}; leave it out or complete it")
            yield number, tuple(row[name] for name in names)

    def error(self, number: int, what: str) -> ValueError:
        """An error about one row."""
        return ValueError(f"{self.name}, {self.unit} {number} {what}")

    def _pick(self, row: dict[str, Any], given: str | None, names: Sequence[str], argument: str) -> str:
        there = [name for name in ([given] if given is not None else names) if name in row]
        if there:
            return there[0]
        what = repr(given) if given is not None else " or ".join(map(repr, names))
        held = names_in(row)
        raise ValueError(
            f"{self.name} has no column {what}; its columns are: {held} (name one with {argument}=)"
        )


def _table(source: Any, wanted: Wanted, dataset: DatasetPrompts) -> _Table:
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"the source came as {type(source).__name__}; pass a file, or the name of a dataset as text"
        )
    path = path_of(source)
    if path.is_file():
        if path.suffix == ".jsonl":
            return _Table(str(path), _objects(path), wanted)
        return _Table(str(path), _tabbed(path, wanted), wanted, typed=False)
    if path.suffix in FILES:
        raise FileNotFoundError(f"{path} is not a file")
    opened = dataset._rows()
    name = f"dataset {as_shown(dataset.name)}, split {as_shown(dataset.split)}"
    return _Table(name, _with_names(name, opened), wanted, unit="row")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers; only line ends divide them."""
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            try:
                line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not UTF-8 text (byte {error.start}); save it as UTF-8"
                ) from None
            if line.strip():
                yield number, line


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number} is not JSON ({what_is_wrong(error)}); write an object on each line"
            ) from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} holds a {type(row).__name__}; write an object on each line"
            )
        yield number, row


def _tabbed(path: Path, wanted: Wanted) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file with tabs; its first line names the columns, or is a row like the others."""
    names: list[str] = []
    for number, line in _lines(path):
        cells = line.split("\t")
        if not names:
            named = any(given is not None for given, _, _ in wanted)
            if named or all(any(name in cells for name in known) for _, known, _ in wanted):
                names = cells
                continue
            names = [known[0] for _, known, _ in wanted]
        if len(cells) != len(names):
            raise ValueError(
                f"{path}, line {number} has {len(cells)} columns and not {len(names)} ({', '.join(names)}); "
                "divide them by tabs, or name the columns in the first line"
            )
        yield number, dict(zip(names, cells, strict=True))


def _with_names(name: str, opened: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a dataset; what it has names for comes as these."""
    features = getattr(opened, "features", None) or {}
    classes = {column: kind for column, kind in features.items() if hasattr(kind, "int2str")}
    for number, row in enumerate(opened):
        for column, kind in classes.items():
            value = row.get(column)
            if value == -1:
                raise ValueError(
                    f"{name}, row {number}: {column!r} is -1, which stands for a label that is kept secret; "
                    "choose another split"
                )
            row = {**row, column: value if value is None else kind.int2str(value)}
        yield number, row


def _text(table: _Table, number: int, given: Any) -> str:
    if not isinstance(given, str):
        raise table.error(number, f"holds a {type(given).__name__} where a text should be; leave it out")
    return given


def _label(table: _Table, number: int, given: Any) -> str | int:
    if isinstance(given, bool):
        return int(given)
    if not isinstance(given, str | int) or given == "":
        what = "nothing" if given in (None, "") else f"a {type(given).__name__}"
        raise table.error(number, f"holds {what} for a label; a label is a text or a whole number")
    return given


def _score(table: _Table, number: int, given: Any) -> float:
    try:
        found = float(given)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise table.error(number, f"holds {as_shown(given)} for a score; a score is a finite number")
    return found


def _is_whole(label: Any) -> bool:
    return (
        isinstance(label, int) or re.fullmatch(r"-?[0-9]{1,18}", label) is not None
    )  # longer ones are names


def _some(table: _Table, found: Sequence[Any]) -> None:
    if not found:
        raise ValueError(f"{table.name} holds no rows with a text; choose another file, dataset or split")
