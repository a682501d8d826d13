"""Real text and a small real model, where they lie beside the repository; tests skip without them."""

from pathlib import Path

import pytest

SHARED = next(
    (root / "shared" for root in Path(__file__).resolve().parents if (root / "shared" / "data").is_dir()),
    None,
)


def real(path: str) -> Path:
    """A file or folder of real data by its path in there; the test is skipped where it is absent."""
    if SHARED is None or not (SHARED / path).exists():
        pytest.skip(f"no shared/{path} beside the repository")
    return SHARED / path
