"""What does a model write at chosen places? The raw rows, for edits that need them and for own use."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mcr_lens._checks import as_shown
from mcr_lens.batches import Batch, forward_arguments, in_batches
from mcr_lens.hookpoints import HookDidNotFireError, HookedModel, check_model, hook_names, model_name
from mcr_lens.liveness import SITES
from mcr_lens.positions import Given, Picker, integers, read_positions
from mcr_lens.prompts import read_prompts


def site_names(model: HookedModel, site: str) -> list[str]:
    """Hook names of a site, one for each layer.

    Raises:
        MissingHookPointError: the model lacks one of them.
    """
    names = hook_names(model, site)
    return names[1:] if site == "resid" else names


def check_layers(model: HookedModel, layers: Sequence[int]) -> None:
    """Refuse a layer that the model does not have.

    Raises:
        ValueError: which one, and which there are.
    """
    last = model.cfg.n_layers - 1
    wrong = [layer for layer in layers if layer > last]
    if wrong:
        raise ValueError(f"layer {wrong[0]} does not exist: the model has layers 0..{last}")


def record_activations(
    model: HookedModel,
    prompts: Any,
    site: str,
    *,
    layers: int | Sequence[int],
    positions: Given = 0,
    prepend_bos: bool | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = False,
) -> dict[int, Float[Tensor, "row ..."]]:
    """What `site` holds at the chosen positions of the prompts, by layer: [row, d_model].

    For head outputs "z" [row, head, d_head]. One row for each prompt and chosen position, prompts in order;
    padding and positions that a prompt does not have are left out. In the units of the residual stream, on
    the CPU, in the model's dtype.

    Args:
        site: "mlp_out", "attn_out", "z" (head outputs) or "resid" (the stream behind block l).
        layers: counted from 0.
        positions: as in `zero_ablation`.

    Raises:
        ValueError: an unknown site or layer, or no prompt that has such a position.
        HookDidNotFireError: the forward pass never reaches the site.

    Source: this library.
    """
    check_model(model)
    check_site(site)
    chosen, where = integers("layers", layers), read_positions(positions)
    check_layers(model, chosen)
    names = site_names(model, site)
    found: dict[int, dict[int, Tensor]] = {layer: {} for layer in chosen}
    lengths: list[int] = []
    numbers: tuple[int, ...] = ()
    fired: set[int] = set()

    def keep(tensor: Tensor, hook: Any = None, *, layer: int, picker: Picker) -> None:
        fired.add(layer)
        index = picker.pick(tensor)
        if index is None:
            return
        rows = tensor.detach()[index].flatten(0, 1) if isinstance(index, tuple) else tensor.detach()[index]
        mine: list[list[int]] = [[] for _ in numbers]
        for i, (row, position) in enumerate(picker.positions_of(tensor, index)):
            if position < lengths[row]:
                mine[row].append(i)
        found[layer] |= {number: rows[at].cpu() for number, at in zip(numbers, mine, strict=True)}

    pickers = {layer: Picker(model, where, layer) for layer in chosen}
    hooks = [hook for picker in pickers.values() for hook in picker.hooks]
    hooks += [(names[i], partial(keep, layer=i, picker=pickers[i])) for i in chosen]
    rows = read_prompts(model, prompts, prepend_bos=prepend_bos)
    arguments = forward_arguments(model, needs_logits=False)

    def run(batch: Batch) -> None:
        nonlocal numbers, lengths
        numbers, lengths = batch.numbers, batch.lengths
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            model(batch.tokens, **arguments)

    for _ in in_batches(model, rows, batch_size, run, progress=progress):
        pass
    silent = [names[layer] for layer in chosen if layer not in fired]
    if silent:
        raise HookDidNotFireError(f"{model_name(model)} never reaches {silent[0]!r} in a plain forward pass")
    if not any(len(part) for part in found[chosen[0]].values()):
        raise ValueError(f"no prompt has a token at positions={as_shown(positions)}; choose others")
    return {layer: torch.cat([found[layer][number] for number in sorted(found[layer])]) for layer in chosen}


def check_site(site: str) -> None:
    """Refuse a site that cannot be recorded and edited.

    Raises:
        ValueError: which ones there are.
    """
    if not isinstance(site, str) or site not in SITES:
        raise ValueError(f"site {as_shown(site)} cannot be edited; pass one of {', '.join(SITES)}")
