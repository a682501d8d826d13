"""What stands in the table of a result, depth by depth?"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from mcr_lens.reading import SINK_THRESHOLD, sink_rates, subject
from mcr_lens.schema import ResultSchemaError, require_single
from mcr_lens.summaries import layer_sink_identity, mean_by_site, normalized_entropy


@dataclass(frozen=True)
class Column:
    """One column: a short and a long heading, a number per row (NaN for none), its digits, and a note."""

    short: str
    long: str
    values: np.ndarray
    digits: int
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Row l is depth l; next to it stands block l − 1, which wrote it. Row 0 has no block."""

    state: tuple[Column, ...]
    block: tuple[Column, ...]
    n_layers: int


def profile_table(ds: xr.Dataset) -> Table:
    """Means over prompts (and heads) by depth, with each block's numbers next to what it wrote.

    Raises:
        ResultSchemaError: not a result, several conditions, one without prompts, or one without any of
            the columns.
    """
    require_single(ds)
    state, block = _state_columns(ds, subject(ds)), _block_columns(ds, subject(ds))
    if not state and not block:
        raise ResultSchemaError(
            "the result has none of the variables of the table (bos_norm, matrix_entropy, sink_score, …); "
            "measure them, or read its variables directly"
        )
    return Table(tuple(state), tuple(block), int(ds.attrs["n_layers"]))


def _state_columns(ds: xr.Dataset, name: str) -> list[Column]:
    tag = "BOS" if name == "BOS" else f"pos. {int(ds.attrs.get('position', 0))}"
    found = []
    if "bos_norm" in ds:
        found.append(_column(ds.bos_norm, f"norm of\n{tag}", f"norm of {name}", 3))
    if "massive_activation_ratio" in ds:
        note = "over the median norm of the other tokens"
        found.append(_column(ds.massive_activation_ratio, "norm\nratio", "norm ratio", 3, note))
    if "matrix_entropy" in ds:
        note = "over ln min(T, d)"
        found.append(_column(normalized_entropy(ds), "entropy", "normalised entropy", -3, note))
    if "matrix_entropy_without_bos" in ds:
        array = normalized_entropy(ds, variable="matrix_entropy_without_bos")
        found.append(_column(array, f"without\n{tag}", f"the same without {name}", -3))
    if "anisotropy" in ds:
        found.append(_column(ds.anisotropy, "aniso-\ntropy", "anisotropy", -3))
    return found


def _block_columns(ds: xr.Dataset, name: str) -> list[Column]:
    found = []
    if "sink_score" in ds:
        note = f"heads that give {name} {SINK_THRESHOLD:g} or more"
        found.append(_column(sink_rates(ds)[0], "sink\nrate", "sink rate", -3, note))
    if "mixing_score" in ds:
        found.append(_column(ds.mixing_score, "mixing", "mixing score", -3))
    if "sink_identity_index" in ds and "sink_identity_mass" in ds:
        note = "sink-versus-identity index"
        found.append(_column(layer_sink_identity(ds), "SVI", note, -3, note))
    if "mlp_bos_norm" in ds:
        note = f"its norm at {name}"
        found.append(_column(ds.mlp_bos_norm, "MLP\nwrite", f"MLP write at {name}", 3, note))
    return found


def _column(array: xr.DataArray, short: str, long: str, digits: int, note: str = "") -> Column:
    values = mean_by_site(array)
    rows = values if "depth" in array.dims else np.append(np.nan, values)
    return Column(short, long, rows, digits, note)
