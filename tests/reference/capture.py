"""What runs through a raw Hugging Face model, as float64 numpy arrays, module by module."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch


@dataclass(frozen=True)
class Paths:
    """Where things are in one family's modules; all but `blocks` count from one block."""

    blocks: str
    attention: str  # its output is added to the stream
    mlp: str  # its output is added to the stream
    values: str  # the projection whose output holds the value vectors
    heads: str  # the output projection: its input is z, its weight W_O
    fused: str = ""  # how query, key and value share one projection

    def of(self, block: int, part: str) -> str:
        return f"{self.blocks}.{block}.{part}"


_LLAMA = Paths("model.layers", "self_attn.o_proj", "mlp", "self_attn.v_proj", "self_attn.o_proj")
_GEMMA = Paths(  # norms behind attention and MLP: what they give is added
    "model.layers",
    "post_attention_layernorm",
    "post_feedforward_layernorm",
    "self_attn.v_proj",
    "self_attn.o_proj",
)
PATHS = {
    "gpt2": Paths("transformer.h", "attn.c_proj", "mlp", "attn.c_attn", "attn.c_proj", "thirds"),
    "opt": Paths(
        "model.decoder.layers", "self_attn.out_proj", "fc2", "self_attn.v_proj", "self_attn.out_proj"
    ),
    "neox": Paths(
        "gpt_neox.layers", "attention.dense", "mlp", "attention.query_key_value", "attention.dense", "heads"
    ),
    "bloom": Paths(
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "self_attention.query_key_value",
        "self_attention.dense",
        "heads",
    ),
    **dict.fromkeys(
        ["llama2", "llama3", "mistral", "mixtral", "qwen2", "qwen3", "gemma1", "gpt_oss"], _LLAMA
    ),
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "bert": Paths(
        "bert.encoder.layer",
        "attention.output.dense",
        "output.dense",
        "attention.self.value",
        "attention.output.dense",
    ),
}


@dataclass(frozen=True)
class Trace:
    """One prompt's activations. L blocks, T tokens, H heads, width d, d_head e."""

    stream: np.ndarray  # [L + 1, T, d]; depth l enters block l, depth L leaves the last, before the norm
    pattern: np.ndarray  # [L, H, T, T]
    attention: np.ndarray  # [L, T, d], added to the stream
    mlp: np.ndarray  # [L, T, d], added to the stream
    value: np.ndarray  # [L, T, H, e], repeated for the heads that share it
    z: np.ndarray  # [L, T, H, e], before the output projection
    output: np.ndarray  # [L, H, e, d], W_O
    logits: np.ndarray  # [T, V]
    tokens: np.ndarray  # [T]


def capture(model, family: str, tokens: torch.Tensor) -> Trace:
    """Run one prompt [T] through a raw Hugging Face model and keep what the metrics are made of.

    The model's attention must be eager. Hooks are on modules, none on TransformerLens.
    """
    paths, n_heads = PATHS[family], model.config.num_attention_heads
    seen: dict[str, torch.Tensor] = {}
    handles = []

    def keep(module, args, kwargs, out, *, name):
        seen[name] = out[0] if isinstance(out, tuple) else out
        seen[f"into {name}"] = args[0] if args else kwargs["hidden_states"]

    depth = model.config.num_hidden_layers
    wanted = [f"{paths.blocks}.{block}" for block in range(depth)]
    wanted += [
        paths.of(block, part)
        for block in range(depth)
        for part in {paths.attention, paths.mlp, paths.values, paths.heads}
    ]
    for name in wanted:
        hook = partial(keep, name=name)
        handles.append(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            out = model(tokens[None], output_attentions=True)
    finally:
        for handle in handles:
            handle.remove()

    def all_blocks(part: str, shape, into: bool = False) -> np.ndarray:
        names = [("into " if into else "") + paths.of(block, part) for block in range(depth)]
        return np.stack([_array(seen[name]).reshape(shape) for name in names])

    length = len(tokens)
    rows, heads = (length, -1), (length, n_heads, -1)
    first = seen[f"into {paths.blocks}.0"]
    stream = [first] + [seen[f"{paths.blocks}.{block}"] for block in range(depth)]
    return Trace(
        stream=np.stack([_array(x).reshape(rows) for x in stream]),
        pattern=np.stack([_array(a)[0] for a in out.attentions]),
        attention=all_blocks(paths.attention, rows),
        mlp=all_blocks(paths.mlp, rows),
        value=_values(all_blocks(paths.values, rows), paths.fused, model.config),
        z=all_blocks(paths.heads, heads, into=True),
        output=np.stack([_projection(model, paths.of(block, paths.heads)) for block in range(depth)]),
        logits=_array(out.logits)[0],
        tokens=tokens.numpy(),
    )


def _values(fused: np.ndarray, kind: str, config) -> np.ndarray:
    """Value vectors [L, T, H, e] out of what the projection gives, [L, T, width]."""
    n_heads = config.num_attention_heads
    if kind == "thirds":  # all queries, then all keys, then all values
        values = np.split(fused, 3, axis=-1)[2].reshape(*fused.shape[:2], n_heads, -1)
    elif kind == "heads":  # query, key and value of the first head, of the second, ...
        values = fused.reshape(*fused.shape[:2], n_heads, 3, -1)[..., 2, :]
    else:
        shared = getattr(config, "num_key_value_heads", None) or n_heads
        values = fused.reshape(*fused.shape[:2], shared, -1)
        values = np.repeat(values, n_heads // shared, axis=2)
    return values


def _projection(model, name: str) -> np.ndarray:
    """W_O by head, [H, e, d]."""
    module = model.get_submodule(name)
    weight = _array(module.weight)
    # GPT-2 stores [in, out], a Linear stores [out, in].
    weight = weight if type(module).__name__ == "Conv1D" else weight.T
    return weight.reshape(model.config.num_attention_heads, -1, weight.shape[-1])


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
