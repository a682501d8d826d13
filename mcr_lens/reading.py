"""What do the numbers of a result say, in words?

The words are for a first look. Their cut-offs are reading aids of this library, not definitions.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import xarray as xr

from mcr_lens.findings import Place, entropy_valley, phenomena
from mcr_lens.results import interventions_text
from mcr_lens.schema import require_single
from mcr_lens.summaries import (
    ShortPromptWarning,
    massive_layer,
    mean_by_site,
    mlp_write_share,
    normalized_entropy,
    sink_rate,
)

MASSIVE_RATIO = 10.0
"""From this norm ratio on the words say "massive": far above the scatter of ordinary tokens (about 1 to 3)
and far below the models of the literature (hundreds)."""

VALLEY = 0.2
"""A valley is a minimum between first and last depth that lies this far below both sides, in normalised
entropy: a fifth of the whole scale, more than the ripple from block to block."""

SINK_THRESHOLD = 0.3
"""A head is a sink from this mean attention on (the threshold of arXiv 2510.06477)."""

SINK_LAYER = 0.5
"""A layer is counted where half of its heads are sinks."""

ELSEWHERE = (
    "top_norm", "top_norm_token", "other_norm_median", "top_sink_score", "top_sink_token", "matrix_entropy",
    "frobenius_norm",
)  # fmt: skip
"""What it takes to say whether another token does what BOS does."""

CUT_OFFS = (
    f"Cut-offs used in the words above: massive from a norm ratio of {MASSIVE_RATIO:g} on; a valley where "
    f"normalised entropy lies at least {VALLEY:g} below both sides; a head is a sink from a mean attention "
    f"of {SINK_THRESHOLD:g} on, and a layer is counted from a sink rate of {SINK_LAYER:g} on. They are aids "
    "for reading, not definitions: look at the figure and the table."
)


def subject(ds: xr.Dataset) -> str:
    """What stands at the measured position: "BOS", "the first token", or "position 3"."""
    position = int(ds.attrs.get("position", 0))
    if position:
        return f"position {position}"
    without = "has_bos" in ds.coords and ds.sizes["prompt"] > 0 and not bool(ds.has_bos.any())
    none = str(ds.attrs.get("bos_token", "")).startswith("none")
    return "the first token" if without or none else "BOS"


def caution(ds: xr.Dataset) -> list[str]:
    """What a reader must know before the numbers: no BOS, mixed prompts, interventions, short prompts."""
    found = []
    name = subject(ds)
    if name == "the first token":
        found.append("In these prompts position 0 is the first token, not a BOS.")
    elif name != "BOS":
        found.append(f"These numbers take the token at {name} where they speak of BOS.")
    elif "has_bos" in ds.coords and not bool(ds.has_bos.all()):
        many, total = int((~ds.has_bos.astype(bool)).sum()), ds.sizes["prompt"]
        found.append(
            f"{many} of {total} prompts do not begin with BOS; there, position 0 is the first token."
        )
    made = interventions_text(ds)
    if made != "[]":
        found.append(f"The model was changed while measuring: {made}.")
    if str(ds.attrs.get("processing", "")).startswith("processed"):
        found.append(f"Norms and entropies are not the trained model's: weights {ds.attrs['processing']}.")
    if "sink_score" in ds:
        found += [f"Note on sinks: {note}." for note in sink_rates(ds)[1]]
    return found


@dataclass(frozen=True)
class Extremes:
    """The three numbers of a causal check, and the depth of the entropy."""

    ratio: float
    entropy: float
    depth: int
    sink_layers: int


def extremes(ds: xr.Dataset, depth: int | None = None) -> Extremes:
    """Largest mean norm ratio, mean normalised entropy at a depth (the lowest), layers full of sinks.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or a variable that was not measured.
    """
    require_single(ds, "massive_activation_ratio", "matrix_entropy", "sink_score")
    entropy = mean_by_site(normalized_entropy(ds))
    depth = int(np.nanargmin(entropy)) if depth is None else depth
    return Extremes(
        ratio=float(np.nanmax(mean_by_site(ds.massive_activation_ratio))),
        entropy=float(entropy[depth]),
        depth=depth,
        sink_layers=int((mean_by_site(sink_rates(ds)[0]) >= SINK_LAYER).sum()),
    )


def sink_rates(ds: xr.Dataset) -> tuple[xr.DataArray, list[str]]:
    """Sink rate by prompt and layer, and the warnings of reading it as words."""
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", ShortPromptWarning)
        rate = sink_rate(ds, SINK_THRESHOLD)
    return rate, [str(w.message) for w in raised if issubclass(w.category, ShortPromptWarning)]


def reading(ds: xr.Dataset) -> list[str]:
    """The result in a few sentences: massive activation, who writes it, entropy valley, sinks.

    A phenomenon that is absent is reported as absent; what was not measured is left out.

    Raises:
        ResultSchemaError: not a result, several conditions, or one without prompts.
    """
    require_single(ds)
    found = []
    if "massive_activation_ratio" in ds:
        found.append(_massive(ds))
    if "matrix_entropy" in ds:
        found.append(_valley(ds))
    if "sink_score" in ds:
        found.append(_sinks(ds))
    if all(name in ds for name in ELSEWHERE):
        found += _elsewhere(ds)
    return found


def number(value: float, digits: int = 3) -> str:
    """A number for reading: `digits` significant ones, or −`digits` decimals; "–" where there is none.

    >>> number(1234.5), number(0.0456), number(0.5, -3), number(float("nan"))
    ('1,234', '0.0456', '0.500', '–')
    """
    if np.isnan(value):
        return "–"
    if digits < 0:
        return f"{round(value, -digits) + 0.0:.{-digits}f}"  # no −0
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e6 else f"{value:#.{digits}g}".rstrip(".")


def _massive(ds: xr.Dataset) -> str:
    ratio, name = mean_by_site(ds.massive_activation_ratio), subject(ds)
    if np.isnan(ratio).all():
        return "The norm ratio is not defined for these prompts: they have a single token."
    depth, peak = int(np.nanargmax(ratio)), float(np.nanmax(ratio))
    where = f"at depth {depth} of {ds.attrs['n_layers']}"
    if peak < MASSIVE_RATIO:
        return f"No massive activation at {name}: the norm ratio peaks at {number(peak)} ({where})."
    text = (
        f"Massive activation at {name}: its norm peaks at {number(peak)} times the median norm of the other "
        f"tokens ({where})."
    )
    return f"{text} {_writer(ds)}".strip()


def _writer(ds: xr.Dataset) -> str:
    """In which block the ratio grows, and what share of the write its MLP has."""
    block, ratio = massive_layer(ds), mean_by_site(ds.massive_activation_ratio)
    text = f"The ratio grows most in block {block}, from {number(ratio[block])} to {number(ratio[block + 1])}"
    if "mlp_bos_norm" not in ds or "attn_bos_norm" not in ds:
        return f"{text}."
    share = mean_by_site(mlp_write_share(ds))[block]
    return f"{text}; of what attention and MLP write there, the MLP's share is {100 * share:.0f} %."


def _valley(ds: xr.Dataset) -> str:
    valley = entropy_valley(ds)
    if valley is None:
        return "Normalised entropy is not defined for these prompts."
    depth, lowest, before, after = valley.depth, valley.entropy, valley.before, valley.after
    low, high = number(lowest, -2), number(max(before, after), -2)
    if valley.drop >= VALLEY:
        text = (
            f"Compression valley: normalised entropy falls from {number(before, -2)} to {low} at depth "
            f"{depth} and comes back to {number(after, -2)}."
        )
    elif max(before, after) - lowest >= VALLEY:
        text = (
            f"No compression valley: normalised entropy is lowest at depth {depth} ({low}); its highest "
            f"value is {number(before, -2)} up to there and {number(after, -2)} from there on."
        )
    else:
        text = (
            f"No compression valley: normalised entropy stays between {low} (depth {depth}) and {high} "
            f"(depth {int(np.nanargmax(mean_by_site(normalized_entropy(ds))))})."
        )
    if "matrix_entropy_without_bos" not in ds:
        return text
    bare = float(mean_by_site(normalized_entropy(ds, variable="matrix_entropy_without_bos"))[depth])
    return f"{text} Without the row of {subject(ds)} it is {number(bare, -2)} at that depth."


def _sinks(ds: xr.Dataset) -> str:
    rate, layers = mean_by_site(sink_rates(ds)[0]), int(ds.attrs["n_layers"])
    if np.isnan(rate).all():
        return "The sink rate is not defined for these prompts."
    many, block, peak = int((rate >= SINK_LAYER).sum()), int(np.nanargmax(rate)), float(np.nanmax(rate))
    give = f"at least {SINK_THRESHOLD:g} of their attention to {subject(ds)}"
    if peak == 0:
        return f"No attention sinks: no head gives {give.replace('their', 'its')}."
    top = f"the sink rate peaks at {number(peak, -2)} in block {block}"
    if not many:
        return f"No layer where half of the heads are sinks, that is, give {give}: {top}."
    return (
        f"Attention sinks in {many} of {layers} layers: there, at least half of the heads give {give}; {top}."
    )


def _elsewhere(ds: xr.Dataset) -> list[str]:
    """Massive rows and sinks at other tokens, and a valley that no massive row explains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortPromptWarning)  # told by the sink rate already
        seen = phenomena(ds, ratio=MASSIVE_RATIO, threshold=SINK_THRESHOLD, valley=VALLEY)
    measured, found = int(ds.attrs.get("position", 0)), []
    rows = [p for p in seen.massive if p.position != measured]
    if rows:
        found.append(f"Massive rows elsewhere: {_names(rows)}.")
    keys = [p for p in seen.sinks if p.position != measured]
    if keys:
        found.append(f"Heads also sink on other tokens: {_names(keys)}.")
    if seen.valley_cause == "common direction":
        found.append("No massive row explains the valley: the rows point the same way.")
    if seen.valley_cause == "long rows":
        found.append("The valley is made by long rows, although none is long enough to be called massive.")
    return found


def _names(places: list[Place]) -> str:
    """The first three places in words."""
    named = [
        f"{p.token!r} ({'position ' + str(p.position) if p.position is not None else 'wherever it stands'})"
        for p in sorted(places, key=lambda p: -p.strength)
    ]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more
