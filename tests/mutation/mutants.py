"""Do the tests notice it when the library is wrong? `make mutants`

Each fault of `deliberate_faults.py` goes into a copy of this project, and the tests of `SUBSET` run on that
copy until one fails. The untouched copy must pass; a fault that no test notices is an error. With `--write`
the outcome becomes docs/mutants.md.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from xml.etree import ElementTree

from deliberate_faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mutants.md"
SUBSET = (
    "tests/test_metrics_golden.py", "tests/test_reference.py", "tests/laws/test_metric_laws.py",
    "tests/laws/test_causality.py", "tests/test_results.py", "tests/test_summaries.py",
    "tests/test_bounds.py", "tests/test_statistics.py", "tests/test_bootstrap.py",
    "tests/test_visibility.py", "tests/test_edits.py", "tests/test_prompts.py", "tests/test_sink_curves.py",
    "tests/test_observe.py::test_mask_given_to_observe",
    "tests/test_observe.py::test_padding_with_a_mask_does_not_count[gpt2-left]",
    "tests/test_coverage_of_intervals.py::test_other_levels",
)  # fmt: skip
"""What is asked of every copy alike: laws, references, numbers worked out by hand, padding in any order."""

LEFT_OUT = (".*", "__pycache__", "dist", "build", "*.egg-info", "mcr-lens-demo", "images")
CHECK = "import mcr_lens, sys; sys.exit(not mcr_lens.__file__.startswith(sys.argv[1]))"


def main() -> None:
    """Check the untouched copy, then one fault after the other, two at a time."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", action="store_true", help="write docs/mutants.md")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--only", default="", help="faults whose name holds this text")
    given = options.parse_args()
    chosen = [fault for fault in FAULTS if given.only in fault.name]
    with tempfile.TemporaryDirectory() as scratch:
        copies: Queue[Path] = Queue()
        for number in range(given.workers):
            copies.put(_copy(Path(scratch) / str(number)))
        with ThreadPoolExecutor(given.workers) as pool:
            order = _quickest_first(pool, copies)
            caught = list(pool.map(lambda fault: _caught_by(fault, copies, order), chosen))
    survivors = [fault.name for fault, test in zip(chosen, caught, strict=True) if not test]
    if given.write and not survivors:
        PAGE.write_text(_page(chosen, [str(test) for test in caught]), "utf-8")
    sys.exit(f"no test noticed: {', '.join(survivors)}" if survivors else 0)


def _copy(folder: Path) -> Path:
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    done = subprocess.run([sys.executable, "-c", CHECK, str(folder)], env=_environment(folder), cwd=folder)
    if done.returncode:
        sys.exit(f"Python imports another mcr_lens than that of {folder}")
    return folder


def _environment(folder: Path) -> dict[str, str]:
    ours = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **ours, "PYTHONDONTWRITEBYTECODE": "1"}  # or a stale one might be imported


def _pytest(folder: Path, files: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=no", "-p", "no:cacheprovider", *more]
    return subprocess.run(
        [*command, "-m", "not slow and not browser and not gpu", *files],
        cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip


def _quickest_first(pool: ThreadPoolExecutor, copies: "Queue[Path]") -> list[str]:
    """The test files by the time they take; all of them must pass on the untouched copy."""
    seconds = dict(zip(SUBSET, pool.map(lambda file: _seconds(file, copies), SUBSET), strict=True))
    for file, taken in sorted(seconds.items(), key=lambda item: item[1]):
        print(f"untouched: {file} passes ({taken:.0f} s)", flush=True)
    return sorted(SUBSET, key=lambda file: seconds[file])


def _seconds(file: str, copies: "Queue[Path]") -> float:
    with _one_of(copies) as folder:
        report = folder / "junit.xml"
        done = _pytest(folder, [file], f"--junitxml={report}")
        if done.returncode:
            sys.exit(
                f"{file} does not pass on the untouched copy:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
            )
        return float(ElementTree.parse(report).getroot()[0].attrib["time"])


@contextmanager
def _one_of(copies: "Queue[Path]") -> Iterator[Path]:
    """A copy for a while: whoever waits for one gets it back, whatever happens."""
    folder = copies.get()
    try:
        yield folder
    finally:
        copies.put(folder)


def _caught_by(fault: Fault, copies: "Queue[Path]", order: list[str]) -> str | None:
    """The first test that fails, or None."""
    with _one_of(copies) as folder:
        began = time.perf_counter()
        file = folder / "mcr_lens" / fault.file
        right = file.read_text("utf-8")
        if right.count(fault.right) != 1:
            sys.exit(f"{fault.name}: {fault.file} does not hold {fault.right!r} exactly once")
        file.write_text(right.replace(fault.right, fault.wrong), "utf-8")
        done = _pytest(folder, order, "-x")
        file.write_text(right, "utf-8")
    if done.returncode not in (0, 1):
        sys.exit(f"{fault.name}: the tests did not run:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    found = re.search(r"^FAILED (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    test = found[1] if found else None
    print(f"{fault.name}: {test or 'NOT NOTICED'} ({time.perf_counter() - began:.0f} s)", flush=True)
    return test


def _page(faults: list[Fault], caught: list[str]) -> str:
    lines = [
        "# Faults that the tests notice",
        "",
        "Each of these faults was put into a copy of the library, one at a time, and the tests were run",
        "until one failed. The untouched copy passes. Written by `make mutants`; the faults stand in",
        "`tests/mutation/deliberate_faults.py`.",
        "",
        "| fault | in | noticed first by |",
        "|---|---|---|",
    ]
    rows = zip(faults, caught, strict=True)
    lines += [f"| {f.name} | `{f.file}` | `{test.removeprefix('tests/')}` |" for f, test in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
