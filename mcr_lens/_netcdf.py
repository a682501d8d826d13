"""What does a Dataset look like as a netCDF file, and which files may be read as one?"""

import io
from functools import partial
from pathlib import Path

import xarray as xr


def netcdf_bytes(ds: xr.Dataset) -> memoryview:
    """The bytes of the file, the same for the same Dataset; they are made in memory.

    HDF5 does not write to the disk itself: when that is full, its library can take the process down.

    Raises:
        TypeError, ValueError: the Dataset holds what netCDF cannot.
    """
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    made = io.BytesIO()
    with h5netcdf.File(made, "w") as file:
        ds.dump_to_store(H5NetCDFStore(file))
    return made.getbuffer()


def read_netcdf(path: Path) -> xr.Dataset:
    """A Dataset, wholly in memory, from a file that holds all of it itself.

    Raises:
        ValueError: parts of it would come from other files, of which whoever made it knew only the names.
        OSError, KeyError, RuntimeError: it is damaged, or no netCDF.
    """
    import h5py

    with h5py.File(path, "r") as file:
        found: list[str] = []  # told afterwards: h5py hides what is raised while it walks
        file.visititems_links(partial(_note_link, found))
        file.visititems(partial(_note_pieces, found))
    if found:
        raise ValueError(found[0])
    return xr.load_dataset(path, engine="h5netcdf")


def _note_link(found: list[str], name: str, link: object) -> None:
    import h5py

    if isinstance(link, h5py.ExternalLink):
        found.append(f"{name!r} points into another file, {link.filename!r}")


def _note_pieces(found: list[str], name: str, item: object) -> None:
    import h5py

    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        found.append(f"{name!r} is kept in other files")
