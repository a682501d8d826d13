"""Are the notebooks clean, public in what they use, and complete? They are run by nbmake, not here."""

import ast
import json
import re
from itertools import groupby
from pathlib import Path

import pytest

import mcr_lens as mcr

pytestmark = pytest.mark.once

FOLDER = Path(__file__).parents[1] / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
ALLOWED = {"mcr_lens", "mcr_lens.testing", "numpy", "xarray", "pandas", "os", "pathlib", "jaxtyping", "torch"}
PIP = '%pip install "mcr-lens[plots,notebook]"'
PUBLIC = set(dir(mcr))  # what stands in __init__.pyi
FIGURES = {name for name in PUBLIC if name.startswith("plot_")}

notebooks = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def cells(file: Path, kind: str | None = None) -> list[dict]:
    found = json.loads(file.read_text("utf-8"))["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code(file: Path) -> list[ast.Module]:
    return [ast.parse(source(cell)) for cell in cells(file, "code")]


def names_of(tree: ast.AST) -> set[str]:
    """Everything that is asked of `mcr` in this piece of code."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mcr"
    }


def assigned(tree: ast.Module) -> dict[str, ast.expr]:
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def test_there_are_notebooks():
    assert [file.stem[:2] for file in FILES] == ["01", "02", "03", "04", "05", "06", "07"]


@notebooks
def test_no_outputs_are_kept(file):
    for cell in cells(file, "code"):
        assert cell["outputs"] == [], source(cell)
        assert cell["execution_count"] is None, source(cell)


@notebooks
def test_only_what_a_notebook_needs_is_kept(file):
    whole = json.loads(file.read_text("utf-8"))
    assert set(whole["metadata"]) == {"kernelspec", "language_info"}
    assert whole["metadata"]["language_info"] == {"name": "python"}
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in whole["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(cell["metadata"] == {} for cell in whole["cells"])


@notebooks
def test_it_begins_with_a_title_and_how_to_install(file):
    first = cells(file)[0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \S", source(first))
    before_code = [source(c) for c in cells(file)[: cells(file).index(cells(file, "code")[0])]]
    assert PIP in "".join(before_code)
    titles = [line for c in cells(file, "markdown") for line in source(c).splitlines() if line[:2] == "# "]
    assert len(titles) == 1


@notebooks
def test_one_cell_chooses_model_and_prompts(file):
    """And the environment may: so do the tests, and Colab."""
    first, *rest = code(file)
    chosen = assigned(first)
    assert {"MODEL", "PROMPTS"} <= set(chosen)
    assert ast.unparse(chosen["MODEL"]) == "os.environ.get('MCR_LENS_MODEL', 'demo')"
    for tree in rest:
        assert not {"MODEL", "PROMPTS"} & set(assigned(tree))


@notebooks
def test_only_public_things_are_used(file):
    for tree in code(file):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= ALLOWED, ast.unparse(node)
            if isinstance(node, ast.ImportFrom):
                assert node.module in ALLOWED - {"mcr_lens"}, ast.unparse(node)
        assert names_of(tree) <= PUBLIC | {"__file__"}


@notebooks
def test_a_figure_is_shown_and_then_said_in_numbers(file):
    """A figure ends its cell, and before the text goes on, a cell computes what it shows."""
    runs = groupby(cells(file), key=lambda cell: cell["cell_type"])
    for kind, run in runs:
        trees = [ast.parse(source(cell)) for cell in run] if kind == "code" else []
        for tree in trees:
            if FIGURES & names_of(tree):
                last = tree.body[-1]
                assert isinstance(last, ast.Expr) and FIGURES & names_of(last), ast.unparse(tree)
                assert not any(FIGURES & names_of(line) for line in tree.body[:-1])
        if any(FIGURES & names_of(tree) for tree in trees):
            assert not FIGURES & names_of(trees[-1]), f"no number after {ast.unparse(trees[-1])}"


@notebooks
def test_what_is_said_of_the_bundled_model_is_checked(file):
    """Text about "the bundled model" needs a cell that asserts it."""
    said = [
        source(cell) for cell in cells(file, "markdown") if "in the bundled model" in source(cell).lower()
    ]
    asserts = [tree for tree in code(file) if any(isinstance(node, ast.Assert) for node in ast.walk(tree))]
    assert len(asserts) >= len(said)


def test_every_figure_is_in_a_notebook():
    used = {name for file in FILES for tree in code(file) for name in names_of(tree)}
    assert FIGURES
    assert FIGURES - used == set()


def test_the_table_lists_them_all():
    rows = [line for line in (FOLDER / "README.md").read_text("utf-8").splitlines() if line.startswith("| [")]
    assert re.findall(r"\]\((\w+\.ipynb)\)", "\n".join(rows)) == [file.name for file in FILES]
    assert all(len(row.split("|")) == 4 and row.split("|")[2].strip() for row in rows)
