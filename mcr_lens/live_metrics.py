"""What are norm, entropy and sinks of a model in training, in a handful of numbers and without a trace?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from mcr_lens._checks import as_shown, check_threshold
from mcr_lens.findings import entropy_valley
from mcr_lens.hookpoints import context_length
from mcr_lens.measurement import measure
from mcr_lens.served import ServedModel, _evaluating, is_plain
from mcr_lens.served_attention import CannotServeError
from mcr_lens.summaries import mean_by_site, sink_rate

METRICS = ["massive_activation_ratio", "matrix_entropy", "sink_score"]
"""All that is measured: neither the unembedding nor a pattern is needed for it."""

LENGTH = 128
"""Tokens that are left of a prompt by default."""


def training_metrics(
    model: Any,
    prompts: Any,
    *,
    tokenizer: Any = None,
    position: int = 0,
    threshold: float = 0.3,
    max_length: int | None = LENGTH,
    prefix: str = "mcr/",
) -> dict[str, float]:
    """Norm, entropy and sinks of a model that is being trained, in a handful of numbers.

    For any training loop. A few prompts run in evaluation mode, without gradients and with the model's own
    attention; afterwards everything is as before, also after an error: the training flag of every module,
    gradients, the state of torch's random numbers, and no hook is left. Numbers are means over prompts; the
    names stand behind `prefix`:

    - `bos_ratio`: the largest over depths of ‖x₀‖ / median ‖xᵢ‖, and `bos_ratio_depth`, where.
    - `entropy_min`: the lowest over depths of H / ln min(T, d), 0 to 1, and `entropy_min_depth`, where.
    - `valley_drop`: how far that lies below the lower of its two sides (`entropy_valley`), 0 for no valley.
    - `sink_rate_max`: the largest over layers of the share of heads whose sink score is at least `threshold`,
      and `sink_rate_max_layer`, where.
    - `sink_rate_mean`, `sink_score_mean`: over all layers (and heads).

    Args:
        model: a Hugging Face model in memory, in training mode or not; one inside
            DistributedDataParallel or `torch.compile` is taken out.
        prompts: texts, with `tokenizer`, or token ids [batch, pos]; a handful is enough.
        tokenizer: the model's.
        position: the token taken for BOS, counted from the first token.
        threshold: of the sink rate, mean attention between 0 and 1.
        max_length: cut prompts to so many tokens, or to the model's context where that is shorter; None for
            the context.
        prefix: what the names begin with.

    Raises:
        TypeError: not a Hugging Face model.
        ValueError: a model whose weights are split over processes, or what `measure` refuses.
        CannotServeError: a model that cannot be measured as it is served.
        NonFiniteActivationError: the training has diverged.

    Source: this library; the numbers are those of arXiv 2510.06477, Fig. 2 (training dynamics).
    """
    check_options(threshold, prefix)
    plain = unwrapped(model)
    refuse_shards(plain)
    with _evaluating(plain), _own_random_numbers(plain):
        try:
            served = ServedModel(plain, tokenizer)
        except CannotServeError as error:
            raise CannotServeError(
                "this model cannot be watched while it trains, because it cannot be measured as it is served "
                f"({str(error).split(';')[0]}); measure its checkpoints with mcr_lens.emergence instead"
            ) from error
        longest = context_length(served)
        if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int)):
            raise ValueError(f"max_length={as_shown(max_length)}: pass a positive number of tokens, or None")
        limit = min((n for n in (max_length, longest) if n is not None), default=None)
        ds = measure(served, prompts, METRICS, max_length=limit, position=position, progress=False)
    return {f"{prefix}{name}": value for name, value in _numbers(ds, threshold).items()}


def _numbers(ds: xr.Dataset, threshold: float) -> dict[str, float]:
    ratio, depth = _largest(mean_by_site(ds.massive_activation_ratio))
    valley = entropy_valley(ds)
    rates = mean_by_site(sink_rate(ds, threshold))
    rate, layer = _largest(rates)
    return {
        "bos_ratio": ratio,
        "bos_ratio_depth": depth,
        "entropy_min": np.nan if valley is None else valley.entropy,
        "entropy_min_depth": np.nan if valley is None else float(valley.depth),
        "valley_drop": np.nan if valley is None else valley.drop,
        "sink_rate_max": rate,
        "sink_rate_max_layer": layer,
        "sink_rate_mean": float(rates.mean()),
        "sink_score_mean": float(mean_by_site(ds.sink_score).mean()),
    }


def _largest(values: np.ndarray) -> tuple[float, float]:
    """The largest of what is a number, and where; NaN where nothing is."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    at = int(np.nanargmax(values))
    return float(values[at]), float(at)


def check_options(threshold: float, prefix: str) -> None:
    """Refuse in words what would fail only when the first numbers are there.

    Raises:
        ValueError: a threshold outside 0..1, or a prefix that is not a text.
    """
    check_threshold(threshold)
    if not isinstance(prefix, str):
        raise ValueError(f"prefix={as_shown(prefix)}: pass a text that the names begin with, such as 'mcr/'")


def unwrapped(model: Any) -> Any:
    """The Hugging Face model inside what trains it in parallel or compiles it.

    Raises:
        TypeError: there is none.
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while hasattr(model, "_orig_mod") or isinstance(model, parallel):
        model = model.module if isinstance(model, parallel) else model._orig_mod
    if not is_plain(model):
        raise TypeError(
            f"expected a Hugging Face model, got {type(model).__name__}; pass what from_pretrained returns, "
            "and a TransformerLens model to measure"
        )
    return model


def refuse_shards(model: nn.Module) -> None:
    """Refuse in words a model of which this process holds a part only.

    Raises:
        ValueError: its weights are split over processes.
    """
    split = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    # A parameter has `ds_id` under DeepSpeed ZeRO-3, and `device_mesh` where it is a DTensor (FSDP 2, tensor
    # parallel).
    if split or any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in model.parameters()):
        raise ValueError(
            "the weights of this model are split over processes (FSDP, DeepSpeed ZeRO-3 or tensor parallel), "
            "so it cannot be watched while it trains; measure its checkpoints with mcr_lens.emergence"
        )


@contextmanager
def _own_random_numbers(model: nn.Module) -> Iterator[None]:
    """Whatever is drawn inside: outside, torch's generators are as if nothing had been."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield
