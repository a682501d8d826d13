"""Where do questions with a choice of answers come from: a file, a dataset, or records in memory?"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mcr_lens._checks import as_shown, check_limit, is_iterable, path_of
from mcr_lens.prompt_files import read_utf8, what_is_wrong
from mcr_lens.prompt_sources import DatasetPrompts
from mcr_lens.readouts.choice_items import STYLES, ChoiceItem, RecordError, item_of, style_of

FILES = (".jsonl", ".json")
"""Endings of what is meant as a file, though there is none."""


def read_choices(
    source: Any,
    *,
    style: str | None = None,
    delimiter: str | None = None,
    config: str | None = None,
    split: str = "validation",
    revision: str | None = None,
    streaming: bool = True,
    limit: int | None = None,
) -> list[ChoiceItem]:
    r"""Multiple-choice questions, each with the texts of which a model scores log p(continuation | context).

    A file holds JSON Lines, or one JSON list, of records; records can also be passed as they are; any other
    string names a Hugging Face dataset. Their style is recognised by the fields of the first one:

    - "query": `query`, `choices`, `gold` (llm-foundry). Context is the query and the delimiter.
    - "arc": `question`, `choices` (`text`, `label`), `answerKey`, or the nested form of AI2.
      Context is "Question: …\nAnswer:".
    - "hellaswag": `ctx_a`, `ctx_b` or `ctx`, `activity_label`, `endings`, `label`. Context is
      "activity: ctx_a Ctx_b", and WikiHow's marks ("[header]") are taken out of all texts.
    - "winogrande": `sentence`, `option1`, `option2`, `answer`. Each option takes the place of the _ and
      ends a context; what follows the _ is the continuation of both (partial evaluation).

    Args:
        source: a path, a dataset as `datasets.load_dataset` takes it, or a list of records.
        style: one of these four; None to recognise it.
        delimiter: for "query", what stands between the query and a choice; by default "\nAnswer: " where
            the query begins with "Question:" (as llm-foundry asks ARC), else a space.
        config: one of the dataset's configurations ("ARC-Easy", "winogrande_xl"); this and the next three
            are for datasets alone.
        split: "validation", "test", …; it must hold the answers.
        revision: branch, tag or commit of the dataset.
        streaming: rows are fetched while they are read; False downloads everything first.
        limit: read so many questions at most.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a dataset, and `datasets` is not installed.
        TypeError: a source that is neither of these.
        ValueError: an unknown style, a dataset that cannot be opened, no questions, or a record that is not
            what its style says (with its line).

    Source: the templates of lm-evaluation-harness' tasks arc_easy, arc_challenge, hellaswag and winogrande.
    """
    if style is not None and (not isinstance(style, str) or style not in STYLES):
        raise ValueError(
            f"style={as_shown(style)}: pass {', '.join(map(repr, STYLES))}, or None to recognise it"
        )
    if delimiter is not None and (not isinstance(delimiter, str) or style not in (None, "query")):
        raise ValueError(
            f"delimiter={as_shown(delimiter)} is a text that goes with the style 'query'; leave it out"
        )
    check_limit(limit, "questions")
    records = _records(source, DatasetPrompts(str(source), config, split, "", revision, streaming))
    found: list[ChoiceItem] = []
    for place, record in islice(records.rows, limit):
        try:
            if isinstance(record, ChoiceItem):
                found.append(record)
                continue
            style = style or style_of(record)
            found.append(item_of(record, style, delimiter))
        except RecordError as error:
            raise ValueError(f"{records.name}{place} {error}") from None
    if not found:
        raise ValueError(f"{records.name or 'the list'} holds no questions; pass one or more")
    return found


@dataclass(frozen=True)
class Records:
    """What a source is called, and its records, each with the words for its place."""

    name: str
    rows: Iterator[tuple[str, Any]]


def source_name(source: Any) -> str | None:
    """What questions of this source are called: a file's name without its ending, a dataset's name.

    Source: this library.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        return None
    path = Path(source)
    return path.stem if path.is_file() else path.name if path.is_dir() else source


def _records(source: Any, dataset: DatasetPrompts) -> Records:
    if isinstance(source, str | os.PathLike):
        path = path_of(source)
        if path.is_file():
            return Records(str(path), _of_file(path))
        if path.suffix in FILES:
            raise FileNotFoundError(f"{path} is not a file")
        name = f"dataset {as_shown(dataset.name)}, split {as_shown(dataset.split)}"
        rows = dataset._rows()
        return Records(name, ((f", row {number}", row) for number, row in enumerate(rows)))
    if isinstance(source, Mapping | ChoiceItem) or not is_iterable(source):
        raise TypeError(
            f"questions came as {type(source).__name__}; pass a path, the name of a dataset, or a list of "
            "records"
        )
    return Records("", ((f"question {number}", record) for number, record in enumerate(source)))


def _of_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of JSON Lines, or of one JSON list that begins with a bracket."""
    text = read_utf8(path)
    if text.lstrip().startswith("["):
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError) as error:
            what = what_is_wrong(error)
            if isinstance(error, json.JSONDecodeError):
                what = f"{error.msg} in line {error.lineno}, column {error.colno}"
            raise ValueError(f"{path} is not a JSON list ({what})") from None
        yield from ((f", record {number}", record) for number, record in enumerate(listed))
        return
    for number, line in enumerate(text.split("\n"), start=1):  # str.splitlines cuts at form feeds too
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON ({what_is_wrong(error)})") from None
        yield f", line {number}", record
