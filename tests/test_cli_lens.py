"""Does `mcr-lens lens` read a text at every depth, and leave what it says?"""

import pytest
from test_cli import run

import mcr_lens as mcr

TEXT = "The handler receives the exception, and the rest of the block is not executed. " * 12


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.mark.demo
def test_a_table_a_result_and_a_page(text, tmp_path):
    out, _ = run("lens", "demo", "--text", text, "--out", tmp_path / "out", "--window", 64, "--stride", 32)
    ds = mcr.load(tmp_path / "out" / "result.nc")
    own = mcr.logit_lens(mcr.load_model("demo", verbose=False), text, window=64, stride=32, progress=False)
    assert (ds.cross_entropy == own.cross_entropy).all()
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == [str(depth) for depth in range(9)]
    assert float(rows[-1][2]) == pytest.approx(float(ds.perplexity[-1]), rel=0.01)
    assert f"{len(TEXT):,} tokens in" in out
    assert "Plotly" in (tmp_path / "out" / "lens.html").read_text()


@pytest.mark.demo
def test_a_tuned_lens_is_kept_and_used_again(text, tmp_path):
    out, _ = run("lens", "demo", "--text", text, "--tuned", "--steps", 5, "--out", tmp_path / "a")
    assert "gain" in out
    made = tmp_path / "a" / "lens.safetensors"
    run("lens", "demo", "--text", text, "--translators", made, "--out", tmp_path / "b")
    assert mcr.load(tmp_path / "b" / "result.nc").attrs["lens"] == "tuned lens"


def test_what_is_wrong_is_said_in_a_sentence(text, tmp_path, monkeypatch):
    """And no folder is left behind."""
    monkeypatch.chdir(tmp_path)
    for given, message in (
        (("--text", tmp_path / "none"), "none is not a file"),
        (("--text", text, "--tuned", "--translators", text), "--tuned trains a lens and --translators names"),
        (("--text", text, "--out", text), "is a file; name a folder with --out"),
    ):
        _, said = run("lens", "demo", *given, code=1)
        assert message in said.replace("\n", " ")
    assert {file.name for file in tmp_path.iterdir()} == {"text.txt"}
