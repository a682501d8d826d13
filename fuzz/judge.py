"""Is what came back of a call a finding? An error of the library's own words is none."""

import errno
import os
import pickle
import select
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from world import state_of

SECONDS = 60
"""A call that takes longer hangs."""

LONGEST = 1500
"""Characters of a message."""

NAMED = ("mcr_lens",)
"""Modules whose warnings are meant for users."""

MAY_BE_NAN = ("top_", "_low", "_high", "log_likelihood", "n_characters")
"""Parts of names: more ranks than tokens, an interval of one text, a question with fewer choices."""


@dataclass(frozen=True)
class Verdict:
    """What a call came to; `finding` is empty where nothing is wrong."""

    outcome: str
    finding: str = ""


class _Hang(BaseException):
    """Nothing catches it by accident."""


def judge(call: Callable[[], Any], models: list[Any], folder: Path, finite: bool = False) -> Verdict:
    """Make a call and look at everything that it may not do; `finite`: a NaN needs a warning."""
    before = [state_of(model) for model in models]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with _in_time():
                value = call()
            verdict = Verdict("returned")
            if finite and not any(w.category.__module__.startswith(NAMED) for w in said):
                verdict = Verdict("returned", _silent_nan(value))
        except _Hang:
            return Verdict("hang", f"it takes longer than {SECONDS} s")
        except Exception as error:
            verdict = _of_error(error)
    odd = [w for w in said if not w.category.__module__.startswith(NAMED)]
    if odd and not verdict.finding:
        verdict = Verdict(
            verdict.outcome, f"a {odd[0].category.__name__} of others: {str(odd[0].message)[:150]}"
        )
    if [state_of(model) for model in models] != before:
        verdict = Verdict(verdict.outcome, "the model has other weights, hooks or another mode than before")
    if left := [path.name for path in folder.rglob("*.part")]:
        verdict = Verdict(verdict.outcome, f"{left[0]} is left behind")
    return verdict


def _silent_nan(value: Any) -> str:
    """Which variables of a Dataset hold NaN where nothing says that they may."""
    if not isinstance(value, xr.Dataset):
        return ""
    floats = [name for name in value.data_vars if value[name].dtype.kind == "f"]
    bad = [str(name) for name in floats if not np.isfinite(value[name].values).all()]
    bad = [name for name in bad if not any(part in name for part in MAY_BE_NAN)]
    return f"NaN or infinity in {', '.join(bad)}, and no warning" if bad else ""


def judge_apart(call: Callable[[], Any], folder: Path) -> Verdict:
    """The same in a process of its own: a damaged file may bring the whole interpreter down."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(judge(call, [], folder), pipe)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        late = not select.select([pipe], [], [], 2 * SECONDS)[0]  # C code does not hear the alarm
        if late:
            os.kill(child, signal.SIGKILL)
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    if late:
        return Verdict("hang outside of Python")  # in HDF5's own code, where nobody can step in
    if told and status == 0:
        return pickle.loads(told)
    return Verdict("crash", f"the interpreter ended with status {status}")


def _of_error(error: Exception) -> Verdict:
    """A deliberate refusal, an error of the operating system that names its file, or a finding."""
    kind, text = type(error).__name__, str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    own = "/mcr_lens/" in last.filename and (last.line or "").startswith("raise")
    of_system = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.ENOSPC)
    if not own and not of_system:
        return Verdict(kind, f"{kind} from {place}: {text[:200]}")
    if "\n" in text or len(text) > LONGEST or not text.strip():
        return Verdict(kind, f"{kind} from {place} is not one line: {text[:200]!r}")
    return Verdict(kind)


@contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise _Hang

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
