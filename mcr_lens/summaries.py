"""Numbers from numbers: thresholds and normalisations, chosen when reading a result."""

import warnings
from collections.abc import Hashable
from typing import Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, check_threshold, is_number
from mcr_lens.schema import refuse_conditions, require, require_axes, require_single


class ShortPromptWarning(UserWarning):
    """Prompts are so short that a head without any sink passes the threshold."""


def sink_rate(
    ds: xr.Dataset,
    threshold: float = 0.3,
    *,
    strict: bool = False,
    average_first: bool = False,
    variable: str = "sink_score",
) -> xr.DataArray:
    """Share of the heads of a layer whose sink score reaches a threshold, by prompt and layer.

    (1/H) Σ_h 1[sink score ≥ τ], thresholded per prompt; average over `prompt` yourself. With
    `average_first` the scores are averaged over prompts before the threshold (no axis `prompt`).

    Args:
        threshold: τ, between 0 and 1.
        strict: count only scores above τ (arXiv 2410.10781), not those equal to it.
        variable: the score to threshold: "sink_score" (BOS), "strongest_sink_score" (any key) or
            "early_sink_score".

    Warns:
        ShortPromptWarning: a uniform head would count as a sink, because H_T/T ≥ τ.

    Raises:
        ResultSchemaError: not a result, or the score was not measured.
        ValueError: a threshold outside 0..1.

    Source: arXiv 2604.11791, eq. 17; arXiv 2510.06477.

    >>> mcr.sink_rate(ds).mean("prompt").values.round(2).tolist()
    [0.0, 1.0, 0.5, 0.75, 0.5, 0.0, 0.0, 0.0]
    """
    require(ds, variable)
    require_axes(ds, "layer", "head", of=variable)
    check_threshold(threshold)
    if variable == "sink_score":
        _warn_short(ds, threshold)
    scores = ds[variable].mean("prompt", keep_attrs=True) if average_first else ds[variable]
    rate = _share(scores, threshold, strict=strict)
    return _labelled(rate, "sink_rate", "Sink rate", "1", "arXiv 2604.11791, eq. 17")


def colsum_rate(
    ds: xr.Dataset,
    threshold: float = 0.3,
    *,
    stat: Literal["max_colsum", "concentration"] = "max_colsum",
    strict: bool = False,
) -> xr.DataArray:
    """Share of the heads of a layer that concentrate on one key, wherever it stands, by prompt and layer.

    "max_colsum" thresholds the largest mean attention any key receives, "concentration" thresholds
    1 − H(column sums)/ln T. Reconstruction: only the name ColSumRate is in the sources.

    Raises:
        ResultSchemaError: not a result, or the statistic was not measured.
        ValueError: an unknown statistic, or a threshold outside 0..1.

    Source: arXiv 2510.06477 (reconstruction).

    >>> mcr.colsum_rate(ds).mean("prompt").values.round(2).tolist()
    [0.0, 1.0, 0.5, 0.75, 0.5, 0.0, 0.0, 0.0]
    """
    variables = {"max_colsum": "strongest_sink_score", "concentration": "colsum_concentration"}
    if not isinstance(stat, Hashable) or stat not in variables:
        raise ValueError(f"stat={as_shown(stat)}: pass 'max_colsum' or 'concentration'")
    require(ds, variables[stat])
    check_threshold(threshold)
    rate = _share(ds[variables[stat]], threshold, strict=strict)
    return _labelled(rate, "colsum_rate", "Column-sum rate", "1", "reconstruction")


