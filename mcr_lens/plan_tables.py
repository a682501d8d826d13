"""How is a table of a plan read, so that every mistake in it becomes one sentence?"""

import difflib
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcr_lens._checks import as_shown, encodable, first_line


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, or not TOML.

    Source: this library.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; name a plan file such as sweep.toml")
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # deep nesting, and numbers of thousands of digits
        what = "nested too deep" if isinstance(error, RecursionError) else first_line(error, 300)
        raise ValueError(f"{path} is not TOML: {what}") from None


class Table:
    """A table of the plan: reads its values, and says in one sentence what is wrong with them."""

    def __init__(self, where: str, given: Mapping[str, Any], keys: Sequence[str]) -> None:
        self.where: str = where
        self.given: Mapping[str, Any] = given
        for key in given:
            if key not in keys:
                raise ValueError(
                    f"{where}: unknown key {as_shown(key)}; {nearest(key, keys)}its keys are "
                    f"{', '.join(keys)}"
                )

    def has(self, key: str) -> bool:
        """Whether it says anything about a key."""
        return self.given.get(key) is not None

    def wrong(self, key: str, advice: str) -> ValueError:
        """What is wrong with a value, and what to do."""
        return ValueError(f"{self.where}: {key}={as_shown(self.given.get(key))}: {advice}")

    def text(self, key: str) -> str | None:
        """A text, or None."""
        value = self.given.get(key)
        if value is None:
            return None
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "pass a text")
        if not encodable(value) or "\0" in value:
            raise self.wrong(key, "it holds a lone surrogate or a NUL; pass a text that can be written")
        return value

    def needed(self, key: str) -> str:
        """A text that must be there."""
        found = self.text(key)
        if found is None:
            raise ValueError(f'{self.where}: {key} is missing; write {key} = "..."')
        return found

    def number(self, key: str, *, least: int = 1, or_word: str | None = None) -> Any:
        """A whole number, or a word in its place, or None."""
        value = self.given.get(key)
        if value is None or (or_word is not None and isinstance(value, str) and value == or_word):
            return value
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            other = f', or "{or_word}"' if or_word else ""
            raise self.wrong(key, f"pass a whole number from {least} on{other}")
        if value > sys.maxsize:
            raise self.wrong(key, "pass a number below 2^63")
        return value

    def real(self, key: str) -> float | None:
        """A number from 0 on, or None."""
        value = self.given.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise self.wrong(key, "pass a number from 0 on")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.given.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "pass true or false")
        return value

    def one_of(self, key: str, allowed: Sequence[str], default: str) -> Any:
        """One of the allowed words."""
        value = self.given.get(key, default)
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(key, f"{nearest(value, allowed)}pass one of {', '.join(allowed)}")
        return value

    def tables(self, key: str, keys: Sequence[str]) -> list["Table"]:
        """One or more tables under a key; a model may be its name alone."""
        value = self.given.get(key)
        if value is None or isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
            what = "is missing" if value is None else f"is {kind_of(value)}"
            raise ValueError(f"{self.where}: {key} {what}; write one or more tables [[{key}]]")
        rows: list[Any] = [
            {"name": row} if isinstance(row, str) and key == "models" else row for row in value
        ]
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise ValueError(
                    f"{self.where}: {key}[{number}] is {kind_of(row)}; write one or more tables [[{key}]]"
                )
        return [Table(f"{self.where}: {key}[{number}]", row, keys) for number, row in enumerate(rows)]


def kind_of(value: Any) -> str:
    """What a value is instead of what it should be.

    Source: this library.
    """
    return "empty" if isinstance(value, Sequence) and not value else f"a {type(value).__name__}"


def nearest(given: Any, known: Any) -> str:
    """The words "did you mean …? ", or none.

    Source: this library.
    """
    near = difflib.get_close_matches(str(given), [str(k) for k in known], n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}? " if near else ""
