"""Which neurons of a block make the norm of a row?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mcr_lens._checks import as_shown
from mcr_lens.batches import Batch, forward_arguments, in_batches
from mcr_lens.culprit import PARTS, BatchSize, PrependBos, read_row, run_options
from mcr_lens.hookpoints import HookDidNotFireError, HookedModel, model_name
from mcr_lens.prompts import items_of, read_prompts

NEURONS = "blocks.{layer}.mlp.hook_post"
"""What the neurons hold when W_out reads them, gate included. No metric reads it, so `READS` has no line."""


def writing_neurons(
    model: HookedModel,
    prompts: Any,
    layer: int,
    *,
    depth: int | None = None,
    position: int = 0,
    top: int = 10,
    batch_size: BatchSize = "auto",
    max_length: int | None = None,
    prepend_bos: PrependBos = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Which neurons of a block's MLP make the row at `depth` as long as it is.

    The contribution of neuron n is its share of the norm, aₙ ⟨W_out[n], x₀⟩/‖x₀‖², with aₙ what W_out reads.
    All of them, the bias and nothing else add up to the MLP's share in `norm_sources`. A norm behind the MLP
    (Gemma-2, Gemma-3) is taken with the scale it has on that row, where it is linear.

    Returns:
        `contribution` and `activation` [prompt, neuron] of the `top` neurons with the largest mean
        |contribution|, the largest first; `other_neurons`, `bias_contribution` and `mlp_share` [prompt];
        `share_of_write` [neuron], mean contribution over mean MLP share. `neuron` holds their numbers.

    Args:
        layer: the block, 0..L − 1; `depth`, which it must lie below, as in `norm_sources`.
        top: how many neurons are listed; all where the MLP has fewer.
        position, batch_size, max_length, prepend_bos, progress: as in `norm_sources`.

    Raises:
        ValueError: a layer that does not exist or lies above `depth`, an MLP without a single W_out (a
            mixture of experts), or one whose output is not hook_post @ W_out + b_out.
        HookDidNotFireError: the forward pass never reaches the neurons.
        As `norm_sources` for the rest.

    Source: this library, after arXiv 2510.06477 and arXiv 2402.17762.
    """
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise ValueError(f"top={as_shown(top)}: pass how many neurons to list, 1 or more")
    options = run_options(position, batch_size, max_length, prepend_bos, progress)
    again = items_of(prompts)
    row = read_row(model, again, depth, options)
    _check_layer(layer, row.depth, model.cfg.n_layers)
    neurons, bias = _output_matrix(model, layer)
    acts = _activations(model, again, layer, options, len(neurons))
    bare = acts @ neurons + bias
    written = row.writes[:, layer, PARTS.index("mlp")]
    scale = _scale_behind(model, layer, bare, written)
    size = np.sqrt((acts**2) @ ((neurons**2).sum(-1))) * np.abs(scale).max(-1)
    error = np.linalg.norm(bare * scale - written, axis=-1)
    if (error > row.precision**0.5 * (size + np.linalg.norm(written, axis=-1))).any():
        raise ValueError(
            f"the MLP of layer {layer} in {model_name(model)} does not write hook_post @ W_out + b_out, so "
            "its neurons cannot be told apart; norm_sources says what the whole MLP writes"
        )
    direction = row.direction * scale
    contribution = row.per_norm(acts * (direction @ neurons.T))
    order = np.argsort(-np.abs(contribution.mean(0)), kind="stable")
    listed, others = order[:top], order[top:]
    share = row.share(written)
    total = share.mean()
    parts = contribution.mean(0)[listed] / total if total else np.full(len(listed), np.nan)
    one, two = ("prompt",), ("prompt", "neuron")
    found = row.labelled(
        {
            "contribution": (two, contribution[:, listed], "Share of the norm by neuron"),
            "activation": (two, acts[:, listed], "Activation that W_out reads"),
            "other_neurons": (one, contribution[:, others].sum(1), "Share of the norm by all other neurons"),
            "bias_contribution": (one, row.per_norm(direction @ bias), "Share of the norm by the bias"),
            "mlp_share": (one, share, "Share of the norm by the MLP"),
            "share_of_write": (("neuron",), parts, "Mean contribution over the MLP's mean share"),
        }
    )
    return found.assign_coords(neuron=listed, layer=layer)


