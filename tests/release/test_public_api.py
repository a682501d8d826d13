"""Does this version still offer what the written list of the public interface promises?"""

import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import pytest

import mcr_lens

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("public_api.txt")
SHOW = "import sys; sys.path.insert(0, {folder!r}); import public_api; print(public_api.public_api(), end='')"


def offered() -> str:
    """Asked in a process of its own: pytest's type checks stand in front of what users call."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(folder=str(LIST.parent))],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_interface_is_the_written_one():
    """A difference is either a mistake, or a change that users must be told of."""
    written, now = LIST.read_text("utf-8").splitlines(), offered().splitlines()
    difference = "\n".join(unified_diff(written, now, "written", "offered", lineterm="", n=0))
    assert not difference, (
        f"the public interface has changed:\n{difference}\n"
        "If that is meant: say it in CHANGELOG.md (a line that goes or changes is Removed or Changed and "
        "needs a deprecation first, see docs/releasing.md), raise the version accordingly, and run: make api"
    )


def test_the_list_names_everything_public():
    """Every name of `mcr_lens.__all__` has its line."""
    listed = LIST.read_text("utf-8").split("[mcr_lens]\n")[1].split("\n\n")[0].splitlines()
    assert {line.split("(")[0].split(".")[0].strip() for line in listed} == set(mcr_lens.__all__)
