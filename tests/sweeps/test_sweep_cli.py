"""The command `mcr-lens sweep`: what it writes, prints and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from models import hugging_face, tokenizer
from test_cli import run

import mcr_lens
from mcr_lens.models import load_model

pytestmark = pytest.mark.once

PLAN = """
out = "out"
metrics = ["bos_norm", "sink_score"]
chunk = 2
models = ["acme/tiny"]

[[prompts]]
name = "p"
file = "p.txt"
"""


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Path:
    """A plan whose model is a tiny one in memory."""
    tiny = load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    monkeypatch.setattr("mcr_lens.sweep_engines.load_model", lambda *_, **__: tiny)
    monkeypatch.setattr("mcr_lens.sweep_identity._commit", lambda plan: None)
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    return file


def test_progress_and_table(plan):
    """A line for each result on standard error, a table on standard output; the second time all is reused."""
    out, err = run("sweep", plan)
    assert (
        "acme/tiny/p" in out
        and "done" in out
        and str(plan.parent / "out" / "results") in out.replace("\n", "")
    )
    assert err.startswith("acme/tiny/p: 3 prompts → ")
    (result,) = (plan.parent / "out").glob("results/*/p.nc")
    assert mcr_lens.load(result).sizes["prompt"] == 3
    before = result.stat()
    out, err = run("sweep", plan)
    assert "finished before" in err and result.stat() == before


def test_options_take_the_place_of_the_plan(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("sweep", plan, "--out", "elsewhere")
    assert (tmp_path / "elsewhere" / "results").is_dir() and not (tmp_path / "out").exists()
    _, err = run("sweep", plan, "--workers", 2, code=1)
    assert err == f'error: {plan}: workers=2: it is for the engine ray; say engine = "ray" or leave it out\n'


def test_what_fails_is_in_the_table(plan, tmp_path):
    """Exit code 1, the table all the same, one sentence at the end."""
    (tmp_path / "bad.jsonl").write_text("{}\n")
    plan.write_text(PLAN + '[[prompts]]\nname = "bad"\nfile = "bad.jsonl"\n')
    out, err = run("sweep", plan, code=1)
    assert "done" in out and "has no field" in out
    assert err.splitlines()[-1].startswith(
        "error: 1 of 2 results are not finished, the first of them acme/tiny/bad: "
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("out = [", "is not TOML: "),
        (PLAN.replace("chunk", "chunks"), "unknown key 'chunks'; did you mean 'chunk'?"),
        (PLAN.replace("p.txt", "q.txt"), "q.txt is not a file"),
        (PLAN.replace("sink_score", "sink_scor"), "unknown metric 'sink_scor': did you mean 'sink_score'?"),
        (PLAN.replace('["acme/tiny"]', "[]"), "models is empty; write one or more tables [[models]]"),
    ],
)
def test_a_bad_plan_is_one_sentence(plan, content, message):
    plan.write_text(content)
    out, err = run("sweep", plan, code=1)
    assert out == "" and message in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (plan.parent / "out").exists()


def test_no_plan(tmp_path):
    _, err = run("sweep", tmp_path / "no.toml", code=1)
    assert err == f"error: {tmp_path / 'no.toml'} is not a file; name a plan file such as sweep.toml\n"


@pytest.mark.slow
@pytest.mark.demo
def test_the_example(tmp_path):
    """The plan that comes with the package runs as it is."""
    example = Path(__file__).parents[2] / "examples" / "sweep_plan.toml"
    out, _ = run("sweep", example, "--out", tmp_path)
    assert "demo/bundled" in out and "done" in out
    ds = mcr_lens.load(tmp_path / "results" / "demo" / "bundled.nc")
    assert dict(ds.sizes)["prompt"] == 16 and mcr_lens.change(ds, "bos_norm", "cut").any()


@pytest.mark.demo
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c(tmp_path):
    """Stopped by hand: exit code 130, one line, and the same command goes on from there."""
    rows = [json.dumps({"text": f"Sentence {i} of many that take a while."}) for i in range(400)]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    plan = PLAN.replace("acme/tiny", "demo").replace("p.txt", "p.jsonl")
    (tmp_path / "plan.toml").write_text(plan)
    # A background job of a shell ignores the signal, and so do its children unless told otherwise.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from mcr_lens.cli import app; app()"
    command = [sys.executable, "-c", code, "sweep", "plan.toml"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("out/parts/*/*/*.nc")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("stopped; what is finished is kept, and the same command goes on from there\n")
    assert "Traceback" not in err and "KeyboardInterrupt" not in err
    assert list(tmp_path.glob("out/parts/*/*/*.nc"))
