"""Does `inspect_model` say what is there, and does it notice when something is not as it seems?"""

import copy

import pytest
import torch
import transformers
from models import GENERATION, HOOKED, bridge, hooked_twin, hugging_face, is_encoder, tokenizer
from probes import stream
from refusals import refused
from traces import hook_census

from mcr_lens import MissingHookPointError, load_model, measure, observe, probing
from mcr_lens.hookpoints import READS, WrongWeightsError, hook_names
from mcr_lens.inspection import inspect_model
from mcr_lens.testing.families import _COMMON, _GROUPED, _TOKENS
from mcr_lens.visibility import attention_window

WINDOWS = {
    "MistralForCausalLM": [4, 4, 4, 4],
    "Gemma2ForCausalLM": [4, None, 4, None],
    "Gemma3ForCausalLM": [4, None, 4, None],
    "GptOssForCausalLM": [4, None, 4, None],
    "tiny gemma2": [4, None, 4, None],
}


def wrapped(config, cls=transformers.AutoModelForCausalLM):
    """A random model of a family that has no tiny model of its own, behind a bridge."""
    build = getattr(cls, "from_config", None) or cls._from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(0.9 / parameter.shape[-1] ** 0.5 * torch.randn_like(parameter))
    return load_model(model, verbose=False)


def test_every_family_is_seen_as_it_is(any_model):
    """Windows, row sums, shapes, and whether the parts add up, for every family on both generations."""
    found = inspect_model(any_model)
    encoder = is_encoder(any_model)
    assert found.supported and found.weights == "raw" and found.causal is not encoder
    assert [at.window for at in found.layers] == WINDOWS.get(found.model, [None] * 4)
    assert not any(at.mask_problem for at in found.layers)
    assert all(at.adds_up is not encoder and at.heads_add_up and at.mid_adds_up for at in found.layers)
    for at in found.layers:
        least, most = at.row_sum
        assert (
            (0 < least < most < 1) if "oss" in found.model.lower() else (1 - 1e-5 < least <= most < 1 + 1e-5)
        )
    how = "through a norm" if encoder else "exact"
    assert dict(found.edits) == {"mlp_out": how, "attn_out": how}
    reads = {read.name: read for read in found.reads}
    assert list(reads) == [read for read in READS if read != "attention"]
    assert reads["resid"].shape == "batch=1 pos=16 d_model=32"
    assert reads["pattern"].shape == "batch=1 head=4 query=16 key=16"
    grouped = getattr(any_model.cfg, "n_key_value_heads", None) or 4
    assert reads["value"].shape == f"batch=1 pos=16 head={grouped} d_head=8"
    assert bool(reads["resid_mid"].problem) == (encoder or "neox" in found.model.lower())


def test_printed():
    """A page of plain text: facts, a table of hook points, and one line for each thing to know."""
    text = str(inspect_model(load_model(hugging_face("gpt_oss"), tokenizer=tokenizer(), verbose=False)))
    for line in (
        "size       4 layers, 4 heads (2 key-value), width 32, context 64",
        "attention  causal, a window of 4 keys in layers 0, 2",
        "BOS        '<bos>' (id 0) is prepended to every text",
        "edits      mlp_out: exact, attn_out: exact",
        "value      blocks.0.attn.v.hook_out           batch=1 pos=16 head=2 d_head=8",
        "every default metric can be measured",
    ):
        assert line in text.split("\n"), line
    assert "- attention rows of layers 0-3 sum to less than 1 (here 0." in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bos": True}, "'<bos>' (id 0) is prepended to every text"),
        ({"bos": False}, "the tokenizer has none of its own: position 0 is the first token"),
    ],
)
def test_what_stands_at_position_0(options, said):
    """The tokenizer's own BOS, or the first token; Pythia's bridge would leave its BOS out."""
    assert (
        inspect_model(load_model(hugging_face("llama"), tokenizer=tokenizer(**options), verbose=False)).bos
        == said
    )
    if options["bos"]:
        pythia = inspect_model(load_model(hugging_face("neox"), tokenizer=tokenizer(), verbose=False))
        assert pythia.bos == said + ", which TransformerLens alone leaves out"


