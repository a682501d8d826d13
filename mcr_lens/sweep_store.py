"""What of a sweep lies on disk, and is it whole?

    out/parts/MODEL/PROMPTS/000003-DIGEST.nc    one chunk of prompts; the digest names all that makes it
    out/results/MODEL/PROMPTS.nc                all of them, in the order of the prompts

A file appears whole or not at all, holds a checksum of its own, and is read back before it is trusted.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from mcr_lens._checks import first_line
from mcr_lens._files import replacing
from mcr_lens._netcdf import netcdf_bytes, read_netcdf
from mcr_lens.results import bare
from mcr_lens.running_moments import check_moments
from mcr_lens.schema import validate

DIGEST, CHECKSUM = "sweep_digest", "sweep_checksum"
"""Attributes of a file: what it was made from, and what is in it."""


DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
"""Names that no file has on Windows, whatever its ending."""


class SweepError(RuntimeError):
    """A sweep cannot run, or not everything in it could be measured; `result` is what there is."""

    result: Any = None


class SweepWarning(UserWarning):
    """A file of a sweep is damaged and is made anew."""


class Store:
    """The folder of a sweep, held by one process at a time.

    Raises:
        SweepError: another process holds it.
        OSError: it cannot be made or written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    @contextlib.contextmanager
    def held(self) -> Iterator["Store"]:
        """Keep other sweeps out, and clear away what a killed one left half written."""
        if self.out.exists() and not self.out.is_dir():
            raise FileExistsError(f"{self.out} is a file; name a folder in out")
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / ".lock").open("a") as handle:
            if not _locked(handle):
                raise SweepError(
                    f"another sweep is writing to {self.out}; wait for it, or name another folder in out"
                )
            for rest in (*self.out.glob("parts/*/*/.*.part"), *self.out.glob("results/*/.*.part")):
                self._inside(rest).unlink(missing_ok=True)
            yield self

    def part(self, title: str, prompts: str, number: int, digest: str) -> Path:
        """Where a part lies."""
        folder = self.out / "parts" / file_name(title) / file_name(prompts)
        return self._inside(folder / f"{number:06d}-{digest[:24]}.nc")

    def result(self, title: str, prompts: str) -> Path:
        """Where a finished result lies."""
        return self._inside(self.out / "results" / file_name(title) / f"{file_name(prompts)}.nc")

    def _inside(self, path: Path) -> Path:
        """The path, if no link in the folder leads out of it."""
        folder = path.parent.resolve()
        if not folder.is_relative_to(self.out.resolve()):
            raise SweepError(f"{path.parent} is a link out of {self.out}, to {folder}; take it away")
        return path


def _locked(handle: Any) -> bool:
    """Take the lock, which the system lets go of when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def file_name(name: str) -> str:
    """A name as a file name of its own: what is not plain is replaced, and a hash keeps two names apart.

    >>> file_name("demo@step1"), file_name("acme/tiny")
    ('demo@step1', 'acme--tiny-e7f063')

    Source: this library.
    """
    plain = re.sub(r"[^A-Za-z0-9._@+=-]", "-", name.replace("/", "--")).strip(".-")[-80:]
    device = plain.split(".")[0].lower() in DEVICES
    if plain and plain == name == plain.lower() and not device:  # some file systems do not tell A from a
        return plain
    plain = plain.replace(".", "-") if device else plain
    return f"{plain or 'name'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def digest_of(*about: Any) -> str:
    """SHA-256 of JSON values.

    Source: this library.
    """
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def write(ds: xr.Dataset, path: Path, digest: str) -> None:
    """Write a part or a result, whole or not at all, with what it was made from and what is in it.

    Raises:
        OSError: the folder cannot be written.

    Source: this library.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    marked = ds.assign_attrs({DIGEST: digest})
    marked = marked.assign_attrs({CHECKSUM: checksum(marked)})
    with replacing(path) as part:
        part.write_bytes(netcdf_bytes(bare(marked)))


def read(path: Path, digest: str | None = None) -> xr.Dataset:
    """Read a part or a result and make sure that it is whole.

    Args:
        path: where it lies.
        digest: what it must have been made from; None for anything.

    Raises:
        ValueError: it is damaged, or was made from something else.

    Source: this library.
    """
    try:
        ds = bare(read_netcdf(path))
        (check_moments if "moment" in ds.dims else validate)(ds)
        seen = checksum(ds)
    except Exception as error:  # HDF5 has many ways to say that a file is damaged
        raise ValueError(f"{path} cannot be read ({first_line(error)})") from None
    if ds.attrs.get(CHECKSUM) != seen:
        raise ValueError(f"{path} does not hold what was written into it")
    if digest is not None and ds.attrs.get(DIGEST) != digest:
        raise ValueError(f"{path} was made from something else")
    return ds


def checksum(ds: xr.Dataset) -> str:
    """SHA-256 over names, axes, values and attributes of a Dataset; the same before and after the disk.

    Source: this library.
    """
    digest = hashlib.sha256(_text(ds.attrs))
    for name in sorted(map(str, ds.variables)):
        variable = ds.variables[name]
        values = variable.values
        text = values.dtype.kind in "OUS"
        head = f"{name} {variable.dims} {variable.shape} {'text' if text else values.dtype}"
        digest.update(head.encode() + _text(variable.attrs))
        digest.update(json.dumps(list(map(str, values.ravel()))).encode() if text else values.tobytes())
    return digest.hexdigest()


def _text(attrs: Mapping[Any, Any]) -> bytes:
    kept = {str(k): str(v) for k, v in attrs.items() if k != CHECKSUM}
    return json.dumps(kept, sort_keys=True).encode()
