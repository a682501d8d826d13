"""Which conventions did a paper use? One preset each, read from the same result."""

from collections.abc import Callable
from dataclasses import dataclass

import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.schema import ResultSchemaError, require_single
from mcr_lens.summaries import (
    colsum_rate,
    layer_sink_identity,
    massive_activation_strength,
    massive_activations,
    normalized_entropy,
    sink_rate,
)


@dataclass(frozen=True)
class Preset:
    """One paper's quantities under that paper's conventions."""

    name: str
    source: str
    note: str
    variables: dict[str, Callable[[xr.Dataset], xr.DataArray]]


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            "queipo2025",
            "arXiv 2510.06477",
            "Entropy over ln min(T, d), Mixing Score over ln of the visible keys, ColSumRate and SVI are "
            "reconstructions; sink rate at τ = 0.3, not strict, all queries.",
            {
                "entropy": normalized_entropy,
                "anisotropy": lambda ds: ds.anisotropy,
                "bos_norm": lambda ds: ds.bos_norm,
                "sink_rate": sink_rate,
                "mixing_score": lambda ds: ds.mixing_score.mean("head", keep_attrs=True),
                "colsum_rate": colsum_rate,
                "sink_identity_index": layer_sink_identity,
            },
        ),
        Preset(
            "blayney2026",
            "arXiv 2604.11791",
            "The same authors' later restatement: mixing score as printed (nats), column-sum "
            "concentration, sink rate at τ = 0.3; prompts should keep the tokenizer's own BOS habit.",
            {
                "entropy": lambda ds: ds.matrix_entropy,
                "sink_rate": sink_rate,
                "mixing_score": lambda ds: ds.mixing_score_raw.mean("head", keep_attrs=True),
                "colsum_concentration": lambda ds: ds.colsum_concentration.mean("head", keep_attrs=True),
            },
        ),
        Preset(
            "gu2025",
            "arXiv 2410.10781",
            "Sink rate of the first token, strictly above ε = 0.3, as a percentage; the paper uses T = 64 "
            "and no added BOS, which is for you to choose when measuring.",
            {"sink_rate_percent": lambda ds: 100 * sink_rate(ds, 0.3, strict=True)},
        ),
        Preset(
            "sun2024",
            "arXiv 2402.17762",
            "Massive activations: magnitude above 100 and at least 1,000 times the median.",
            {
                "massive_activations": lambda ds: massive_activations(ds).any("top"),
                "top_activation": lambda ds: ds.top_activation,
                "median_activation": lambda ds: ds.median_activation,
                "massive_activation_strength": massive_activation_strength,
            },
        ),
        Preset(
            "sun2026",
            "arXiv 2603.05498",
            "A head is a sink if some key of the first half gets more than 0.3 of all attention; the paper "
            "averages over layers and heads and uses T = 64.",
            {"sink_rate": lambda ds: sink_rate(ds, 0.3, strict=True, variable="early_sink_score")},
        ),
        Preset(
            "skean2025",
            "arXiv 2502.02013",
            "Entropy of token-centred, row-normalised states over ln min(T, d), without the clamping of "
            "the published code; measure with metrics=['default', 'direction_entropy'].",
            {"entropy": lambda ds: normalized_entropy(ds, variable="direction_entropy")},
        ),
    )
}


def preset(ds: xr.Dataset, name: str) -> xr.Dataset:
    """Read a result with one paper's conventions: its quantities, normalisations and thresholds.

    Raises:
        ValueError: no such preset.
        ResultSchemaError: not a result, several conditions, or a variable it needs was not measured.

    Source: the paper that the preset names, in `attrs["source"]`; what is a reconstruction is said in
    `attrs["note"]`.

    >>> mcr.preset(ds, "gu2025").sink_rate_percent.mean("prompt").values.round(0).tolist()
    [0.0, 100.0, 50.0, 75.0, 50.0, 0.0, 0.0, 0.0]
    """
    require_single(ds, empty=True)
    if str(name) not in PRESETS:
        raise ValueError(f"preset {as_shown(name)} does not exist; the presets are {', '.join(PRESETS)}")
    chosen = PRESETS[str(name)]
    needed = {key: _read(ds, read) for key, read in chosen.variables.items()}
    return xr.Dataset(
        needed, attrs={**ds.attrs, "preset": name, "source": chosen.source, "note": chosen.note}
    )


def _read(ds: xr.Dataset, read: Callable[[xr.Dataset], xr.DataArray]) -> xr.DataArray:
    try:
        return read(ds)
    except AttributeError as error:
        raise ResultSchemaError(
            f"the result lacks a variable this preset needs ({error}); measure all default metrics"
        ) from None
