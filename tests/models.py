"""Tiny models as the tests use them: raw, behind a bridge, and as a HookedTransformer."""

import tempfile
import warnings
from contextlib import contextmanager
from importlib.metadata import version

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from mcr_lens.testing import families

GENERATION = int(version("transformer-lens").split(".")[0])
"""Major version of TransformerLens: 3 has HookedTransformer, 4 has the bridge only."""

FAMILIES = list(families.FAMILIES)
"""Names of every family there is a tiny model of."""

HOOKED = ["gpt2", "neox", "llama3", "mistral", "gpt_oss", "gemma1", "gemma2", "gemma3"]
"""Families that are compared with a HookedTransformer of the same weights (TransformerLens 3.x)."""

ALIASES = {"llama": "llama3"}


def hugging_face(family: str, **options):
    """A random Hugging Face model, in evaluation mode; "llama" is the one with grouped heads."""
    return families.tiny_model(ALIASES.get(family, family), **options)


def is_encoder(model) -> bool:
    """BERT: every token sees every token, and a LayerNorm follows each addition."""
    return getattr(model.cfg, "architecture", None) == "BertForMaskedLM"


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
    with _deprecated():
        return HookedTransformer(HookedTransformerConfig(**(settings | changes)), tokenizer).eval()


def hooked_twin(family: str, *, fold_value_biases: bool = False, **options):
    """A HookedTransformer with the very weights of `hugging_face(family)` (TransformerLens 3.x only)."""
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

    model = hugging_face(family, **options)
    if family == "gpt2":
        model.config.n_ctx = model.config.n_positions  # every GPT-2 checkpoint on the hub has it
    with _deprecated(), tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        cfg = _hooked_config(family, folder, model.config)
        cfg.tokenizer_name, cfg.model_name = None, f"tiny {family}"  # or it looks for a tokenizer
        twin = HookedTransformer(cfg)
        # A Gemma has its weights told apart by its name, every other family by the folder's config.
        weights = get_pretrained_state_dict(folder, cfg, model)
        twin.load_and_process_state_dict(
            weights,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=fold_value_biases,
        )
    return twin.eval()


def _hooked_config(family: str, folder: str, config):
    """TransformerLens' own configuration of a family, in our sizes."""
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    official = {
        "gemma1": "google/gemma-2b", "gemma2": "google/gemma-2-2b", "gemma3": "google/gemma-3-270m"
    }  # fmt: skip
    cfg = get_pretrained_model_config(official.get(family, folder), device="cpu", dtype=torch.float32)
    if family in official:
        cfg.d_model, cfg.d_head, cfg.d_mlp = config.hidden_size, config.head_dim, config.intermediate_size
        cfg.n_layers, cfg.n_heads = config.num_hidden_layers, config.num_attention_heads
        cfg.n_key_value_heads, cfg.d_vocab = config.num_key_value_heads, config.vocab_size
        cfg.n_ctx, cfg.rotary_dim, cfg.attn_scale = config.max_position_embeddings, config.head_dim, 8**0.5
        cfg.d_vocab_out, cfg.act_fn = config.vocab_size, "gelu_pytorch_tanh"
    if family in ("gemma2", "gemma3"):
        kinds = {"sliding_attention": "local", "full_attention": "global"}
        cfg.window_size, cfg.attn_types = config.sliding_window, [kinds[k] for k in config.layer_types]
        cfg.attn_scores_soft_cap = config.attn_logit_softcapping or -1.0
        cfg.output_logits_soft_cap = config.final_logit_softcapping or -1.0
    return cfg


@contextmanager
def _deprecated():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        yield


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
