"""Do the deliberate faults still fit the code they are to be put into? `make mutants` puts them there."""

from pathlib import Path

import pytest
from deliberate_faults import FAULTS

import mcr_lens

pytestmark = pytest.mark.once

PACKAGE = Path(mcr_lens.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "mutants.md"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_it_fits(fault):
    """The text is there once, and Python can read what becomes of it."""
    text = (PACKAGE / fault.file).read_text("utf-8")
    assert text.count(fault.right) == 1, (
        f"{fault.file} has changed: bring tests/mutation/deliberate_faults.py up to date"
    )
    compile(text.replace(fault.right, fault.wrong), fault.file, "exec")


def test_they_are_told_apart():
    """Each has a name of its own."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 10


def test_the_page_is_about_these_faults():
    """What `make mutants` wrote: each fault once, in their order, in the file that holds it."""
    rows = [line.split(" | ")[:2] for line in PAGE.read_text("utf-8").splitlines() if " | `" in line]
    assert rows == [[f"| {fault.name}", f"`{fault.file}`"] for fault in FAULTS]