def test_bert_begins_with_cls(tmp_path):
    """An encoder's texts begin with [CLS], which is no BOS."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    named = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    hugging_face("bert").save_pretrained(tmp_path)
    named.save_pretrained(tmp_path)
    found = inspect_model(load_model(tmp_path, verbose=False))
    assert found.bos == "the tokenizer has none of its own: position 0 is '[CLS]'"


@pytest.mark.parametrize(
    ("claim", "said"),
    [(3, "query 3 attends to key 0, which it should not see"),
     (5, "no query attends to the key 4 places back, which it should see"),
     (None, "no query attends to the key 4 places back, which it should see")],
)  # fmt: skip
def test_a_wrong_window_is_noticed(monkeypatch, claim, said):
    """Both ways: keys that are seen and should not be, keys that should be seen and are not."""
    monkeypatch.setattr(probing, "attention_window", lambda model, layer: claim)
    found = inspect_model(bridge("mistral"))
    assert {at.mask_problem for at in found.layers} == {said}
    assert not found.supported
    assert any(said in caveat and caveat.startswith("not supported in layer 0") for caveat in found.caveats)


@pytest.mark.parametrize(("family", "causal"), [("gpt2", False), ("bert", True)])
def test_a_wrong_direction_is_noticed(monkeypatch, family, causal):
    """A decoder taken for an encoder, and the other way round."""
    monkeypatch.setattr(probing, "is_causal", lambda model: causal)
    assert all(at.mask_problem for at in inspect_model(bridge(family)).layers)


OTHERS = {
    "gpt_neo": (
        lambda: transformers.GPTNeoConfig(
            hidden_size=32, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]],
            window_size=4, max_position_embeddings=64, intermediate_size=64, **_TOKENS,
        ),
        [None, 4, None, 4],
    ),
    "qwen2, windows off": (
        lambda: transformers.Qwen2Config(**_COMMON, **_GROUPED, sliding_window=4), [None] * 4,
    ),
    "qwen2, windows on": (
        lambda: transformers.Qwen2Config(
            **_COMMON, **_GROUPED, sliding_window=4, use_sliding_window=True, max_window_layers=2
        ),
        [None, None, 4, 4],
    ),
    "mistral without": (
        lambda: transformers.MistralConfig(**_COMMON, **_GROUPED, sliding_window=None), [None] * 4,
    ),
    "mixtral": (
        lambda: transformers.MixtralConfig(
            **_COMMON, **_GROUPED, sliding_window=4, num_local_experts=4, num_experts_per_tok=2
        ),
        [4] * 4,
    ),
    "phi3": (lambda: transformers.Phi3Config(**_COMMON, **_GROUPED, sliding_window=4), [4] * 4),
    "olmo3": (lambda: transformers.Olmo3Config(**_COMMON, **_GROUPED, sliding_window=4), [4, 4, 4, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_windows_of_other_families(name):
    """Where each keeps its window, checked against its own pattern."""
    config, windows = OTHERS[name]
    found = inspect_model(wrapped(config()))
    assert [at.window for at in found.layers] == windows
    assert found.supported, found


def test_a_language_model_inside_a_larger_one():
    """Gemma-3 from 4B on sees pictures too; its windows stand in a part of its configuration."""
    text = {
        **_COMMON, **_GROUPED, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = wrapped(config, transformers.Gemma3ForConditionalGeneration)
    assert [attention_window(model, layer) for layer in range(4)] == [4, None, 4, None]
    assert not any(at.mask_problem for at in inspect_model(model).layers)


@pytest.mark.skipif(GENERATION >= 4, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("family", HOOKED)
def test_a_hooked_transformer_sees_the_same_keys(family):
    """Windows and direction of HookedTransformer are those of the bridge on the same model, and right."""
    one, other = inspect_model(hooked_twin(family)), inspect_model(bridge(family))
    assert one.supported and other.supported and one.causal and other.causal
    assert [at.window for at in one.layers] == [at.window for at in other.layers]
    assert {read.name: read.shape for read in one.reads} == {read.name: read.shape for read in other.reads}


def test_the_probe_reaches_beyond_the_window():
    """A few tokens more than the shortest window, where the context allows; otherwise that is said."""
    found = inspect_model(bridge("mistral", sliding_window=20))
    assert found.tokens == 28 and found.supported
    assert not any("not checked" in caveat for caveat in found.caveats)
    short = inspect_model(bridge("mistral", sliding_window=20, max_position_embeddings=18))
    assert (
        short.tokens == 18
        and "the windows of layers 0-3 are as configured, not checked on 18 tokens" in str(short)
    )
    assert inspect_model(bridge("mistral", sliding_window=4096)).tokens == 16


def test_latent_attention_is_not_supported():
    """DeepSeek's values do not stand where values stand; nobody is told a value drain from them."""
    config = transformers.DeepseekV3Config(
        **_COMMON, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=16,
    )  # fmt: skip
    found = inspect_model(wrapped(config))
    assert not found.supported
    assert "not supported in layers 0-3: attention times values is not what the heads put out" in str(found)


