"""Does a killed sweep lose nothing, leave nothing broken, and end as if nothing had happened?"""

import itertools
import json
import sys
from pathlib import Path

import pytest
from scripts import ran

from mcr_lens.sweep_store import DIGEST, read
from sweeps.running import assert_same_bits

SCRIPT = Path(__file__).with_name("sweep_killer.py")
pytestmark = [
    pytest.mark.demo,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="no fork and no SIGKILL on Windows"),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders of killed and resumed sweeps, and what was seen in them after every kill."""
    folder = tmp_path_factory.mktemp("kills")
    done = ran(SCRIPT, folder)
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_twenty_kills(killed):
    """Twenty of them hit a running sweep, some of them in the middle of a file."""
    _, seen = killed
    kills = [kill for one in seen["rounds"] for kill in one["kills"]]
    assert len(kills) == 20
    assert sum(kill["writing"] > 0 for kill in kills) >= 5
    # They came at different moments: how many depends on the machine.
    assert len({len(kill["files"]) for kill in kills}) >= 2


def test_no_file_is_broken(killed):
    """After every kill, each file that is there is whole."""
    _, seen = killed
    for one in seen["rounds"]:
        for state in [*(kill["files"] for kill in one["kills"]), one["end"]]:
            assert [wrong for _, _, wrong in state.values() if wrong] == []
        assert one["leftovers"] == 0 and one["code"] == 0


def test_no_finished_part_is_lost(killed):
    """What was there after a kill is the same file, never written again, until the end."""
    _, seen = killed
    for one in seen["rounds"]:
        states = [*(kill["files"] for kill in one["kills"]), one["end"]]
        for before, after in itertools.pairwise(states):
            assert {name: after.get(name) for name in before} == before
        assert set(one["end"]) == set(seen["whole"])


def test_the_result_is_bitwise_that_of_an_uninterrupted_sweep(killed):
    """Every variable, byte by byte, every attribute but the time at which it was made."""
    folder, seen = killed
    reference = read(folder / "whole" / "results/demo/s.nc")
    assert reference.sizes["prompt"] == 30 and reference.condition.values.tolist() == ["clean", "cut"]
    for number in range(len(seen["rounds"])):
        resumed = read(folder / f"round{number}" / "results/demo/s.nc", reference.attrs[DIGEST])
        assert_same_bits(resumed, reference)
