"""Which keys can each query of an attention layer see?"""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mcr_lens.hookpoints import HookedModel, text_config


def attention_window(model: HookedModel, layer: int) -> int | None:
    """How many keys a query of this layer sees at most (itself included); None for no limit."""
    cfg = model.cfg
    if getattr(cfg, "use_local_attn", False) and getattr(cfg, "attn_types", None):
        return cfg.window_size if cfg.attn_types[layer] == "local" else None
    config = text_config(model)
    if getattr(config, "attention_layers", None):  # GPT-Neo has names of its own
        return config.window_size if config.attention_layers[layer] == "local" else None
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or kinds[layer] == "sliding_attention" else None


def is_causal(model: HookedModel) -> bool:
    """Whether queries see only earlier keys (decoders) or all of them (encoders such as BERT)."""
    # TransformerLens 3.9 calls BERT's bridge causal, so the architecture's name is asked as well.
    masked = str(getattr(model.cfg, "architecture", None) or "").endswith("ForMaskedLM")
    return getattr(model.cfg, "attention_dir", "causal") == "causal" and not masked


def attention_chunk(model: HookedModel, layer: int) -> int | None:
    """Tokens of the chunks that attention does not look out of (Llama 4); None for no chunks."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None)
    if kinds is None or kinds[layer] != "chunked_attention":
        return None
    return getattr(config, "attention_chunk_size", None)


def visible_mask(
    length: int,
    *,
    causal: bool = True,
    window: int | None = None,
    chunk: int | None = None,
    device: Any = None,
) -> Bool[Tensor, "query key"]:
    """Which keys each query can see: earlier ones and itself, at most `window`, in the same `chunk`.

    >>> visible_mask(3, window=2).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    >>> visible_mask(3, chunk=2).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 0, 1]], dtype=torch.int32)
    """
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    if causal:
        mask = mask.tril()
    if window:
        mask = mask.triu(1 - window)
    if chunk:
        number = torch.arange(length, device=device) // chunk
        mask = mask & (number[:, None] == number)
    return mask


def layer_mask(model: HookedModel, layer: int, length: int, device: Any = None) -> Bool[Tensor, "query key"]:
    """Which keys each query of this layer can see, in a prompt of this length."""
    return visible_mask(
        length,
        causal=is_causal(model),
        window=attention_window(model, layer),
        chunk=attention_chunk(model, layer),
        device=device,
    )
