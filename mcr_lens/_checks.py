"""Is an argument of the right kind at all: a number, a seed, a path? What most calls ask at their door."""

import math
import os
import sys
from numbers import Integral, Real
from pathlib import Path
from typing import Any

LONGEST, LONGEST_NAME = 4095, 255
"""Bytes of a path and of each name in it, on the systems that this library is run on."""


def as_shown(given: Any) -> str:
    """A value as a message shows it: on one line, and not all of a large one.

    >>> as_shown([1, 2]), len(as_shown(list(range(1000))))
    ('[1, 2]', 201)
    """
    text = " ".join(repr(given).split())
    return text if len(text) <= 200 else f"{text[:200]}…"


def is_iterable(given: Any) -> bool:
    """Whether there is something to go through; a tensor without axes says so and is not.

    >>> is_iterable([1]), is_iterable(5)
    (True, False)
    """
    try:
        iter(given)
    except TypeError:
        return False
    return True


def as_tuple(given: Any) -> tuple[Any, ...]:
    """All of several, or one alone, as a tuple.

    >>> as_tuple([1, 2]), as_tuple(1)
    ((1, 2), (1,))
    """
    return tuple(given) if is_iterable(given) else (given,)


def is_number(given: Any) -> bool:
    """Whether it is one real number, numpy's included; neither text nor True.

    >>> is_number(0.3), is_number("0.3"), is_number(True)
    (True, False, False)
    """
    return isinstance(given, Real) and not isinstance(given, bool)


def check_seed(seed: Any) -> None:
    """Refuse what is not a seed.

    Raises:
        ValueError: what is allowed.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) <= sys.maxsize:
        raise ValueError(f"seed={as_shown(seed)}: pass a whole number from 0 on, and below 2^63")


def check_limit(limit: Any, what: str) -> None:
    """Refuse what is no number of rows, questions or prompts to read at most.

    Raises:
        ValueError: what is allowed.
    """
    whole = isinstance(limit, int) and not isinstance(limit, bool)
    if limit is not None and not (whole and 1 <= limit <= sys.maxsize):
        raise ValueError(f"limit={as_shown(limit)}: pass how many {what} to read at most, or None for all")


def check_threshold(threshold: Any, *, zero: bool = True) -> None:
    """Refuse what no head's mean attention could reach or miss.

    Raises:
        ValueError: not a number from 0 to 1, or 0 where every head would pass.
    """
    if not is_number(threshold) or not 0 <= threshold <= 1 or (threshold == 0 and not zero):
        raise ValueError(f"threshold={as_shown(threshold)}: mean attention lies between 0 and 1")


def check_ratio(ratio: Any) -> None:
    """Refuse a norm ratio from which on no row could be called massive.

    Raises:
        ValueError: not a number above 1.
    """
    if not is_number(ratio) or not ratio > 1 or sys.float_info.max < ratio < math.inf:
        raise ValueError(
            f"ratio={as_shown(ratio)}: a massive row is longer than the others; pass a number above 1"
        )


def path_of(given: Any) -> Path:
    """The path that a user named.

    Raises:
        TypeError: not a path.
        ValueError: no file can be called like this.
    """
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"expected the path of a file, got {type(given).__name__}")
    path = Path(os.fsdecode(given))
    try:
        raw = os.fsencode(path)
        names = raw.split(os.fsencode(os.sep))
        fine = b"\0" not in raw and len(raw) <= LONGEST and max(map(len, names)) <= LONGEST_NAME
    except UnicodeEncodeError:  # a lone surrogate
        fine = False
    if not fine:
        raise ValueError(f"{as_shown(str(path))} is no path: no file can be called like this")
    return path


def first_line(error: BaseException, most: int | None = None) -> str:
    r"""The first line of what an error says, so many letters of it, or its type where it says nothing.

    >>> first_line(ValueError("one\ntwo")), first_line(ValueError())
    ('one', 'ValueError')
    """
    return str(error).strip().split("\n")[0].strip()[:most] or type(error).__name__


def encodable(text: str) -> bool:
    """Whether a text can be written to a file at all: a lone surrogate cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