def test_pattern_that_is_never_computed_is_a_line_not_an_error():
    """OPT under sdpa: the rest of the page is there."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    raw = hugging_face("opt", attention="sdpa")
    model = build_bridge_from_module(copy.deepcopy(raw), "OPTForCausalLM", hf_config=raw.config)
    model.original_model.set_attn_implementation("sdpa")
    found = inspect_model(model.eval())
    reads = {read.name: read for read in found.reads}
    assert reads["pattern"].problem.startswith("not supported because OPTForCausalLM runs 'sdpa' attention")
    assert reads["resid"].shape and found.edits["mlp_out"] == "exact"
    assert not found.supported


@pytest.fixture
def folded():
    """A GPT-OSS whose value biases TransformerLens has folded away."""
    model = bridge("gpt_oss")
    model.enable_compatibility_mode(disable_warnings=True)
    return model


def test_folded_value_biases_under_sink_logits(folded, tokens):
    """TransformerLens' compatibility mode computes something else there: refused before the run."""
    with torch.no_grad():
        wrong = folded(tokens, return_type="logits").log_softmax(-1)
        right = hugging_face("gpt_oss")(tokens).logits.log_softmax(-1)
    assert (wrong - right).abs().max() > 0.1  # once this is mended upstream, the refusal can go
    refused(WrongWeightsError, "has learned sink logits, and TransformerLens folded its value biases", folded)
    with pytest.raises(WrongWeightsError, match="process with fold_value_biases=False"), observe(folded):
        pass
    found = inspect_model(folded)
    assert not found.supported and "not supported because GptOssForCausalLM has learned sink logits" in str(
        found
    )


@pytest.mark.skipif(GENERATION >= 4, reason="TransformerLens 4 has no HookedTransformer")
def test_folded_value_biases_in_a_hooked_transformer(tokens):
    """HookedTransformer folds them the same way."""
    model = hooked_twin("gpt_oss", fold_value_biases=True)
    refused(WrongWeightsError, "tiny gpt_oss has learned sink logits", model, tokens)
    assert measure(hooked_twin("gpt_oss"), tokens, ["sink_score"], progress=False).sizes["prompt"] == 3
    folded = hooked_twin("gpt2", fold_value_biases=True)  # rows sum to 1: nothing wrong with that
    assert measure(folded, tokens, ["sink_score"], progress=False).sizes["prompt"] == 3