def normalized_entropy(
    ds: xr.Dataset,
    by: Literal["rank", "tokens", "width"] = "rank",
    *,
    variable: str = "matrix_entropy",
) -> xr.DataArray:
    """Matrix entropy over its largest value, H / ln min(T, d), H / ln T or H / ln d, by prompt and depth.

    Args:
        by: "rank" divides by ln min(T, d) and stays within 0..1 (the default and, as a reconstruction,
            the paper's Figure 1), "tokens" by ln T, "width" by ln d.
        variable: also "matrix_entropy_without_bos" (T is then one less) or "direction_entropy".

    A matrix with one row or one column has normalised entropy 0, not 0/0 (NaN where the entropy is).

    Raises:
        ResultSchemaError: not a result, or the entropy was not measured.
        ValueError: an unknown normalisation.

    Source: arXiv 2510.06477, Fig. 1 (reconstruction: normaliser); arXiv 2502.02013.

    >>> mcr.normalized_entropy(ds).mean("prompt").values.round(1).tolist()
    [0.8, 0.0, 0.3, 0.4, 0.5, 0.7, 0.8, 0.7, 0.6]
    """
    require(ds, variable, "n_tokens")
    require_axes(ds, "depth", of=variable)
    tokens = ds.n_tokens - (1 if variable.endswith("without_bos") else 0)
    width = ds.attrs["d_model"]
    sizes = {"rank": np.minimum(tokens, width), "tokens": tokens, "width": xr.full_like(tokens, width)}
    if not isinstance(by, Hashable) or by not in sizes:
        raise ValueError(f"by={as_shown(by)}: pass 'rank' (ln min(T, d)), 'tokens' (ln T) or 'width' (ln d)")
    size = sizes[by].drop_vars([c for c in tokens.coords if c != "prompt"])
    entropy = ds[variable] / np.log(size.where(size > 1))
    entropy = entropy.where(size > 1, ds[variable] * 0)
    label = ds[variable].attrs.get("long_name", "Matrix entropy").split(",")[0]
    return _labelled(
        entropy.transpose(..., "prompt", "depth"), f"normalized_{variable}", f"Normalised {label}", "1",
        "arXiv 2510.06477, Fig. 1 (reconstruction: normaliser)",
    )  # fmt: skip


def sink_identity(ds: xr.Dataset, *, min_mass: float = 0.05) -> xr.DataArray:
    """Sink-versus-identity index where it means something: NaN below a support S + I of `min_mass`.

    A head that attends elsewhere has an index of any value between 0 and 1. Reconstruction.

    Raises:
        ResultSchemaError: not a result, or the index was not measured.
        ValueError: a support outside 0..1.

    Source: arXiv 2510.06477 (reconstruction: formula and threshold).

    >>> mcr.sink_identity(ds).dims
    ('prompt', 'layer', 'head')
    """
    require(ds, "sink_identity_index", "sink_identity_mass", picked=("layer", "head"))
    if not is_number(min_mass) or not 0 <= min_mass <= 1:
        raise ValueError(f"min_mass={as_shown(min_mass)}: the support S + I lies between 0 and 1")
    return ds.sink_identity_index.where(ds.sink_identity_mass >= min_mass)


def layer_sink_identity(ds: xr.Dataset) -> xr.DataArray:
    """Sink-versus-identity index of a layer, weighted by support: Σ_h S / Σ_h (S + I), by prompt and layer.

    Raises:
        ResultSchemaError: not a result, or the index was not measured.

    Source: arXiv 2510.06477 (reconstruction).

    >>> bool(mcr.layer_sink_identity(ds).sel(layer=1).min() > 0.9)  # all heads of that layer sink
    True
    """
    require(ds, "sink_identity_index", "sink_identity_mass")
    sink = (ds.sink_identity_index * ds.sink_identity_mass).sum("head")
    mass = ds.sink_identity_mass.sum("head")
    return _labelled(sink / mass.where(mass > 0), "layer_sink_identity",
                     "Sink-versus-identity index", "1", "reconstruction")  # fmt: skip


def massive_layer(ds: xr.Dataset) -> int:
    """The layer whose block makes BOS stand out: argmax over l of the rise of the mean BOS ratio.

    The ratio is ‖x₀‖ over the median of the other norms, and the rise is from depth l to depth l + 1: a late
    block that makes every row longer does not count. It says where the ratio grows most, not that it is
    large: read `massive_activation_ratio` too.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or the ratio was not measured.
        ValueError: the ratio is NaN everywhere.

    Source: arXiv 2510.06477 (emergence layer).

    >>> mcr.massive_layer(ds)
    0
    """
    require_single(ds, "massive_activation_ratio")
    rise = ds.massive_activation_ratio.mean("prompt").diff("depth")
    if not rise.size or bool(rise.isnull().all()):
        raise ValueError(
            "massive_activation_ratio is a number at no two depths in a row, so there is no rise to see; "
            "measure prompts of two tokens or more"
        )
    return int(rise.argmax("depth"))


