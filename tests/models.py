"""Tiny models of several architectures with weights large enough that nothing is degenerate."""

import warnings
from importlib.metadata import version

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

GENERATION = int(version("transformer-lens").split(".")[0])
"""Major version of TransformerLens: 3 has HookedTransformer, 4 has the bridge only."""

SIZE = {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
COMMON = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, **SIZE,
}  # fmt: skip

FAMILIES = {
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=64, **SIZE),
    "neox": lambda: tf.GPTNeoXConfig(**COMMON, use_parallel_residual=True, rotary_pct=0.25),
    "llama": lambda: tf.LlamaConfig(**COMMON, num_key_value_heads=2),
    "gemma2": lambda: tf.Gemma2Config(
        **COMMON, num_key_value_heads=2, head_dim=8, sliding_window=4, query_pre_attn_scalar=8
    ),
    "bloom": lambda: tf.BloomConfig(hidden_size=32, n_layer=4, n_head=4, **SIZE),
    "gpt_oss": lambda: tf.GptOssConfig(
        **COMMON, num_key_value_heads=2, head_dim=8, sliding_window=4, num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "opt": lambda: tf.OPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, ffn_dim=64,
        max_position_embeddings=64, word_embed_proj_dim=32, **SIZE,
    ),
}  # fmt: skip


def hugging_face(family: str, *, seed: int = 0, attention: str = "eager", **changes):
    """A random Hugging Face model, in evaluation mode."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.9 / parameter.shape[-1] ** 0.5 * torch.randn_like(parameter))
    return model


def bridge(family: str, **options):
    """The same model behind a TransformerBridge, raw weights, no tokenizer."""
    from mcr_lens import load_model

    return load_model(hugging_face(family, **options), verbose=False)


def hooked_transformer(tokenizer=None, **changes):
    """A random HookedTransformer (TransformerLens 3.x only)."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    settings = {
        "n_layers": 4, "d_model": 32, "n_ctx": 64, "d_head": 8, "n_heads": 4, "d_mlp": 64, "d_vocab": 128,
        "act_fn": "gelu", "normalization_type": "LN", "seed": 0, "device": "cpu", "init_weights": True,
        "initializer_range": 0.15,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        return HookedTransformer(HookedTransformerConfig(**(settings | changes)), tokenizer).eval()


def tokenizer(*, bos: bool = True, prepends: bool = False, side: str = "right"):
    """A byte-level tokenizer made in memory: ids 0..3 are <bos>, <eos>, <pad>, <unk>."""
    vocabulary = {"<bos>": 0, "<eos>": 1, "<pad>": 2, "<unk>": 3}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet())[:124]:
        vocabulary[symbol] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if prepends:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    named = {"eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    if bos:
        named["bos_token"] = "<bos>"
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, padding_side=side, **named)
