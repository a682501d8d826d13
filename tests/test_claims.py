"""How does a number with its interval become a verdict, and what does a claim say as JSON?"""

import json
import math

import numpy as np
import pytest

from mcr_lens.claims import Claim, Statement, mean_of, say, specific
from mcr_lens.resampling import Interval

STATEMENT = Statement("a_claim", "something is so")
KEYS = ["claim", "statement", "verdict", "evidence", "effect", "measure", "ci", "n"]


def interval(value: float, low: float, high: float, n: int = 9) -> Interval:
    return Interval(value, low, high, 0.95, n)


def decided(low: float, high: float, **options: bool) -> Claim:
    return STATEMENT.decided(interval((low + high) / 2, low, high), 0.5, "seen", "share", **options)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.6, 0.9, "holds"),
        (0.5, 0.9, "holds"),  # from the cut-off on
        (0.1, 0.4, "fails"),
        (0.5, 0.5, "holds"),
        (0.4, 0.4, "fails"),
        (0.4, 0.6, "untestable"),
        (0.4, 0.5, "untestable"),
        (-math.inf, math.inf, "untestable"),
        (0.6, math.inf, "holds"),
    ],
)
def test_the_whole_interval_must_lie_on_one_side(low, high, verdict):
    claim = decided(low, high)
    assert claim.verdict == verdict
    assert claim.effect is not None and claim.measure == "share" and claim.evidence.startswith("seen")
    mirrored = {"holds": "fails", "fails": "holds", "untestable": "untestable"}[verdict]
    assert decided(low, high, below=True).verdict == mirrored


def test_an_interval_astride_says_so():
    assert decided(0.4, 0.6).evidence == (
        "seen; the interval includes the cut-off 0.5: more prompts would tell"
    )


@pytest.mark.parametrize("value", [-5.0, 0.5, 5.0, math.nan])
@pytest.mark.parametrize("below", [False, True])
def test_without_an_interval_nothing_is_decided(value, below):
    one = STATEMENT.decided(interval(value, math.nan, math.nan, 1), 0.5, "seen", "share", below=below)
    assert one.verdict == "untestable" and one.evidence == "seen; one prompt gives no interval"
    many = STATEMENT.decided(interval(value, math.nan, math.nan, 7), 0.5, "seen", "share", below=below)
    assert many.verdict == "untestable" and many.evidence == "seen; no interval can be given"


def test_a_claim_that_speaks_of_nothing():
    assert STATEMENT.untestable("no reason") == Claim("a_claim", "something is so", "untestable", "no reason")
    assert STATEMENT.fails("not there").verdict == "fails"
    assert STATEMENT.fails("not there").effect is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.0, 0.1, "holds"), (0.0, 0.29, "holds"), (0.0, 0.3, "fails"), (0.0, 0.7, "fails"),
        (math.nan, math.nan, "fails"),
    ],
)  # fmt: skip
def test_a_claim_holds_only_if_no_control_does_half_as_much(low, high, verdict):
    quiet, loud = interval(0.0, -0.1, 0.1), interval(low, low, high)
    found = specific(decided(0.6, 0.9), {"quiet": quiet, "other": loud})
    assert found.verdict == verdict
    assert "; controls: quiet 0.00, other" in found.evidence
    assert ("not specific, see other" in found.evidence) == (verdict == "fails")
    assert found.effect == decided(0.6, 0.9).effect


@pytest.mark.parametrize(("high", "verdict"), [(1.4, "holds"), (1.6, "fails")])
def test_half_as_much_is_counted_from_no_effect(high, verdict):
    """A factor of the perplexity: 1 is nothing, so half of a factor 2 is 1.5."""
    cost = STATEMENT.decided(interval(2.5, 2.0, 3.0), 1.05, "said", "factor")
    assert specific(cost, {"other": interval(1.0, 1.0, high)}, nothing=1.0).verdict == verdict


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.2), (0.4, 0.6)])
def test_controls_save_no_claim(low, high):
    claim = decided(low, high)
    found = specific(claim, {"quiet": interval(0.0, 0.0, 0.0), "loud": interval(9.0, 9.0, 9.0)})
    assert found.verdict == claim.verdict and "not specific" not in found.evidence


def test_every_loud_control_is_named_and_none_is_needed():
    loud = interval(1.0, 1.0, 1.0)
    assert specific(decided(0.6, 0.9), {"a": loud, "b": loud}).evidence.endswith("see a and b")
    assert specific(decided(0.6, 0.9), {}) == decided(0.6, 0.9)
    assert specific(STATEMENT.untestable("why"), {"a": loud}) == STATEMENT.untestable("why")


def test_json_has_exactly_these_keys_and_no_nan():
    for claim, effect, ci, n in [
        (decided(0.6, 0.9), 0.75, [0.6, 0.9], 9),
        (STATEMENT.untestable("why"), None, None, 0),
        (STATEMENT.decided(interval(0.7, math.nan, math.nan, 1), 0.5, "s", "m"), 0.7, None, 1),
        (STATEMENT.decided(interval(math.nan, math.nan, math.nan), 0.5, "s", "m"), None, None, 9),
        (STATEMENT.decided(interval(math.inf, 3.0, math.inf), 0.5, "s", "m"), None, [3.0, None], 9),
    ]:
        found = json.loads(json.dumps(claim.to_json(), allow_nan=False))
        assert list(found) == KEYS
        assert found["effect"] == (None if effect is None else pytest.approx(effect))
        assert found["ci"] == ci and found["n"] == n
        assert found["verdict"] in ("holds", "fails", "untestable")
        assert found["claim"] == "a_claim" and found["statement"] == "something is so"


def test_mean_of_leaves_out_what_is_not_known():
    values = np.array([1.0, 2.0, np.nan, 3.0])
    found = mean_of(values)
    assert found == mean_of(values[[3, 0, 1, 2]]) == mean_of(np.array([1.0, 2.0, 3.0]))
    assert found.value == 2.0 and found.n == 3 and found.low < 2 < found.high
    alone, none = mean_of(np.array([1.0, np.nan])), mean_of(np.array([np.nan]))
    assert alone.n == 1 and alone.value == 1.0 and math.isnan(alone.low)
    assert none.n == 0 and math.isnan(none.value) and math.isnan(none.low)


def test_numbers_are_said_with_their_interval():
    assert say(interval(48.61, 48.4, 48.8)) == "48.6 [48.4, 48.8]"
    assert say(interval(-0.204, -0.22, -0.19)) == "-0.20 [-0.22, -0.19]"
    assert say(interval(0.5, math.nan, math.nan)) == "0.50"
    assert "nan" not in say(interval(math.nan, math.nan, math.nan)).lower()
