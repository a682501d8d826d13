"""What lies in a folder, and `mcr-lens report`: which parts belong to a result, and are they all told?"""

import json

import pytest
import xarray as xr
from test_cli import run
from test_report_story import ablated, looked_at, whole

import mcr_lens
from mcr_lens.delivery import CLOSE_UP, CONDITIONS, RESULT, VERDICTS, beside, deliver
from mcr_lens.diagnosis import Diagnosis
from mcr_lens.evidence import Findings
from mcr_lens.judging import judge

pytestmark = pytest.mark.once

CUT_OFFS = {"ratio": 10.0, "threshold": 0.3, "valley": 0.2}


@pytest.fixture
def folder(tmp_path):
    """A folder as `mcr-lens diagnose` leaves it, of a hand-made result."""
    ds = whole(created="2026-01-02T03:04:05+00:00")
    findings = Findings(ds, experiments=ablated(ds))
    found = Diagnosis(tuple(judge(findings)), findings, CUT_OFFS)
    written = deliver(ds, tmp_path, close_up=looked_at(ds), found=found)
    assert [path.name for path in written] == [RESULT, CONDITIONS, CLOSE_UP, VERDICTS, "report.html"]
    return tmp_path


@pytest.mark.slow
def test_the_page_is_written_anew_without_the_model(folder, tmp_path):
    out, err = run("report", folder / RESULT, "--out", tmp_path / "a" / "b")
    again = tmp_path / "a" / "b" / "report.html"
    assert out == f"Written: {again}\n" and err == ""
    assert again.read_bytes() == (folder / "report.html").read_bytes()
    text = again.read_text("utf-8")
    assert "Does the claim hold in this model?" in text and 'id="comparison"' in text
    assert 'id="token-norms"' in text and "attention-view" in text


@pytest.mark.slow
def test_a_result_alone_is_told_alone(folder, tmp_path):
    lone = tmp_path / "lone"
    lone.mkdir()
    (folder / RESULT).rename(lone / RESULT)
    run("report", lone / RESULT, "--out", lone)
    text = (lone / "report.html").read_text("utf-8")
    assert "No ablation was made" in text and "No prompt was looked at from close by" in text
    assert "Does the claim hold" not in text


def test_what_belongs_to_an_earlier_result_is_not_told(folder):
    later = whole(created="2026-01-02T03:04:06+00:00")
    mcr_lens.save(later, folder / RESULT)
    assert beside(later, folder) == {}
    assert set(beside(whole(created="2026-01-02T03:04:05+00:00"), folder)) == {
        "conditions", "close_up", "diagnosis",
    }  # fmt: skip
    other = whole(created="2026-01-02T03:04:05+00:00", model="another/model")
    assert "diagnosis" not in beside(other, folder)


def test_files_hold_what_was_given(folder):
    close_up = xr.load_dataset(folder / CLOSE_UP, engine="h5netcdf")
    xr.testing.assert_equal(close_up, looked_at(whole()))
    assert mcr_lens.condition_names(mcr_lens.load(folder / CONDITIONS)) == ["clean", "cut"]
    assert json.loads((folder / VERDICTS).read_text("utf-8"))["claims"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.nc", None, "none.nc is not a file"),
        ("odd.nc", b"not a file of that kind", "cannot be read as netCDF"),
    ],
)
def test_refusals_in_one_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out, err = run("report", tmp_path / name, "--out", tmp_path / "out", code=1)
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_nothing_to_draw_is_said_and_fails(tmp_path):
    path = mcr_lens.save(whole()[["value_drain"]], tmp_path / "few.nc")
    out, err = run("report", path, "--out", tmp_path, code=1)
    assert out == "" and err.startswith("note: no report was written: the result has none of")
