"""Where do the weights of a block stand, and in which order, whatever the family calls them?

Every tensor here is a view: what is written into it is written into the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Reader:
    """One matrix that reads the residual stream through a norm, W (g x̂ + b) + c, one row per thing read."""

    norm: nn.Module
    weight: Float[Tensor, "*rows d_model"]
    bias: Float[Tensor, "*rows"] | None


@dataclass(frozen=True)
class Writer:
    """One matrix that writes into the residual stream, one column per thing written."""

    weight: Float[Tensor, "d_model item"]
    bias: Float[Tensor, "d_model"] | None


@dataclass(frozen=True)
class Block:
    """The weights of one block. `neurons` has one matrix, or gate and up for a gated MLP."""

    query: Reader  # rows [head, d_head]
    key: Reader  # rows [key-value head, d_head]
    value: Reader
    attn_out: Writer
    neurons: tuple[Reader, ...]  # rows [d_mlp]
    mlp_out: Writer
    activation: Callable[[Tensor], Tensor]

    @property
    def attn_norm(self) -> nn.Module:
        """The norm in front of attention; its input is the residual stream at the depth of this block."""
        return self.query.norm

    @property
    def mlp_norm(self) -> nn.Module:
        """The norm in front of the MLP."""
        return self.neurons[0].norm


@dataclass(frozen=True)
class Weights:
    """All that a model reads the residual stream with, or writes into it, but the unembedding."""

    tokens: Float[Tensor, "vocabulary d_model"]
    positions: Float[Tensor, "context d_model"] | None
    blocks: tuple[Block, ...]
    final_norm: nn.Module


def _gpt2(model: Any) -> Weights:
    body, heads = model.transformer, model.config.n_head

    def block(layer: Any) -> Block:
        # Conv1D stores [in, out]: transpose. Its columns are q, k, v, each by head.
        attention = layer.attn.c_attn
        weight = attention.weight.data.T.unflatten(0, (3, heads, -1))
        bias = attention.bias.data.unflatten(0, (3, heads, -1))
        out, up, down = layer.attn.c_proj, layer.mlp.c_fc, layer.mlp.c_proj
        return Block(
            *(Reader(layer.ln_1, weight[i], bias[i]) for i in range(3)),
            attn_out=Writer(out.weight.data.T, out.bias.data),
            neurons=(Reader(layer.ln_2, up.weight.data.T, up.bias.data),),
            mlp_out=Writer(down.weight.data.T, down.bias.data),
            activation=layer.mlp.act,
        )

    return Weights(
        body.wte.weight.data, body.wpe.weight.data, tuple(block(layer) for layer in body.h), body.ln_f
    )


def _neox(model: Any) -> Weights:
    body, heads = model.gpt_neox, model.config.num_attention_heads

    def block(layer: Any) -> Block:
        # Rows are by head, and within a head q, k, v.
        attention = layer.attention.query_key_value
        weight = attention.weight.data.unflatten(0, (heads, 3, -1))
        bias = attention.bias.data.unflatten(0, (heads, 3, -1))
        norm = layer.input_layernorm
        return Block(
            *(Reader(norm, weight[:, i], bias[:, i]) for i in range(3)),
            attn_out=_writer(layer.attention.dense),
            neurons=(_reader(layer.post_attention_layernorm, layer.mlp.dense_h_to_4h),),
            mlp_out=_writer(layer.mlp.dense_4h_to_h),
            activation=layer.mlp.act,
        )

    return Weights(
        body.embed_in.weight.data, None, tuple(block(layer) for layer in body.layers), body.final_layer_norm
    )


def _llama(model: Any) -> Weights:
    body, config = model.model, model.config

    def block(layer: Any) -> Block:
        attention, norm = layer.self_attn, layer.input_layernorm
        shared = config.num_key_value_heads
        return Block(
            query=_reader(norm, attention.q_proj, config.num_attention_heads),
            key=_reader(norm, attention.k_proj, shared),
            value=_reader(norm, attention.v_proj, shared),
            attn_out=_writer(attention.o_proj),
            neurons=tuple(
                _reader(layer.post_attention_layernorm, matrix)
                for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj)
            ),
            mlp_out=_writer(layer.mlp.down_proj),
            activation=layer.mlp.act_fn,
        )

    return Weights(
        body.embed_tokens.weight.data, None, tuple(block(layer) for layer in body.layers), body.norm
    )


def _reader(norm: nn.Module, linear: nn.Linear, heads: int | None = None) -> Reader:
    weight, bias = linear.weight.data, None if linear.bias is None else linear.bias.data
    if heads is not None:
        weight = weight.unflatten(0, (heads, -1))
        bias = None if bias is None else bias.unflatten(0, (heads, -1))
    return Reader(norm, weight, bias)


def _writer(linear: nn.Linear) -> Writer:
    return Writer(linear.weight.data, None if linear.bias is None else linear.bias.data)


def _common_size(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "intermediate_size": 2 * width,
    }  # fmt: skip


def _grouped_size(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {**_common_size(layers, width, heads), "num_key_value_heads": heads // 2}


def _gpt2_size(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {"n_layer": layers, "n_embd": width, "n_head": heads, "n_inner": 2 * width}


@dataclass(frozen=True)
class Layout:
    """How a family names its sizes, and where its weights stand."""

    settings: Callable[[int, int, int], dict[str, Any]]
    weights: Callable[[Any], Weights]


LAYOUTS: Mapping[str, Layout] = {
    "gpt2": Layout(_gpt2_size, _gpt2),
    "neox": Layout(_common_size, _neox),
    "llama2": Layout(_common_size, _llama),
    "llama3": Layout(_grouped_size, _llama),
    "qwen2": Layout(_grouped_size, _llama),
}
"""The families that can be planted: one residual stream, norms in front, a plain softmax, no window."""
