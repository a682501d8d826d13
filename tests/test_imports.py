"""What does importing the package cost, and what does it promise?"""

import subprocess
import sys
from pathlib import Path

import pytest

import mcr_lens

HEAVY = ("transformer_lens", "transformers", "plotly", "circuitsvis", "jinja2", "matplotlib")
ROOT = Path(mcr_lens.__file__).parent.parent


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def loaded(code: str) -> set[str]:
    """Which heavy packages are in sys.modules after some code."""
    done = python(f"{code}\nimport sys\nprint('LOADED', *[m for m in {HEAVY} if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_import_is_light_and_silent():
    """Importing loads neither TransformerLens, nor Hugging Face, nor any plotting, and prints nothing."""
    assert loaded("import mcr_lens") == set()
    every_name = "import mcr_lens\n[getattr(mcr_lens, name) for name in mcr_lens.__all__]"
    assert loaded(every_name) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["measure", "--help"]])
def test_help_is_light(arguments):
    """--help waits neither for TransformerLens nor for torch."""
    pytest.importorskip("mcr_lens.cli")
    code = (
        "import sys\n"
        f"sys.argv = ['mcr-lens', *{arguments}]\n"
        "from mcr_lens.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    assert loaded(code + "\nassert 'torch' not in sys.modules") == set()


def test_import_leaves_global_state_alone():
    """No seed, no thread count, no default dtype, no logging handler, no warning filter is changed."""
    code = (
        "import logging, warnings, torch, numpy as np, xarray\n"
        "def state():\n"
        "    return (torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype(),\n"
        "            torch.is_grad_enabled(), len(logging.root.handlers), logging.root.level)\n"
        "before = state()\nfrom mcr_lens import *\nassert state() == before, (before, state())"
    )
    assert loaded(code) == set()


def test_public_names_exist():
    """Every public name has a docstring, and errors and warnings are of built-in kinds."""
    public = {name: getattr(mcr_lens, name) for name in mcr_lens.__all__}
    assert {"measure", "observe", "Observer", "load_model", "sink_rate", "merge", "save", "load"} <= set(
        public
    )
    for name, thing in public.items():
        assert thing.__doc__, name
        if isinstance(thing, type) and issubclass(thing, Warning):
            assert issubclass(thing, UserWarning) and name.endswith("Warning")
        elif isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, ValueError | TypeError | RuntimeError | KeyError) and name.endswith(
                "Error"
            )


def test_version():
    """A version in three numbers."""
    assert len(mcr_lens.__version__.split(".")) == 3
