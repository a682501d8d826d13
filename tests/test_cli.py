"""The command line: what it writes, prints and refuses; models are tiny and made in memory."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
from models import hugging_face, tokenizer
from test_plots import fake_result
from typer.testing import CliRunner

import mcr_lens
from mcr_lens import cli, cli_options
from mcr_lens.models import load_model
from mcr_lens.prompt_files import read_prompt_file
from mcr_lens.terminal import print_profile

LINES = ["The quick brown fox jumps.", "Nothing to see here, move along.", "A third one, of other length."]


@pytest.fixture(scope="session")
def tiny():
    return load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)


@pytest.fixture
def loads(monkeypatch, tiny):
    """`load_model` gives the tiny model; returns what it was asked for."""
    asked: list[tuple[str, dict]] = []

    def load(name, **options):
        asked.append((name, options))
        return tiny

    monkeypatch.setattr(mcr_lens, "load_model", load)
    return asked


@pytest.fixture
def prompt_file(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def run(*arguments: object, code: int = 0, **environment: str):
    """Run a command and return (stdout, stderr)."""
    done = CliRunner().invoke(
        cli.app, [str(a) for a in arguments], env={"COLUMNS": "80", "MCR_LENS_DEBUG": None, **environment}
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.stderr
    return done.stdout, done.stderr


def measure(prompts: Path, out: Path, *more: object, code: int = 0) -> tuple[str, str]:
    return run("measure", "acme/tiny", "--prompts", prompts, "--out", out, *more, code=code)


def test_measure_writes_result_and_report(loads, prompt_file, tmp_path):
    out, err = measure(prompt_file, tmp_path / "a" / "b", "--revision", "step1")
    ds = mcr_lens.load(tmp_path / "a" / "b" / "result.nc")
    assert ds.sizes["prompt"] == 3 and ds.text.values.tolist() == LINES
    assert (tmp_path / "a" / "b" / "report.html").is_file() and (
        tmp_path / "a" / "b" / "close_up.nc"
    ).is_file()
    assert "result.nc" in out and "report.html" in out and "norm ratio peaks" in out
    assert loads == [("acme/tiny", {"dtype": "float32", "device": None, "revision": "step1"})]
    assert "Traceback" not in err and "Warning" not in err


@pytest.mark.once
def test_options_reach_the_measurement(loads, prompt_file, tmp_path):
    measure(
        prompt_file, tmp_path, "--metrics", "sink_score, norms", "--batch-size", 1, "--max-length", 9,
        "--prepend-bos", "no", "--limit", 2, "--dtype", "bfloat16", "--device", "cpu",
    )  # fmt: skip
    ds = mcr_lens.load(tmp_path / "result.nc")
    assert ds.sizes["prompt"] == 2 and ds.n_tokens.max() == 9
    assert "sink_score" in ds and "bos_norm" in ds and "matrix_entropy" not in ds
    assert not ds.has_bos.any()
    assert loads[0][1] == {"dtype": "bfloat16", "device": "cpu", "revision": None}


@pytest.mark.once
def test_first_token_is_not_called_bos(loads, prompt_file, tmp_path):
    out, _ = measure(prompt_file, tmp_path, "--prepend-bos", "no")
    assert "position 0 is the first token, not a BOS" in out
    assert "position 0 is the first token, not a BOS" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.once
def test_library_warnings_are_notes(loads, prompt_file, tmp_path):
    prompt_file.write_text("long " * 30 + "\n" + "longer " * 30 + "\nshort enough to fit\n")
    _, err = measure(prompt_file, tmp_path)
    assert re.search(r"^note: 2 of 3 prompts were longer than 64 tokens", err, flags=re.M)
    assert "PromptWarning" not in err and err.count("were longer") == 1


def test_blank_lines_are_skipped_and_counted(loads, prompt_file, tmp_path):
    prompt_file.write_text(f"\n{LINES[0]}\n   \n{LINES[1]}\n\n", encoding="utf-8")
    _, err = measure(prompt_file, tmp_path, "--metrics", "norms")
    assert f"note: 3 blank lines of {prompt_file} skipped" in err
    assert mcr_lens.load(tmp_path / "result.nc").sizes["prompt"] == 2


@pytest.mark.once
def test_json_lines(loads, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"id": 1, "text": t, "body": t[:12]}) + "\n" for t in LINES))
    measure(path, tmp_path, "--metrics", "norms")
    assert mcr_lens.load(tmp_path / "result.nc").text.values.tolist() == LINES
    measure(path, tmp_path, "--metrics", "norms", "--field", "body")
    assert mcr_lens.load(tmp_path / "result.nc").text.values.tolist() == [t[:12] for t in LINES]


@pytest.mark.once
def test_report_is_skipped_with_a_notice(loads, prompt_file, tmp_path, monkeypatch):
    _, err = measure(prompt_file, tmp_path, "--metrics", "value_drain")
    assert "note: no report was written: the result has none of massive_activation_ratio" in err
    assert "note: no table" in err
    assert (tmp_path / "result.nc").is_file() and not (tmp_path / "report.html").exists()
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    out, err = measure(prompt_file, tmp_path)
    assert "note: no report was written: this needs plotly" in err and 'pip install "mcr-lens[plots]"' in err
    assert "is from an earlier run" in err and "report.html" not in out


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"", [], "holds no prompts; write one a line"),
        (b"\n \n", [], "holds no prompts"),
        (b"caf\xe9", [], "is not UTF-8 text (byte 3)"),
        (b'{"a": "x", "b": 1}', ["--field", "text"], "line 1 has no field 'text'; its fields are: a, b"),
        (b'{"text": "x"}\n\n{"body": "y"}', ["--field", "text"], "line 3 has no field 'text'"),
        (b'{"text": 3}', ["--field", "text"], "line 1: field 'text' holds a int; a prompt is text"),
        (b'{"text": ""}', ["--field", "text"], "field 'text' holds an empty string"),
        (b"{text}", ["--field", "text"], "line 1 is not JSON"),
        (b'["x"]', ["--field", "text"], "line 1 holds a list; every line must be an object"),
        (b"fine", ["--metrics", "matrix_entrpy"], "unknown metric 'matrix_entrpy': did you mean"),
        (b"fine", ["--metrics", ","], "no metrics were asked for"),
        (b"fine", ["--batch-size", "many"], "--batch-size many: pass a positive number or auto"),
        (b"fine", ["--max-length", "65"], "max_length=65 is more than the 64 tokens"),
    ],
)
def test_errors_are_one_sentence(loads, tmp_path, content, more, message):
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    out, err = measure(path, tmp_path / "out", *more, code=1)
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert out == ""


@pytest.mark.once
def test_more_errors(loads, prompt_file, tmp_path, monkeypatch):
    _, err = measure(tmp_path / "no.txt", tmp_path, code=1)
    assert err == f"error: {tmp_path / 'no.txt'} is not a file\n"
    _, err = measure(prompt_file, prompt_file, code=1)
    assert err == f"error: {prompt_file} is a file; name a folder with --out\n"

    def missing(name, **options):
        raise OSError(2, "No such file or directory", name)

    monkeypatch.setattr(mcr_lens, "load_model", missing)
    _, err = measure(prompt_file, tmp_path, code=1)
    assert err == "error: acme/tiny: No such file or directory\n"


def test_debug_lets_the_traceback_through(prompt_file, tmp_path):
    with pytest.raises(ValueError, match="--batch-size 0"):
        run(
            "measure", "x", "--prompts", prompt_file, "--out", tmp_path, "--batch-size", "0",
            MCR_LENS_DEBUG="1",
        )  # fmt: skip


@pytest.mark.once
def test_demo_shows_the_causal_check(loads, tmp_path, prompt_file, monkeypatch):
    monkeypatch.setattr(cli_options, "DEMO_PROMPTS", str(prompt_file))
    out, err = run("demo", "--out", tmp_path / "demo")
    assert (tmp_path / "demo" / "result.nc").is_file() and (tmp_path / "demo" / "report.html").is_file()
    ds = mcr_lens.load(tmp_path / "demo" / "result.nc")
    assert ds.attrs["interventions"] == "[]"
    assert f"with the MLP of block {mcr_lens.massive_layer(ds)} writing nothing at BOS" in out
    pattern = r"largest norm ratio: (\S+) before, (\S+) after"
    before, after = map(float, re.search(pattern, out).groups())
    assert math.isclose(before, ds.massive_activation_ratio.mean("prompt").max(), rel_tol=5e-3)
    assert before != after
    assert "normalised entropy at depth " in out and "of 4 before" in out
    assert loads[0][0] == "demo" and "Traceback" not in err


def test_metrics_lists_every_metric(capsys):
    for columns in ("80", "200"):
        out, _ = run("metrics", COLUMNS=columns)
        assert all(m.name in out for m in mcr_lens.list_metrics())
        assert max(map(len, out.splitlines())) <= int(columns)
        assert "next_token_loss *" in out and "* measured only when named" in out
    rows = json.loads(run("metrics", "--json")[0])
    assert [row["name"] for row in rows] == [m.name for m in mcr_lens.list_metrics()]
    assert set(rows[0]) == {"name", "axes", "units", "description", "source", "group", "default"}


def test_version_and_help():
    assert run("version")[0] == run("--version")[0] == f"mcr-lens {mcr_lens.__version__}\n"
    assert "demo" in run("--help")[0]


@pytest.mark.parametrize("n_layers", [5, 80])
@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_table_fits_80_columns_and_cuts_no_number(capsys, monkeypatch, n_layers, columns):
    monkeypatch.setenv("COLUMNS", columns)
    ds = fake_result(n_layers)
    ds["bos_norm"] *= 1000
    print_profile(ds)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "…" not in out
    assert max(map(len, out.splitlines())) <= max(80, int(columns))
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+ .*│", line)]
    assert [int(row[0]) for row in rows] == list(range(n_layers + 1))
    assert rows[2][1] == "1,200,000" or rows[2][1] == "1.20e+06"
    assert rows[2][6:8] == ["│", "1"] and rows[0][6:8] == ["│", "–"]
    assert "block l − 1, which wrote it" in out


def test_only_line_ends_divide_prompts(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\u2028still one\r\n two \n".encode())
    assert read_prompt_file(path) == (["one\u2028still one", " two "], 0)


def test_inspect_says_what_can_be_read(loads, tiny):
    """The same words as `inspect_model`, and exit code 0 where everything can be measured."""
    out, _ = run("inspect", "acme/tiny", "--dtype", "bfloat16", "--revision", "v2")
    assert out.strip() == str(mcr_lens.inspect_model(tiny))
    assert "every default metric can be measured" in out and "mlp_out: exact" in out
    assert loads == [("acme/tiny", {"dtype": "bfloat16", "device": None, "revision": "v2"})]


def test_inspect_fails_where_something_cannot_be_measured(monkeypatch):
    """For scripts: exit code 1, with the reason in the words."""
    parallel = load_model(hugging_face("opt", attention="sdpa"), verbose=False)
    parallel.original_model.set_attn_implementation("sdpa")
    monkeypatch.setattr(mcr_lens, "load_model", lambda name, **options: parallel)
    out, _ = run("inspect", "acme/opt", code=1)
    assert "not every default metric can be measured" in out and "sdpa" in out


@pytest.mark.once
def test_position_option(loads, prompt_file, tmp_path):
    """Another token than the first is taken for BOS, and the words say so."""
    out, _ = measure(prompt_file, tmp_path / "out", "--position", 2)
    assert "position 2" in out
    assert mcr_lens.load(tmp_path / "out" / "result.nc").attrs["position"] == 2


@pytest.fixture(scope="session")
def planted():
    """A model in which something is to be found, with a tokenizer for texts."""
    from mcr_lens.testing import planted_model

    words = tokenizer(prepends=True)
    return load_model(planted_model("massive_sinks", "llama3").model, tokenizer=words, verbose=False)


@pytest.fixture
def finds(monkeypatch, planted):
    monkeypatch.setattr(mcr_lens, "load_model", lambda name, **options: planted)


def test_diagnose_prints_verdicts_and_writes_what_was_asked_for(finds, prompt_file, tmp_path):
    folder, verdicts = tmp_path / "out" / "deeper", tmp_path / "verdicts.json"
    out, err = run("diagnose", "acme/tiny", "--prompts", prompt_file, "--out", folder, "--json", verdicts)
    read = json.loads(verdicts.read_text("utf-8"))
    assert len(read["claims"]) == 13 and read["n_prompts"] == 3
    words = " ".join(out.split())
    for claim in read["claims"]:
        assert f"{claim['verdict']} {claim['statement']}" in words
        assert claim["evidence"] in words
    assert read["summary"] in words and "BOS carries a massive activation" in words
    assert words.index(read["claims"][0]["statement"]) < words.index(read["summary"])
    for name in ("result.nc", "conditions.nc", "close_up.nc", "verdicts.json", "report.html"):
        assert (folder / name).is_file()
    assert mcr_lens.condition_names(mcr_lens.load(folder / "conditions.nc"))[:2] == ["clean", "cut"]
    assert "Does the claim hold in this model?" in (folder / "report.html").read_text("utf-8")
    assert "Traceback" not in err and "Warning" not in err
    assert "\x1b" not in out and max(map(len, out[: out.index("Written")].splitlines())) <= 80


@pytest.mark.once
def test_diagnose_without_files_takes_the_bundled_prompts(finds, prompt_file, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_options, "DEMO_PROMPTS", str(prompt_file))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    out, _ = run("diagnose", "acme/tiny", "--limit", 2, COLUMNS="200")
    assert sorted(tmp_path.iterdir()) == before and "Written" not in out
    assert "MLPs write it" in out


@pytest.mark.once
def test_diagnose_takes_cut_offs_and_position(finds, prompt_file, tmp_path):
    verdicts = tmp_path / "v.json"
    run(
        "diagnose", "acme/tiny", "--prompts", prompt_file, "--json", verdicts, "--ratio", 500, "--threshold",
        0.5, "--valley", 0.3, "--position", 1, "--seed", 3,
    )  # fmt: skip
    read = json.loads(verdicts.read_text("utf-8"))
    assert read["cut_offs"] == {"ratio": 500.0, "threshold": 0.5, "valley": 0.3} and read["position"] == 1
    assert read["claims"][0]["statement"] == "position 1 carries a massive activation"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--json", "no/where.json"], "no is not a folder; create it first"),
        (["--prompts", "no.txt"], "no.txt is not a file"),
        (["--ratio", "1"], "ratio=1.0: a massive row is longer than the others"),
        (["--threshold", "2"], "threshold=2.0: mean attention lies between 0 and 1"),
        (["--valley", "1"], "normalised entropy lies between 0 and 1"),
        (["--batch-size", "0"], "--batch-size 0: pass a positive number or auto"),
    ],
)
def test_diagnose_refuses_in_one_sentence(finds, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    out, err = run("diagnose", "acme/tiny", *more, code=1)
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_help_of_diagnose_fits():
    out, _ = run("diagnose", "--help")
    assert max(map(len, out.splitlines())) <= 80
    for option in ("--prompts", "--out", "--json", "--ratio", "--threshold", "--valley", "--position"):
        assert option in out
    assert "whether the paper's claim holds" in " ".join(out.split()).lower()
