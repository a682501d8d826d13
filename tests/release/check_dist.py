"""Are wheel and sdist whole, clean and small? `make dist` asks: `python tests/release/check_dist.py dist`

The wheel holds the package with its data and nothing else. The sdist holds what the tests need: they are
collected from it, with nothing of the checkout in sight.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

LIMIT = 5 * 2**20
"""Bytes that each of the two may have."""

DATA = (
    "py.typed", "__init__.pyi", "attention.html.j2", "report/page.html.j2", "report/page.css",
    "report/page.js", "demo/model.safetensors", "demo/tokenizer.json", "demo/config.json",
    "demo/prompts.txt", "demo/README.md",
)  # fmt: skip
"""What the package reads besides its modules."""

LITTER = ("__pycache__", ".pyc", ".ipynb_checkpoints", ".pytest_cache", ".hypothesis", ".ruff_cache", ".venv")


def main(folder: Path) -> None:
    """One line for what is wrong, and exit status 1; silence otherwise."""
    wheels, sources = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sources) != 1:
        sys.exit(
            f"{folder} holds {len(wheels)} wheels and {len(sources)} sdists; empty it and run: make dist"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        in_wheel = wheel.namelist()
    with tarfile.open(sources[0]) as source:
        in_source = [PurePosixPath(m.name).relative_to(source.getnames()[0].split("/")[0]) for m in source]
    wrong = [*_wheel(in_wheel), *_source([str(path) for path in in_source])]
    wrong += [
        f"{file.name} has {file.stat().st_size:,} bytes; {LIMIT:,} are allowed"
        for file in (wheels[0], sources[0])
        if file.stat().st_size > LIMIT
    ]
    wrong += [] if wrong else _tests_of(sources[0])
    if wrong:
        sys.exit("\n".join(wrong))


def _wheel(names: list[str]) -> list[str]:
    wrong = [f"the wheel lacks mcr_lens/{name}" for name in DATA if f"mcr_lens/{name}" not in names]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        wrong.append("the wheel lacks its LICENSE")
    odd = [n for n in names if not n.startswith("mcr_lens/") and ".dist-info/" not in n]
    return wrong + [f"{name} has no place in the wheel" for name in odd] + _litter(names)


def _source(names: list[str]) -> list[str]:
    wanted = [f"mcr_lens/{name}" for name in DATA] + [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "pyproject.toml",
    ]
    return [f"the sdist lacks {name}" for name in wanted if name not in names] + _litter(names)


def _litter(names: list[str]) -> list[str]:
    return [f"{name} is litter" for name in names if any(part in name for part in LITTER)]


def _tests_of(source: Path) -> list[str]:
    """Every test of the sdist is found, in a folder where nothing else of the project lies."""
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(source) as archive:
            archive.extractall(scratch, filter="data")
        (root,) = Path(scratch).iterdir()
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        its_own = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(command, cwd=root, env=its_own, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [f"tests of the sdist are not found:\n{done.stdout[-2000:]}"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
