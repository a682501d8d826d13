"""Tiny random models of every family, from their real Hugging Face configuration classes.

For tests: each is built in memory in milliseconds, has four layers, four heads and width 32, and weights
so large that nothing about it is degenerate. What such a model shows is plumbing (names, shapes, masks,
norms), never what a trained model does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 128, 32, 4, 4, 64
WINDOW = 4
"""Keys that a query of a sliding layer sees, itself included: short, so that short prompts show it."""

_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_COMMON = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": 64, "max_position_embeddings": CONTEXT, **_TOKENS,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2}
_ROPE_YARN = {
    "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 2.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "truncate": False, "original_max_position_embeddings": 32,
}  # fmt: skip
_ROPE_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One architecture: its configuration, its model class, and what is particular about it."""

    name: str
    config_class: type
    settings: Mapping[str, Any] = field(repr=False)
    architecture: str
    caveat: str = ""
    auto_class: type = hf.AutoModelForCausalLM
    generations: tuple[int, ...] = (3, 4)  # major versions of TransformerLens that can wrap it

    def config(self, **changes: Any) -> Any:
        """A fresh configuration, with some settings changed."""
        return self.config_class(**{**self.settings, **changes})


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "gpt2",
            hf.GPT2Config,
            {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, **_TOKENS},
            "learned positions, LayerNorm, biases everywhere",
        ),
        Family(
            "opt",
            hf.OPTConfig,
            {
                "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
                "ffn_dim": 64, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": WIDTH, **_TOKENS,
            },
            "learned positions, LayerNorm, ReLU",
            "attention stays Hugging Face's own: the pattern can be read, not edited, and under sdpa it is "
            "never computed, so `load_model` asks for eager attention and `measure` refuses sdpa",
        ),
        Family(
            "neox",
            hf.GPTNeoXConfig,
            {**_COMMON, "use_parallel_residual": True, "rotary_pct": 0.25},
            "GPT-NeoX and Pythia: attention and MLP in parallel, partial RoPE, LayerNorm",
            "no residual stream between attention and MLP: both read the same input",
        ),
        Family(
            "bloom",
            hf.BloomConfig,
            {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, **_TOKENS},
            "ALiBi instead of positions, LayerNorm, a norm behind the embedding",
        ),
        Family(
            "llama2",
            hf.LlamaConfig,
            _COMMON,
            "RoPE, RMSNorm, gated MLP, one key-value head for every head",
        ),
        Family(
            "llama3",
            hf.LlamaConfig,
            {**_COMMON, **_GROUPED, "rope_parameters": _ROPE_LLAMA3},
            "RoPE with scaling of type llama3, RMSNorm, grouped heads",
        ),
        Family(
            "mistral",
            hf.MistralConfig,
            {**_COMMON, **_GROUPED, "sliding_window": WINDOW},
            "a sliding window in every layer, grouped heads",
            "BOS is seen by the first few queries only; sinks are averaged over the queries that see them",
        ),
        Family(
            "mixtral",
            hf.MixtralConfig,
            {**_COMMON, **_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
            "mixture of experts in every block, grouped heads",
        ),
        Family(
            "qwen2",
            hf.Qwen2Config,
            {**_COMMON, **_GROUPED},
            "biases on query, key and value, grouped heads",
            "has a window in its configuration that is switched off by default",
        ),
        Family(
            "qwen3",
            hf.Qwen3Config,
            {**_COMMON, **_GROUPED, "head_dim": 8},
            "a norm on queries and keys, grouped heads",
        ),
        Family(
            "gemma1",
            hf.GemmaConfig,
            {**_COMMON, "num_key_value_heads": 1, "head_dim": 8},
            "scaled embedding, RMSNorm with gain 1 + w, one key-value head for all",
        ),
        Family(
            "gemma2",
            hf.Gemma2Config,
            {
                **_COMMON, **_GROUPED, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
                "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
            },
            "norms before and after attention and MLP, sliding and full layers in turn, soft-capping",
        ),
        Family(
            "gemma3",
            hf.Gemma3TextConfig,
            {
                **_COMMON, **_GROUPED, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
                "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
            },
            "norms before and after, a norm on queries and keys, local and global layers with a RoPE each",
        ),
        Family(
            "gpt_oss",
            hf.GptOssConfig,
            {
                **_COMMON, **_GROUPED, "head_dim": 8, "sliding_window": WINDOW, "num_local_experts": 4,
                "num_experts_per_tok": 2, "rope_parameters": _ROPE_YARN,
            },
            "a learned sink logit in every head, mixture of experts, windows in every other layer",
            "attention rows sum to less than 1: the rest goes to the sink logit, and TransformerLens' "
            "compatibility mode, which folds value biases as if they summed to 1, is refused",
        ),
        Family(
            "bert",
            hf.BertConfig,
            _COMMON,
            "an encoder: every token sees every token, LayerNorm behind each addition",
            "post-norm: the stream is not the sum of the writes; TransformerLens' hook_attn_out and "
            "hook_resid_mid mean other tensors there, so the first is read elsewhere and the second "
            "refused; pattern and sdpa as for `opt`",
            auto_class=hf.AutoModelForMaskedLM,
        ),
    )
}  # fmt: skip
"""Every family that is tested, by name."""


def tiny_model(
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = "eager",
    **config_changes: Any,
) -> Any:
    """A random Hugging Face model of one family, in evaluation mode, always the same for one seed.

    Weights are drawn so large that attention is far from uniform, and gains, biases and sink logits are
    moved off the values they are born with, so that forgetting one of them shows. The global random
    numbers are left as they were.

    Args:
        family: a key of `FAMILIES`.
        seed: another seed, other weights.
        dtype: of the parameters; buffers such as RoPE frequencies stay in float32, as in a checkpoint that
            Hugging Face loads in half precision.
        attention: the attention implementation ("eager", "sdpa").
        config_changes: settings of the configuration, by Hugging Face's names.

    Raises:
        KeyError: an unknown family.

    Source: this library.
    """
    if family not in FAMILIES:
        raise KeyError(f"unknown family {family!r}: pass one of {', '.join(FAMILIES)}")
    found = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the GPUs as well, which nobody puts back.
        torch.default_generator.manual_seed(seed)
        config = found.config(**config_changes)
        model = found.auto_class.from_config(config, attn_implementation=attention).eval()
        # GPT-2 stores its projections as [in, out], everybody else as [out, in].
        turned = {id(module.weight) for module in model.modules() if type(module).__name__ == "Conv1D"}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    inputs = parameter.shape[0 if id(parameter) in turned else -1]
                    parameter.copy_(0.9 / inputs**0.5 * torch.randn_like(parameter))
                parameter.data = parameter.data.to(dtype)
    config.dtype = dtype
    config.architectures = [type(model).__name__]  # absent on a model built from a configuration
    return model
