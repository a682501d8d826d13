"""Does the fuzzer run, reach everything, and find nothing on a fixed seed?"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "fuzz").is_dir():
    pytest.skip("the fuzzer is not part of this copy", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

pytestmark = pytest.mark.once

SEED, CALLS = 3, 260


def test_a_short_run_finds_nothing():
    """A call of nearly everything, always the same."""
    from fuzz.__main__ import names, run

    counts, findings = run(SEED, minutes=5, most=CALLS)
    assert not findings
    assert len(counts) > 0.8 * len(names())  # what is slow is called in every tenth round


def test_the_page_has_the_numbers(capsys, monkeypatch):
    """`python -m fuzz count` is what the page says."""
    from fuzz.__main__ import main

    monkeypatch.setattr(sys, "argv", ["fuzz", "count"])
    assert main() == 0
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "hostile_input.md").read_text("utf-8")


def test_a_call_can_be_made_again():
    """The same number of the same seed is the same call."""
    from world import World

    from fuzz.__main__ import case

    first, second = (case(40, SEED, World(ROOT)) for _ in range(2))
    assert first is not None and second is not None
    assert first[0].shown == second[0].shown and first[1] == second[1]


def test_what_is_no_refusal_is_found(tmp_path):
    """An error from elsewhere, a warning of others, a file left behind."""
    import warnings

    import mcr_lens
    from fuzz.judge import judge

    assert "ZeroDivisionError" in judge(lambda: 1 / 0, [], tmp_path).finding
    assert "FutureWarning" in judge(lambda: warnings.warn("x", FutureWarning, 2), [], tmp_path).finding
    assert not judge(lambda: mcr_lens.get_metric("x"), [], tmp_path).finding
    (tmp_path / "half.part").write_text("")
    assert "left behind" in judge(lambda: None, [], tmp_path).finding