def _check_layer(layer: Any, depth: int, n_layers: int) -> None:
    if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < n_layers:
        raise ValueError(f"layer={as_shown(layer)}: the model has layers 0..{n_layers - 1}")
    if layer >= depth:
        raise ValueError(
            f"layer {layer} writes to depth {layer + 1}, behind the row that is looked at, at depth {depth}; "
            f"pass depth={layer + 1} or more"
        )


def _output_matrix(
    model: Any, layer: int
) -> tuple[Float[np.ndarray, "d_mlp d_model"], Float[np.ndarray, "d_model"]]:
    """W_out and b_out of one layer in float64, zero where there is no bias."""
    mlp = getattr(model.blocks[layer], "mlp", None)  # as it is served, a block has no parts of its own
    try:
        weight, bias = getattr(mlp, "W_out", None), getattr(mlp, "b_out", None)
    except (TypeError, KeyError, NotImplementedError):
        weight, bias = None, None
    width = model.cfg.d_model
    if (
        not isinstance(weight, Tensor)
        or weight.is_meta
        or not weight.is_floating_point()
        or weight.ndim != 2
        or weight.shape[1] != width
    ):
        raise ValueError(
            f"the neurons of layer {layer} in {model_name(model)} cannot be told apart: its MLP has no one "
            "W_out [d_mlp, d_model] (a mixture of experts, or packed weights); norm_sources says what the "
            "whole MLP writes"
        )
    return _numpy(weight), np.zeros(width) if bias is None else _numpy(bias)


def _activations(
    model: Any, prompts: Any, layer: int, options: Mapping[str, Any], d_mlp: int
) -> Float[np.ndarray, "prompt d_mlp"]:
    """What W_out reads at the position, in float64."""
    name = NEURONS.format(layer=layer)
    point = model.hook_dict.get(name)
    seen: list[Tensor] = []

    def keep(tensor: Tensor, hook: Any = None) -> None:
        seen.append(tensor.detach())

    rows = read_prompts(model, prompts, prepend_bos=options["prepend_bos"], max_length=options["max_length"])
    found = np.empty((len(rows), d_mlp))
    hooks = [] if point is None else [(point.name or name, keep)]
    arguments = forward_arguments(model, needs_logits=False)

    def run(batch: Batch) -> None:
        seen.clear()  # of the last batch, finished or not
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            model(batch.tokens, **arguments)
        if not seen:
            raise HookDidNotFireError(
                f"{model_name(model)} never reaches {name!r} in a plain forward pass; norm_sources says what "
                "the whole MLP writes"
            )
        # Some MLPs see all tokens of a batch in a row, [batch · pos, d_mlp].
        whole = seen[0].reshape(*batch.tokens.shape, d_mlp)
        found[list(batch.numbers)] = _numpy(whole[:, options["position"]])

    for _ in in_batches(model, rows, options["batch_size"], run, progress=options["progress"]):
        pass
    return found


def _scale_behind(
    model: Any, layer: int, bare: Float[np.ndarray, "prompt d_model"], written: np.ndarray
) -> Float[np.ndarray, "prompt d_model"]:
    """What the norm behind the MLP, where there is one, multiplies every coordinate of these rows by.

    An RMSNorm is its gain times one number per row. The gain is what it makes of a row of ones, up to a
    factor that goes into the number.
    """
    norm = getattr(model.blocks[layer], "ln2_post", None)
    if norm is None:
        return np.ones_like(bare)
    weight = model.blocks[layer].mlp.W_out
    with torch.no_grad():
        gain = _numpy(norm(torch.ones(1, 1, bare.shape[1], dtype=weight.dtype, device=weight.device)))[0]
    whole = bare * gain
    square = (whole**2).sum(-1, keepdims=True)
    product = (whole * written).sum(-1, keepdims=True)
    return gain * np.divide(product, square, out=np.zeros_like(square), where=square > 0)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()