def mlp_write_share(ds: xr.Dataset) -> xr.DataArray:
    """Who writes at BOS: ‖MLP(x)₀‖ / (‖MLP(x)₀‖ + ‖Attn(x)₀‖), by prompt and layer.

    Raises:
        ResultSchemaError: not a result, or the writes were not measured.

    Source: this library, after arXiv 2510.06477.

    >>> bool(mcr.mlp_write_share(ds).sel(layer=0).min() > 0.9)  # the MLP of block 0 writes at BOS
    True
    """
    require(ds, "mlp_bos_norm", "attn_bos_norm", picked=("layer",))
    share = ds.mlp_bos_norm / (ds.mlp_bos_norm + ds.attn_bos_norm)
    return _labelled(share, "mlp_write_share", "MLP share of the write at BOS", "1", "this library")


def massive_activations(ds: xr.Dataset, *, absolute: float = 100.0, ratio: float = 1000.0) -> xr.DataArray:
    """Which of the largest activations are massive: |x| > `absolute` and ≥ `ratio` × the median |x|.

    Booleans by prompt, depth and rank; `top_activation_token` and `top_activation_dimension` say where.
    Small models miss the absolute part: read the continuous pair, `top_activation` and
    `massive_activation_strength`, too.

    Raises:
        ResultSchemaError: not a result, or the activations were not measured.
        ValueError: a cut-off that is negative or no number.

    Source: arXiv 2402.17762.

    >>> bool(mcr.massive_activations(ds).any())  # the bundled model is too small for the absolute criterion
    False
    """
    require(ds, "top_activation", "median_activation", picked=("depth",))
    for name, value in (("absolute", absolute), ("ratio", ratio)):
        if not is_number(value) or not value >= 0:
            raise ValueError(f"{name}={as_shown(value)}: pass a number from 0 on")
    found = (ds.top_activation > absolute) & (ds.top_activation >= ratio * ds.median_activation)
    return _labelled(found, "massive_activations", "Massive activations", "1", "arXiv 2402.17762")


def massive_activation_strength(ds: xr.Dataset) -> xr.DataArray:
    """Largest activation over the median, max |x| / median |x|: the continuous form of the criterion.

    Raises:
        ResultSchemaError: not a result, or the activations were not measured.

    Source: arXiv 2402.17762; arXiv 2508.03616.

    >>> int(mcr.massive_activation_strength(ds).mean("prompt").argmax("depth"))
    1
    """
    require(ds, "top_activation", "median_activation", picked=("depth",))
    strength = ds.top_activation.isel(top=0) / ds.median_activation
    return _labelled(
        strength, "massive_activation_strength", "Largest over median activation", "1",
        "arXiv 2402.17762; arXiv 2508.03616",
    )  # fmt: skip


def mean_by_site(array: xr.DataArray) -> np.ndarray:
    """Mean over prompts and heads by depth or layer; what is not finite is left out, nothing left is NaN.

    Raises:
        ResultSchemaError: several conditions.
    """
    refuse_conditions(array)
    numbers = array.astype(float)
    numbers = numbers.where(np.isfinite(numbers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return numbers.mean([d for d in numbers.dims if d not in ("depth", "layer")]).values


def _share(scores: xr.DataArray, threshold: float, *, strict: bool) -> xr.DataArray:
    above = scores > threshold if strict else scores >= threshold
    return above.where(scores.notnull()).mean("head")


def _labelled(array: xr.DataArray, name: str, label: str, units: str, source: str) -> xr.DataArray:
    return array.rename(name).assign_attrs(long_name=label, units=units, source=source)


def _warn_short(ds: xr.Dataset, threshold: float) -> None:
    shortest = int(ds.n_tokens.min()) if ds.sizes["prompt"] else 0
    fewest = int(ds.sink_queries.min()) if "sink_queries" in ds and shortest else shortest
    uniform = sum(1 / n for n in range(1, fewest + 1)) / fewest if fewest else 0.0
    if uniform >= threshold > 0:
        what = f"the shortest prompt has {shortest} tokens"
        if fewest < shortest:
            what = f"in some layers the sink is seen by {fewest} queries only"
        warnings.warn(
            f"{what}, where even a head that attends to all keys "
            f"alike has sink score {uniform:.2f} ≥ {threshold}; use longer prompts or a higher threshold",
            ShortPromptWarning,
            stacklevel=3,
        )
