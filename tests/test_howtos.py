"""Can the pages be followed literally: does the code in them run, in order, in an empty folder?"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from doc_pages import RUN, blocks

pytestmark = pytest.mark.once

LONG = {"figures", "readouts", "cluster", "training", "big_models", "own_model", "verdict"}
"""Pages that take longest to follow: only `make test-all` does."""


def run_bash(code: str, folder: Path) -> None:
    """As in a terminal with the environment switched on."""
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


pages = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in LONG else []) for page in RUN
]


@pytest.mark.parametrize("page", pages)
def test_it_can_be_followed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page):
        if block.why_not is not None:
            continue
        if block.language == "bash":
            run_bash(block.code, tmp_path)
        else:
            # As a line number of the page, where an error is looked for.
            code = compile("\n" * block.line + block.code, str(page), "exec")
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # a reader sees them and goes on
                exec(code, names)
        ran += 1
    assert ran


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_what_is_not_run_can_be_read(page):
    """Code that needs a network or a GPU is at least Python, and says why it is not run."""
    for block in blocks(page):
        if block.language == "python":
            compile(block.code, f"{page}:{block.line}", "exec")
        assert block.why_not is None or len(block.why_not) > 8
