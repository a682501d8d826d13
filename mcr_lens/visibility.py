"""Which keys can each query of an attention layer see?"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
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


@dataclass(frozen=True)
class Visibility:
    """What the queries of one layer see in a prompt of this length, without a mask of its square.

    >>> Visibility(3, window=2).keys().tolist(), Visibility(3, window=2).queries().tolist()
    ([1, 2, 2], [2, 2, 1])
    """

    length: int
    causal: bool = True
    window: int | None = None
    chunk: int | None = None

    def mask(self, device: Any = None) -> Bool[Tensor, "query key"]:
        """Which keys each query can see: earlier ones and itself, at most `window`, in the same `chunk`.

        >>> Visibility(3, window=2).mask().int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 1, 1]], dtype=torch.int32)
        >>> Visibility(3, chunk=2).mask().int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 0, 1]], dtype=torch.int32)
        """
        at = torch.arange(self.length, device=device)
        return self.sees(at[:, None], at)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether these queries see these keys."""
        seen = key <= query if self.causal else torch.ones_like(key <= query)
        if self.window:
            seen = seen & (key > query - self.window)
        return seen & (key // self.chunk == query // self.chunk) if self.chunk else seen

    def keys(self) -> Int[Tensor, "query"]:
        """Number of keys that each query can see: those between its first and its last."""
        at = torch.arange(self.length)
        return self._last(at) - self._first(at) + 1

    def queries(self) -> Int[Tensor, "key"]:
        """Number of queries that can see each key."""
        at = torch.arange(self.length)
        first = at if self.causal else self._start(at)
        last = self._end(at)
        if self.window:
            last = last.minimum(at + self.window - 1)
        return last - first + 1

    def seeing(self, position: int) -> Bool[Tensor, "query"]:
        """Which queries can see the key at `position`."""
        at = torch.arange(self.length)
        return (self._first(at) <= position) & (position <= self._last(at))

    def _first(self, at: Tensor) -> Tensor:
        first = self._start(at)
        return first.maximum(at - self.window + 1) if self.window else first

    def _last(self, at: Tensor) -> Tensor:
        return at if self.causal else self._end(at)

    def _start(self, at: Tensor) -> Tensor:
        return at // self.chunk * self.chunk if self.chunk else torch.zeros_like(at)

    def _end(self, at: Tensor) -> Tensor:
        end = torch.full_like(at, self.length - 1)
        return end.minimum(self._start(at) + self.chunk - 1) if self.chunk else end


def layer_visibility(model: HookedModel, layer: int, length: int) -> Visibility:
    """What the queries of this layer see, in a prompt of this length."""
    return Visibility(length, is_causal(model), attention_window(model, layer), attention_chunk(model, layer))


def layer_mask(model: HookedModel, layer: int, length: int, device: Any = None) -> Bool[Tensor, "query key"]:
    """Which keys each query of this layer can see, in a prompt of this length."""
    return layer_visibility(model, layer, length).mask(device)
