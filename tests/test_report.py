"""The page: one file, no request, nothing of a prompt taken for HTML, all of it or nothing."""

import os
import re
import stat
import sys

import numpy as np
import pytest
import xarray as xr
from html_page import Page
from test_plots import fake_result

from mcr_lens import report
from mcr_lens.report import write_report
from mcr_lens.schema import ResultSchemaError

HOSTILE = "</script><script>alert(1)</script>\"onmouseover='x' {{ 7*7 }} <img src=https://evil.example>"


def page(ds: xr.Dataset, folder) -> Page:
    return Page(write_report(ds, folder / "report.html").read_text("utf-8"))


def test_content_in_order(tmp_path):
    text = page(fake_result(), tmp_path).text
    wanted = [
        "acme/tiny", "3 prompts of 32 tokens", "8 layers, 4 heads, width 64", "What the numbers say",
        "Massive activation at BOS", "Cut-offs used in the words above", "Layer profile",
        "The numbers by depth", "Prompts", "A quiet afternoon 0", "Where the numbers come from", "processing",
        "Glossary", "matrix_entropy", "nats", "arXiv 2510.06477, matrix-based entropy",
    ]  # fmt: skip
    place = 0
    for word in wanted:
        found = text.find(word, place)
        assert found >= 0, f"{word!r} is missing or comes too early"
        place = found


def test_table_has_a_row_per_depth_with_the_block_beside_it(tmp_path):
    html = write_report(fake_result(), tmp_path / "r.html").read_text("utf-8")
    rows = re.findall(r'<tr><th scope="row">(\d+)</th>(.*?)</tr>', html, flags=re.S)[:9]
    assert [int(number) for number, _ in rows] == list(range(9))
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, flags=re.S) for _, row in rows]
    assert "400" in cells[2] and "90.0" in cells[2] and "1" in cells[2]
    assert cells[0][5:] == ["–"] * 5


@pytest.mark.once
def test_nothing_is_taken_for_html(tmp_path):
    """In all places at once, each with a number of its own to be found by."""
    places = ("text", "token", "model", "processing", "bos_token", "revision")
    given = {place: HOSTILE.replace("alert(1)", f"alert({i})") for i, place in enumerate(places)}
    found, ordinary = page(fake_result(**given), tmp_path), page(fake_result(), tmp_path)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in ordinary.tags]
    assert {name for _, attrs in found.tags for name in attrs} == {
        name for _, attrs in ordinary.tags for name in attrs
    }
    assert [place for place in places if given[place] not in found.text] == []
    assert not any("alert(" in script for script in found.scripts)


@pytest.mark.once
def test_labels_and_variable_names_are_escaped(tmp_path):
    ds = fake_result()
    ds["anisotropy"].attrs.update(long_name=HOSTILE, units=HOSTILE, source=HOSTILE)
    ds = ds.rename({"mixing_score": HOSTILE})
    assert [tag for tag, _ in page(ds, tmp_path).tags if tag == "img"] == []


def test_nothing_is_loaded(tmp_path):
    found = page(fake_result(model="https://evil.example/x.js"), tmp_path)
    loads = [
        (tag, name, value)
        for tag, attrs in found.tags
        for name, value in attrs.items()
        if not (name == "href" and (value or "").startswith("#"))  # to a section of the page itself
        and name in ("src", "href", "srcset", "action", "data", "poster", "background", "integrity")
    ]
    assert loads == []
    assert not any(tag in ("link", "iframe", "object", "embed", "base") for tag, _ in found.tags)
    css = " ".join(found.styles)
    assert "@import" not in css and "url(" not in css and "http" not in css
    policy = [a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0].startswith("default-src 'none'") and "http" not in policy[0]
    own = [s for s in found.scripts if len(s) < 100_000]
    assert not any("import(" in s or "fetch(" in s or "XMLHttpRequest" in s for s in own)


def test_plotly_is_inlined_once(tmp_path):
    html = write_report(fake_result(), tmp_path / "r.html").read_text("utf-8")
    assert len(re.findall(r"plotly\.js v\d", html)) == 1
    for name in ("themes", "layer-profile-drawing", "head-scores-drawing"):
        assert html.count(f'<script type="application/json" id="{name}">') == 1


@pytest.mark.once
def test_twenty_prompts_at_most(tmp_path):
    text = page(fake_result(prompts=25), tmp_path).text
    assert "The first 20 of 25" in text and "A quiet afternoon 19" in text and "afternoon 20" not in text
    assert "All 3" in page(fake_result(), tmp_path).text


def test_absence_and_missing_bos_are_said(tmp_path):
    text = page(fake_result(massive=False, bos=False), tmp_path).text
    assert "position 0 is the first token, not a BOS" in text
    assert "No massive activation at the first token: the norm ratio peaks at 2.00" in text
    assert "No compression valley" in text and "No attention sinks" in text