@pytest.mark.filterwarnings("ignore::mcr_lens.ProcessedWeightsWarning")
@pytest.mark.parametrize("options", [{"fold_value_biases": False}, {"no_processing": True}])
def test_other_processing_of_sink_logits_is_right(options, tokens):
    """Without that step the model still computes what it did, and is measured."""
    model = bridge("gpt_oss")
    model.enable_compatibility_mode(disable_warnings=True, **options)
    with torch.no_grad():
        got = model(tokens, return_type="logits").log_softmax(-1)
        torch.testing.assert_close(
            got, hugging_face("gpt_oss")(tokens).logits.log_softmax(-1), atol=1e-5, rtol=1e-5
        )
    assert measure(model, tokens, ["sink_score"], progress=False).sizes["prompt"] == 3


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.filterwarnings("ignore::mcr_lens.ProcessedWeightsWarning")
def test_processed_weights_are_said(processed):
    """Compatibility mode is legal for GPT-2, and named."""
    model = bridge("gpt2")
    if processed:
        model.enable_compatibility_mode(disable_warnings=True)
    found = inspect_model(model)
    assert found.supported and found.weights.startswith("processed" if processed else "raw")
    assert any("norms and entropies are not the trained" in c for c in found.caveats) == processed


def test_berts_middle_is_refused(tokens):
    """TransformerLens' hook_resid_mid is another tensor there, so it is not handed out under that name."""
    model = bridge("bert")
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    raw = hugging_face("bert").bert.encoder.layer[0]
    norms = raw.attention.output.LayerNorm, raw.output.LayerNorm
    written = cache["blocks.0.attn.o.hook_out"]
    with torch.no_grad():
        stream_between = norms[0](cache["blocks.0.hook_resid_pre"] + written)
    torch.testing.assert_close(cache["blocks.0.hook_attn_out"], stream_between)  # so this is not the write
    mixed = stream_between + cache["blocks.0.hook_mlp_out"]
    torch.testing.assert_close(cache["blocks.0.hook_resid_mid"], mixed)  # and this not the stream between
    with pytest.raises(
        MissingHookPointError, match="what enters the last LayerNorm, the MLP's output included"
    ):
        hook_names(model, "resid_mid")
    assert hook_names(model, "attn_out")[0] == "blocks.0.attn.o.hook_out"


@pytest.mark.skipif(GENERATION >= 4, reason="TransformerLens 4 has no HookedEncoder")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hooked_encoder_is_refused():
    """Its hook points lie elsewhere in the block than a bridge's."""
    from transformer_lens import HookedEncoder, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2,
        d_model=32,
        n_ctx=16,
        d_head=8,
        n_heads=4,
        d_mlp=64,
        d_vocab=128,
        act_fn="gelu",
        device="cpu",
    )
    model = HookedEncoder(config)
    refused(TypeError, "wrap the Hugging Face model with mcr_lens.load_model", model)
    with pytest.raises(TypeError, match="HookedEncoder reads the stream before a norm"):
        inspect_model(model)


def test_not_a_model():
    """The same refusal as everywhere."""
    with pytest.raises(TypeError, match=r"got LlamaForCausalLM; wrap it with mcr_lens.load_model"):
        inspect_model(hugging_face("llama"))


def test_training_mode_is_said():
    """Dropout would be measured."""
    model = bridge("gpt2")
    model.train()
    assert "the model is in training mode" in str(inspect_model(model))


def test_inspecting_leaves_no_trace(any_model, tokens):
    """Same bits, same hooks, same mode; an observer around it sees nothing of it."""
    with torch.no_grad():
        before = any_model(tokens, return_type="logits")
        hooks, state = hook_census(any_model), torch.get_rng_state()
        with observe(any_model, {"stream": stream}) as watch:
            inspect_model(any_model)
            any_model(tokens)
        after = any_model(tokens, return_type="logits")
    assert watch.result().sizes["prompt"] == len(tokens)
    assert torch.equal(before, after) and hook_census(any_model) == hooks
    assert torch.equal(torch.get_rng_state(), state) and not any_model.training


def test_half_precision_rounds_without_alarm():
    """Sums that are off by bfloat16's rounding are no loss, and parts still add up."""
    for family in ("llama", "gpt_oss", "gemma2"):
        found = inspect_model(bridge(family, dtype=torch.bfloat16))
        assert found.dtype == "bfloat16" and found.supported
        assert all(at.adds_up and at.heads_add_up for at in found.layers)
        assert ("sum to less than 1" in str(found)) == (family == "gpt_oss")
