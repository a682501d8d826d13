"""Metrics as plain functions: random inputs, zeros, and evaluation without any hook."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mcr_lens.metrics._registry import get_derived

BATCH, LENGTH, WIDTH, HEADS, D_HEAD, VOCABULARY = 3, 11, 32, 4, 8, 128


def evaluate(item: Any, given: Mapping[str, Tensor], *, position: int = 0) -> Any:
    """The value of a metric (or intermediate quantity) on tensors held in the hand."""
    arguments = {
        name: given[name] if name in given else evaluate(get_derived()[name], given, position=position)
        for name in item.inputs
    }
    options = {"position": position} if "position" in item.options else {}
    return item.function(**arguments, **options)


def random_inputs(
    *, batch: int = BATCH, length: int = LENGTH, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Everything a metric may read, in the shapes of one layer; attention is causal and sums to one."""
    g = torch.Generator().manual_seed(seed)
    states = {
        name: torch.randn(batch, length, WIDTH, generator=g)
        for name in ("resid", "resid_mid", "attn_out", "mlp_out")
    }
    heads = {name: torch.randn(batch, length, HEADS, D_HEAD, generator=g) for name in ("value", "z")}
    scores = torch.randn(batch, HEADS, length, length, generator=g)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = torch.randn(HEADS, D_HEAD, WIDTH, generator=g)
    floats = {
        **states,
        **heads,
        "pattern": scores.masked_fill(future, -torch.inf).softmax(-1),
        "output_gram": weights @ weights.mT,
        "logits": torch.randn(batch, length, VOCABULARY, generator=g),
        "clean_logits": torch.randn(batch, length, VOCABULARY, generator=g),
    }
    return {name: tensor.to(dtype) for name, tensor in floats.items()} | {
        "visible": torch.ones(length, length, dtype=torch.bool).tril(),
        "tokens": torch.randint(0, VOCABULARY, (batch, length), generator=g),
    }


def rows(given: Mapping[str, Tensor], chosen: slice) -> dict[str, Tensor]:
    """Some prompts of a batch; weights and masks belong to no prompt and stay whole."""
    shared = ("output_gram", "visible")
    return {name: t if name in shared else t[chosen] for name, t in given.items()}