def test_short_prompts_give_a_sentence_instead_of_a_warning(tmp_path):
    assert "even a head that attends to all keys" in page(fake_result(n_tokens=5), tmp_path).text


@pytest.mark.once
def test_part_of_the_metrics_is_enough(tmp_path):
    text = page(fake_result(names=("sink_score",)), tmp_path).text
    assert "sink rate" in text and "Massive activation" not in text
    with pytest.raises(ValueError, match="none of massive_activation_ratio"):
        write_report(fake_result(names=("anisotropy",)), tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_result_that_went_through_a_file(tmp_path):
    from mcr_lens.results import load, save

    ds = load(save(fake_result(), tmp_path / "r.nc"))
    assert page(ds, tmp_path).text == page(fake_result(), tmp_path).text


@pytest.mark.once
def test_a_lone_surrogate_does_not_stop_the_page(tmp_path):
    assert page(fake_result(token="\ud800x"), tmp_path).tags


@pytest.mark.once
def test_failure_leaves_the_old_page(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("old")
    original = report.Path.replace

    def fails(self, other):
        raise OSError("disk full")

    monkeypatch.setattr(report.Path, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_report(fake_result(), target)
    monkeypatch.setattr(report.Path, "replace", original)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.once
@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_page_has_the_mode_of_an_ordinary_file(tmp_path):
    before = os.umask(0o022)
    try:
        written = write_report(fake_result(), tmp_path / "report.html")
    finally:
        os.umask(before)
    assert stat.S_IMODE(written.stat().st_mode) == 0o644


@pytest.mark.once
def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        write_report(fake_result(), tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder; create it first"):
        write_report(fake_result(), tmp_path / "no" / "report.html")
    with pytest.raises(ResultSchemaError, match="does not come from mcr_lens"):
        write_report(xr.Dataset({"a": ("b", np.ones(2))}), tmp_path / "r.html")
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        write_report(fake_result().isel(prompt=[]), tmp_path / "r.html")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'needs jinja2.*pip install "mcr-lens\[plots\]"'):
        write_report(fake_result(), tmp_path / "r.html")


def verdict_on(ds: xr.Dataset, evidence: str = "because of <b>this</b>"):
    from mcr_lens.claims import Claim
    from mcr_lens.diagnosis import Diagnosis
    from mcr_lens.evidence import Findings
    from mcr_lens.judging import judge
    from mcr_lens.resampling import Interval

    known = judge(Findings(ds))
    shown = Interval(0.62, 0.55, 0.7, 0.95, 3)
    extra = Claim("hostile", f"stated {HOSTILE}", "untestable", evidence, shown, HOSTILE)
    cut_offs = {"ratio": 10.0, "threshold": 0.3, "valley": 0.2}
    return Diagnosis((*known, extra), Findings(ds), cut_offs)


@pytest.fixture
def judged():
    """A whole result, as a diagnosis needs one."""
    from handmade import result

    return result(seed=3, n_tokens=(20, 24, 30))


def test_verdicts_come_first(judged, tmp_path):
    diagnosis = verdict_on(judged)
    found = Page(write_report(judged, tmp_path / "v.html", diagnosis=diagnosis).read_text("utf-8"))
    text = found.text
    place = 0
    for word in (
        "hand-made", "Does the claim hold in this model?", re.sub(r"\s+", " ", diagnosis.summary),
        diagnosis.claims[0].statement, "0.62 [0.55, 0.70]", "What the numbers say", "Layer profile",
    ):  # fmt: skip
        assert text.find(word, place) >= 0, f"{word!r} is missing or comes too early"
        place = text.find(word, place)
    for claim in diagnosis.claims:
        assert claim.statement in text and claim.evidence in text
    badges = [a["class"] for _, a in found.tags if (a.get("class") or "").startswith("verdict")]
    assert badges == [f"verdict {claim.verdict}" for claim in diagnosis.claims]


@pytest.mark.once
def test_a_page_without_a_diagnosis_has_no_verdicts(judged, tmp_path):
    found = page(judged, tmp_path)
    assert "Does the claim hold" not in found.text
    assert not [a for _, a in found.tags if a.get("class") in ("claims", "summary")]


@pytest.mark.once
def test_no_claim_is_taken_for_html(judged, tmp_path):
    def tags(evidence: str) -> Page:
        written = write_report(judged, tmp_path / "h.html", diagnosis=verdict_on(judged, evidence))
        return Page(written.read_text("utf-8"))

    tame, hostile = tags("because"), tags(HOSTILE)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags]
    assert "img" not in [tag for tag, _ in hostile.tags] and "alert(1)" in hostile.text
    assert not any("alert(1)" in script for script in hostile.scripts)
    assert not [v for _, a in hostile.tags for n, v in a.items() if n in ("src", "onmouseover")]
    assert all((a["href"] or "").startswith("#") for _, a in hostile.tags if "href" in a)
