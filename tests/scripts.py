"""How is a script of the tests run, in a process of its own?"""

import os
import subprocess
import sys
from pathlib import Path


def ran(script: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What it printed, once it ended well."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *map(str, arguments)],
        env=os.environ | environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
