"""Do the deliberate faults still fit the code they are to be put into? `make mutants` puts them there."""

from pathlib import Path

import pytest
from deliberate_faults import FAULTS

import mcr_lens

pytestmark = pytest.mark.once

PACKAGE = Path(mcr_lens.__file__).parent


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
