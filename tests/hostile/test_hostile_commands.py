"""Does a refused command say why, in words, with a code, and leave nothing behind?"""

import os
import subprocess
import sys
import warnings

import pytest
from bad_commands import CASES, Command
from typer.testing import CliRunner
from world import World

import mcr_lens
from mcr_lens.cli import app

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Files and models; made once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def empty(tmp_path, monkeypatch, world):
    """The working folder, with nothing in it; "acme/tiny" is the tiny model in memory."""
    real = mcr_lens.load_model

    def load(model, **options):
        return world.reader if model == "acme/tiny" else real(model, **options)

    monkeypatch.setattr(mcr_lens, "load_model", load)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", [pytest.param(case, id=case.what) for case in CASES])
def test_refused_in_words(world: World, case: Command, empty):
    """Code, words on standard error, no traceback, no file."""
    arguments = [str(argument) for argument in case.arguments(world)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "MCR_LENS_DEBUG": None})
    assert done.exit_code == case.code, done.output
    assert case.says in " ".join(done.stderr.split())
    assert "Traceback" not in done.output + done.stderr
    written = [path for path in empty.rglob("*") if path.is_file()]
    assert not written and (case.code == 1 or not list(empty.iterdir()))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["measure", "demo", "--prompts", "\udcff", "--out", "out"], 1, "is not a file"),
        (["inspect", "/no/such/folder"], 1, "is no model: there is no such folder"),
        pytest.param(["sweep", "."], 1, "is not a file; name a plan file", marks=pytest.mark.slow),
    ],
)
def test_as_a_process(arguments, code, says, tmp_path):
    """The same through the shell, where a file's name may be no UTF-8."""
    command = [sys.executable, "-c", "from mcr_lens.cli import app; app()", *arguments]
    done = subprocess.run(
        command, capture_output=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"}, timeout=120
    )
    said = done.stderr.decode(errors="replace")
    assert done.returncode == code and says in " ".join(said.split())
    assert "Traceback" not in said and not list(tmp_path.iterdir())


def test_the_commands_are_distinct(world):
    """By name, and every command that takes input has a case."""
    assert len({case.what for case in CASES}) == len(CASES)
    tried = {case.arguments(world)[0] for case in CASES}
    assert {"measure", "diagnose", "report", "lens", "sweep", "emergence", "inspect"} <= tried
