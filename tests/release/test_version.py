"""Is one version said everywhere?"""

import re
import tomllib
from pathlib import Path

import pytest

import mcr_lens

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_package_metadata_and_citation_agree():
    assert tomllib.loads(text("pyproject.toml"))["project"]["version"] == mcr_lens.__version__
    assert re.findall(r"^version: (.+)$", text("CITATION.cff"), re.MULTILINE) == [mcr_lens.__version__]


def test_the_changelog_has_a_place_for_what_comes_and_knows_what_was():
    """Unreleased stands first; below, versions with their dates, newest first, down to the first one."""
    titles = re.findall(r"^## (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    assert titles[0] == "Unreleased"
    dated = [re.fullmatch(r"\[?(\d+)\.(\d+)\.(\d+)\]? - \d{4}-\d\d-\d\d", title) for title in titles[1:]]
    assert all(dated)
    numbers = [tuple(map(int, found.groups())) for found in dated if found]
    assert numbers == sorted(numbers, reverse=True)
    said = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    assert not numbers or ".".join(map(str, numbers[0])) == said
    kinds = set(re.findall(r"^### (.+)$", text("CHANGELOG.md"), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
