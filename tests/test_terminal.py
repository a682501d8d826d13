"""Is Ctrl-C heard at any moment?"""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.once

FALLS_INTO_A_TAKING_DOWN = """
import os, signal, sys, time
from mcr_lens.terminal import in_words

signal.signal(signal.SIGINT, signal.default_int_handler)
before = sys.unraisablehook

class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

class Wrong:
    def __del__(self):
        raise ValueError("said as ever")

try:
    with in_words():
        wrong = Wrong()
        del wrong
        held = Held()
        del held
        time.sleep(20)
        print("went on")
except KeyboardInterrupt:
    print("stopped", sys.unraisablehook is before)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_while_an_object_is_taken_down():
    """Python only reports that one; here it stops the command, and other such errors are reported as ever."""
    done = subprocess.run(
        [sys.executable, "-c", FALLS_INTO_A_TAKING_DOWN],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "stopped True\n"
    assert "ValueError: said as ever" in done.stderr and "KeyboardInterrupt" not in done.stderr
