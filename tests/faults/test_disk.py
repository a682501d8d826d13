"""What is left, and what is said, where a file cannot be written: a full disk, no permission, a folder?"""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade import result
from scripts import ran
from typer.testing import CliRunner

import mcr_lens
from mcr_lens import cli
from mcr_lens._files import replacing

pytestmark = pytest.mark.once

SCRIPT = Path(__file__).with_name("disk_writer.py")
POSIX = pytest.mark.skipif(os.name != "posix", reason="limits and permissions of POSIX")
FILES = (
    "result.nc", "part.nc", "report.html", "lens.safetensors", "heads.html", "figure.html", "verdicts.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def attempts() -> Iterator[list[dict]]:
    """What `disk_writer` saw: on a full disk, from the command line, and without permission."""
    pytest.importorskip("plotly"), pytest.importorskip("jinja2")
    folder = Path(tempfile.mkdtemp())  # those of pytest can only be reached by their owner
    folder.chmod(0o755)
    done = ran(SCRIPT, folder, PYTHONPATH=str(SCRIPT.parents[1]))
    yield [json.loads(line) for line in done.stdout.splitlines()]
    for each in folder.iterdir():
        each.chmod(0o755) if each.is_dir() else None
    shutil.rmtree(folder)


@POSIX
@pytest.mark.demo
def test_a_full_disk(attempts):
    """Every writer says which file did not fit; the old file is whole, and nothing lies beside it."""
    full = attempts[: len(FILES)]
    assert [a["name"] for a in full] == list(FILES)
    for a in full:
        assert a["said"].startswith("OSError: [Errno 27] File too large: '/"), a
        assert a["said"].endswith(f"/{a['name']}'") and a["kept"] and a["there"] == [a["name"]]


@POSIX
@pytest.mark.demo
def test_a_full_disk_from_the_command_line(attempts):
    """Exit code 1, one sentence, no file."""
    a = attempts[len(FILES)]
    assert a["code"] == 1 and a["there"] == [] and a["raised"] == "SystemExit(1)"
    last = a["said"].splitlines()[-1]
    assert last.startswith("error: /") and last.endswith("/new/out/result.nc: File too large")


@POSIX
@pytest.mark.demo
def test_a_folder_that_may_not_be_written(attempts):
    refused = attempts[len(FILES) + 1 :]
    assert [a["name"] for a in refused] == [*FILES, "folder", "target"]
    for a in refused[: len(FILES)]:
        assert a["said"].startswith("PermissionError: [Errno 13] Permission denied: '/"), a
        assert a["said"].endswith(f"/{a['name']}'") and a["kept"] and a["there"] == [a["name"]]
    folder, target = refused[-2:]
    assert folder["said"].endswith("/result-nc may not be written to; name another folder with --out")
    assert target["said"].endswith("/result.nc may not be written; name another file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_devices_are_written_to_and_not_replaced(tmp_path):
    """/dev/full is a disk that is always full, and stays a device."""
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '/dev/full'$"):
        mcr_lens.save(result(), "/dev/full")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    mcr_lens.save(result(seed=3), pipe)
    assert reader.communicate(timeout=30)[0][:4] == b"\x89HDF" and stat.S_ISFIFO(os.stat(pipe).st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_goes_to_a_full_disk():
    """One sentence and exit code 1, not a traceback when Python ends."""
    code = "from mcr_lens.cli import app; app()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "metrics", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1 and done.stderr == "error: [Errno 28] No space left on device\n"


def refusal(tmp_path: Path, *arguments: object) -> str:
    done = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"MCR_LENS_DEBUG": None})
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.exception
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def no_model(monkeypatch):
    """Nothing is loaded before the places for files have been looked at."""

    def load(*_args, **_options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(mcr_lens, "load_model", load)


def test_commands_look_before_they_measure(tmp_path, no_model):
    """A file where a folder should be, or a folder where a file should be: told before a model is loaded."""
    file, prompts = tmp_path / "file", tmp_path / "prompts.txt"
    file.write_text("old")
    prompts.write_text("A prompt.\n")
    wrong = f"error: {file} is a file; name a folder with --out\n"
    below = f"error: {file} is a file and no folder; name another path with --out\n"
    for place, said in ((file, wrong), (file / "below", below)):
        assert refusal(tmp_path, "measure", "demo", "--prompts", prompts, "--out", place) == said
        assert refusal(tmp_path, "diagnose", "demo", "--out", place) == said
        assert refusal(tmp_path, "demo", "--out", place) == said
        assert refusal(tmp_path, "lens", "demo", "--text", prompts, "--out", place) == said
        assert refusal(tmp_path, "emergence", tmp_path, "--out", place) == said
    said = refusal(tmp_path, "diagnose", "demo", "--json", tmp_path)
    assert said == f"error: {tmp_path} is a folder; name a file in it\n"
    said = refusal(tmp_path, "diagnose", "demo", "--json", tmp_path / "none" / "v.json")
    assert said == f"error: {tmp_path / 'none'} is not a folder; create it first\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "prompts.txt"]
    assert file.read_text() == "old"


@pytest.mark.parametrize("command", ["demo", "measure", "diagnose", "lens", "emergence"])
def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, command):
    """Stopped while a model is loaded: no folder, no traceback, the exit code of shells."""

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("A prompt.\n")
    monkeypatch.setattr(mcr_lens, "load_model", stop)
    monkeypatch.setattr("mcr_lens.checkpoints.load_model", stop)
    (tmp_path / "step1").mkdir()
    given = {"measure": ["demo", "--prompts", prompts], "diagnose": ["demo"], "demo": [],
             "lens": ["demo", "--text", prompts], "emergence": [tmp_path]}[command]  # fmt: skip
    done = CliRunner().invoke(cli.app, [command, *map(str, given), "--out", str(out)])
    assert done.exit_code == 130 and isinstance(done.exception, SystemExit)
    assert not out.exists() and "Traceback" not in done.stderr


def test_an_interrupt_while_a_file_is_written(tmp_path):
    """The old file stays, and nothing lies beside it."""
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_names_that_are_too_long_or_not_there(tmp_path):
    longest = tmp_path / f"{'n' * 240}.nc"
    mcr_lens.save(result(), longest)  # the temporary file beside it has a shorter name
    assert [p.name for p in tmp_path.iterdir()] == [longest.name]
    with pytest.raises(ValueError, match=rf"^'{tmp_path}/n+… is no path: no file can be called like this$"):
        mcr_lens.save(result(), tmp_path / ("n" * 300))
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}/none is not a folder; create it first$"):
        mcr_lens.save(result(), tmp_path / "none" / "a.nc")
    with pytest.raises(IsADirectoryError, match=rf"^{tmp_path} is a folder; name a file in it$"):
        mcr_lens.save(result(), tmp_path)
