"""What made these numbers: which model, in which state, with which versions?"""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from weakref import WeakKeyDictionary

from mcr_lens.hookpoints import HookedModel, model_name
from mcr_lens.prompts import own_bos

LOADED: "WeakKeyDictionary[Any, dict[str, str]]" = WeakKeyDictionary()
"""What `load_model` did, by model."""


EPOCH = "SOURCE_DATE_EPOCH"
"""This environment variable says when a result is to have been made (reproducible-builds.org)."""


class ProcessedWeightsWarning(UserWarning):
    """The model's weights were folded or centred: its residual stream is not the trained model's."""


def processing(model: Any) -> str:
    """Whether the residual stream is the trained model's own ("raw") or was moved by weight processing.

    Compatibility mode centres writing weights and folds layer norms; log-probabilities stay, norms and
    entropies do not.
    """
    if getattr(model, "_weights_processed", False):
        return "processed (compatibility mode: layer norm folded, writing weights centred)"
    if getattr(model, "compatibility_mode", False):
        return "raw (compatibility mode without processing)"
    kind = str(getattr(model.cfg, "normalization_type", "") or "")
    if not hasattr(model, "original_model") and kind.endswith("Pre"):
        return "processed (HookedTransformer: layer norm folded, weights possibly centred)"
    return "raw"


def describe(model: HookedModel, *, position: int = 0, interventions: Sequence[Any] = ()) -> dict[str, Any]:
    """Provenance of a result as plain JSON values, ready for `Dataset.attrs`."""
    cfg: Any = model.cfg
    bos = own_bos(getattr(model, "tokenizer", None))
    token = None if bos is None else model.tokenizer.convert_ids_to_tokens(bos)  # type: ignore[attr-defined]
    about = {
        "model": model_name(model),
        "revision": "unknown",
        "dtype": _dtype(model),
        "processing": processing(model),
        "model_class": type(getattr(model, "original_model", model)).__name__
        if hasattr(model, "door")
        else type(model).__name__,
        "door": getattr(model, "door", "TransformerLens"),
        "architecture": str(getattr(cfg, "architecture", None) or "unknown"),
        "n_layers": int(cfg.n_layers),
        "n_heads": int(cfg.n_heads),
        "d_model": int(cfg.d_model),
        "bos_token": str(token) if token is not None else "none: the tokenizer has no BOS of its own",
        "position": position,
        "interventions": json.dumps([i.describe() for i in interventions]),
        "created": _now().isoformat(timespec="seconds"),
    }
    about.update(LOADED.get(model, {}))
    for package in ("mcr-lens", "torch", "transformer-lens", "transformers", "xarray"):
        about[f"version_{package.replace('-', '_')}"] = _version(package)
    return about


def _now() -> datetime:
    """The time, or the one in SOURCE_DATE_EPOCH, so that a result can be made again byte by byte.

    Raises:
        ValueError: SOURCE_DATE_EPOCH is no number of seconds.
    """
    given = os.environ.get(EPOCH)
    if not given:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(given), UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{EPOCH}={given!r} in the environment: set it to seconds since 1970, or leave it out"
        ) from None


def _dtype(model: Any) -> str:
    # A bridge in compatibility mode cannot list its parameters by the ordinary names; cfg still knows.
    try:
        return str(next(iter(model.parameters())).dtype).removeprefix("torch.")
    except (StopIteration, AttributeError):
        return str(getattr(model.cfg, "dtype", "unknown")).removeprefix("torch.")


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
