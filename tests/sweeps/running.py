"""How tests run a sweep, and look at what it left."""

from pathlib import Path

import xarray as xr

from mcr_lens import sweep
from mcr_lens.sweep_store import CHECKSUM, DIGEST

TEXTS = [f"sentence {i} of a few" for i in range(10, 17)]
METRICS = ["bos_norm", "massive_activation_ratio", "sink_score", "strongest_token"]


def go(plan, **changes):
    """Without a progress bar."""
    return sweep(plan, progress=False, **changes)


def bare(ds: xr.Dataset) -> xr.Dataset:
    """Without what differs between a sweep and `measure`, or between two runs."""
    out = ds.copy()
    gone = ("created", DIGEST, CHECKSUM, "prompt_set")
    out.attrs = {k: v for k, v in ds.attrs.items() if k not in gone}
    return out


def parts(out: Path) -> dict[str, tuple[int, int]]:
    """Which file each part is, and when it was written."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(out.glob("parts/*/*/*.nc"))}


def assert_same_bits(one: xr.Dataset, other: xr.Dataset) -> None:
    """Variables byte by byte and in order, and attributes but for the time and the checksum of the file."""
    one, other = one.copy(), other.copy()
    for ds in (one, other):
        ds.attrs.pop("created", None), ds.attrs.pop(CHECKSUM, None)
    xr.testing.assert_identical(one, other)
    assert list(one.variables) == list(other.variables)
    for name in one.variables:
        a, b = one[name], other[name]
        assert a.dtype == b.dtype and (a.dtype == object or a.values.tobytes() == b.values.tobytes()), name
