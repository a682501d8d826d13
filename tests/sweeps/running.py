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
