"""What a model carries and what it computes, looked at without mcr_lens."""

from typing import Any

import torch
from models import is_encoder
from torch import Tensor


def hook_census(model: Any) -> dict[str, int]:
    """How many hooks of any kind hang on every module and hook point of a model."""
    found: dict[str, int] = {}
    roots = {"": model, "original.": getattr(model, "original_model", None)}
    for prefix, root in roots.items():
        for name, module in root.named_modules() if root is not None else ():
            n = len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
            found[prefix + name] = n + len(getattr(module, "fwd_hooks", ()))
    for name, point in model.hook_dict.items():
        found["point." + name] = len(point._forward_hooks) + len(point.fwd_hooks)
    return found


def cached_inputs(model: Any, tokens: Tensor) -> dict[str, list[dict[str, Tensor]]]:
    """Everything a metric may read, by depth and layer, from TransformerLens' own cache."""
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    heads, layers = model.cfg.n_heads, range(model.cfg.n_layers)
    # On BERT, hook_attn_out is the stream behind the addition and its LayerNorm, not what is written.
    attention = "attn.o.hook_out" if is_encoder(model) else "hook_attn_out"
    depth = [{"resid": cache["blocks.0.hook_resid_pre"]}]
    depth += [{"resid": cache[f"blocks.{layer}.hook_resid_post"]} for layer in layers]
    layer_inputs = []
    for layer in layers:
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        value = cache[f"blocks.{layer}.attn.hook_v"]
        weight = model.blocks[layer].attn.W_O.detach().float()
        layer_inputs.append(
            {
                "pattern": pattern,
                "value": value.repeat_interleave(heads // value.shape[2], dim=2),
                "z": cache[f"blocks.{layer}.attn.hook_z"],
                "attn_out": cache[f"blocks.{layer}.{attention}"],
                "mlp_out": cache[f"blocks.{layer}.hook_mlp_out"],
                "output_gram": weight @ weight.mT,
                "visible": (pattern > 0).any(0).any(0),
            }
        )
    return {
        "depth": depth,
        "layer": layer_inputs,
        "pass": [{"logits": logits, "tokens": tokens, "clean_logits": logits}],
    }
