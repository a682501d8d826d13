"""Is everything public shown at work, and does every metric say when it misleads?

A name is shown if its own docstring has an example, or if an example in mcr_lens or the code of a page that
is run (`doc_pages.RUN`) uses it. Examples are run by pytest, pages by test_howtos.
"""

import ast
import doctest
import importlib
import inspect
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from doc_pages import DOCS, RUN, blocks

import mcr_lens
from mcr_lens import metrics, plots

pytestmark = pytest.mark.once

PACKAGE = Path(mcr_lens.__file__).parent
MODULES = {"metrics", "presets"}
ALL = sorted(set(mcr_lens.__all__) - MODULES)
REFUSALS = [n for n in ALL if n.endswith(("Error", "Warning"))]


def identifiers(code: str) -> set[str]:
    """Names and attributes that a piece of code uses."""
    nodes = list(ast.walk(ast.parse(code)))
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {
        n.attr for n in nodes if isinstance(n, ast.Attribute)
    }


@cache
def shown() -> frozenset[str]:
    """Names at work in examples and pages."""
    found: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text("utf-8")
        if ">>>" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
                found |= set().union(*(identifiers(e.source) for e in examples))
    for page in RUN:
        for block in blocks(page):
            if block.language == "python" and block.why_not is None:
                found |= identifiers(block.code)
    return frozenset(found)


def has_example(thing: object) -> bool:
    return ">>>" in (inspect.getdoc(thing) or "")


@pytest.mark.parametrize("name", [n for n in ALL if n not in REFUSALS])
def test_a_public_name_is_shown_at_work(name):
    assert has_example(getattr(mcr_lens, name)) or name in shown(), (
        f"{name} has no example: write a doctest, or use it in a page of docs/howto"
    )


@pytest.mark.parametrize("name", sorted(n for n in vars(plots) if n.startswith("plot_")))
def test_a_figure_is_shown_at_work(name):
    assert name in shown()


@pytest.mark.parametrize("found", mcr_lens.list_metrics(), ids=lambda m: m.name)
def test_a_metric_has_an_example_and_says_when_it_misleads(found):
    assert has_example(found.function), f"{found.name}: write a doctest"
    doc = inspect.getdoc(found.function)
    sentences = re.findall(r"^Misleads when .+?[.)](?:\n\n|\Z)", doc, re.S | re.M)
    assert len(sentences) == 1, f"{found.name}: one paragraph that begins with 'Misleads when'"


@pytest.mark.parametrize("name", REFUSALS)
def test_an_error_or_warning_is_in_the_table_of_refusals(name):
    rows = (DOCS / "howto" / "refusals.md").read_text("utf-8")
    assert f"| `{name}` |" in rows, f"{name}: say in docs/howto/refusals.md what to do"


def test_the_reference_lists_everything_public():
    """And nothing else, and each name once."""
    text = (DOCS / "api.md").read_text("utf-8")
    listed = []
    for block in re.findall(r"\.\. currentmodule:: mcr_lens\n(.*?)```", text, re.S):
        listed += re.findall(r"^   (\w+)$", block, re.M)
    assert sorted(listed) == ALL


def test_the_reference_lists_the_shared_quantities():
    """What metrics may read that is no tensor of the model."""
    text = (DOCS / "api.md").read_text("utf-8")
    registered = {m.name for m in mcr_lens.list_metrics()}
    shared = {n for n in vars(metrics) if not n.startswith("_") and callable(getattr(metrics, n))}
    machinery = {"metric", "get_metric", "list_metrics", "UnknownMetricError"}
    missing = {n for n in shared - registered - machinery if not re.search(rf"^   {n}$", text, re.M)}
    assert missing == set()


def test_examples_are_collected_by_pytest(request):
    """--doctest-modules is on: otherwise an example shows nothing."""
    assert request.config.getoption("--doctest-modules")


@pytest.fixture
def generated():
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("generated")
    sys.path.remove(str(DOCS))


def test_the_list_of_metrics_says_all_of_each(generated):
    text = generated.metric_list()
    for found in mcr_lens.list_metrics():
        section = text.split(f"### {found.name}\n")[1].split("\n### ")[0]
        row = next(line for line in section.splitlines() if line.startswith(f"| {found.units} |"))
        assert " × ".join(found.axes) in row
        assert ("**yes**" in row) == ("reconstruction" in found.source)
        assert "**Misleads when** " in section and "```pycon\n>>> " in section


def test_the_map_has_every_room_with_its_question(generated):
    """Every module of the house stands on a floor, and its first line says what it is for."""
    rows = [line.split(" | ") for line in generated.house_map().splitlines()[2:]]
    rooms = {row[1].strip("`"): row[2].rstrip(" |") for row in rows}
    there = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert set(rooms) == there - {"__init__"}
    assert all(rooms.values())


def test_every_page_is_in_the_contents(generated):
    """A page that is in no table of contents is not found."""
    contents = (DOCS / "index.md").read_text("utf-8") + generated.floor()
    files = [*DOCS.glob("*.md"), *DOCS.glob("howto/*.md")]
    pages = {file.relative_to(DOCS).with_suffix("").as_posix() for file in files} - {"index"}
    assert [page for page in sorted(pages) if not re.search(rf"^{re.escape(page)}$", contents, re.M)] == []
