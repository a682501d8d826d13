"""Which Hugging Face models are measured as they are served, which are refused, and what is said?"""

import gc
import json
import tempfile
import warnings
import weakref
from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers as hf
from jaxtyping import Float
from models import bridge, hugging_face, tokenizer
from torch import Tensor, nn
from typer.testing import CliRunner

import mcr_lens
from mcr_lens import (
    CannotServeError,
    MissingHookPointError,
    ObservationWarning,
    ServedModel,
    compare,
    diagnose,
    measure,
    observe,
    serve,
    served_parts,
    zero_bos_mlp,
)
from mcr_lens.cli import app
from mcr_lens.models import demo_folder
from mcr_lens.prompts import make_batches

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "vocab_size": 128, "max_position_embeddings": 64,
    "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def llama(**options):
    return hugging_face("llama", attention="sdpa", **options)


@pytest.fixture(scope="module")
def wanted():
    g = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 128, (n,), generator=g) for n in (12, 5, 17, 12, 9)]
    return measure(llama(), prompts, progress=False)


def assert_equal(found, wanted, within=1e-6):
    for name in wanted.data_vars:
        assert np.allclose(found[name], wanted[name], atol=within, rtol=within, equal_nan=True), name


# -- what is found once --


def test_a_model_is_looked_at_once_as_long_as_it_stays_the_same(monkeypatch, prompts):
    """Another module, forward, hook, configuration or attention: it is looked at anew; weights may change."""
    looked, find = [], served_parts.find_parts
    monkeypatch.setattr(served_parts, "find_parts", lambda *given: looked.append(1) or find(*given))
    model = llama()

    def times():
        measure(model, prompts, "norms", progress=False)
        return len(looked)

    assert times() == 1 and times() == 1
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    assert times() == 1
    model.model.layers[1].mlp = deepcopy(model.model.layers[1].mlp)
    assert times() == 2
    handle = model.model.layers[0].register_forward_hook(lambda *given: None)
    assert times() == 3
    handle.remove()
    forward = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: forward(x)
    assert times() == 4
    model.set_attn_implementation("eager")
    assert times() == 5 and times() == 5
    gone = weakref.ref(model)
    del model, forward, handle
    gc.collect()
    assert gone() is None


# -- compiled, quantised, split --


def test_compiled_models_are_measured_as_they_are_written(prompts, wanted):
    """By torch.compile, in place, and layer by layer; what was compiled stays so."""
    whole = torch.compile(llama(), backend="eager")
    in_place, by_layer = llama(), llama()
    in_place.compile(backend="eager")
    for layer in by_layer.model.layers:
        layer.compile(backend="eager")
    for model in (whole, in_place, by_layer):
        assert_equal(measure(model, prompts, progress=False), wanted)
    assert in_place._compiled_call_impl is not None
    assert by_layer.model.layers[0]._compiled_call_impl is not None
    with torch.no_grad():
        assert torch.allclose(in_place(prompts[0][None]).logits, llama()(prompts[0][None]).logits, atol=1e-5)


class PackedLinear(nn.Module):
    """A linear layer whose weight is eight-bit integers and a scale for every row."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x) * self.scale.to(x), self.bias)


def quantised():
    model = llama()
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, PackedLinear(linear))
    return model


def test_packed_weights_are_measured_without_what_needs_them(prompts, wanted):
    """No W_O, so no `sink_output_share`, with the reason; everything else is near the full precision's."""
    with pytest.warns(ObservationWarning, match="sink_output_share is left out: .*W_O"):
        found = measure(quantised(), prompts, progress=False)
    assert found.attrs["skipped_metrics"] == "sink_output_share"
    assert abs(found.sink_score - wanted.sink_score).max() < 0.05
    assert set(wanted.data_vars) - set(found.data_vars) == {"sink_output_share"}


def test_dynamic_quantisation_of_torch(prompts, wanted):
    """torch's own packed layers, whose weight is a method."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will go from torch one day
        model = torch.ao.quantization.quantize_dynamic(llama(), {nn.Linear}, dtype=torch.qint8)
    with pytest.warns(ObservationWarning, match="sink_output_share is left out"):
        found = measure(model, prompts, progress=False)
    assert abs(found.sink_score - wanted.sink_score).max() < 0.1


def test_a_model_whose_weights_lie_elsewhere(prompts, wanted):
    """accelerate brings every weight in for its own moment; its hooks and ours do not meet."""
    accelerate = pytest.importorskip("accelerate")
    model = llama()
    places = {f"model.layers.{layer}": "cpu" if layer < 2 else "disk" for layer in range(4)}
    places |= {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        model = accelerate.dispatch_model(
            model, places, offload_dir=folder, main_device="cpu", force_hooks=True
        )
        with pytest.warns(ObservationWarning, match="sink_output_share is left out"):
            found = measure(model, prompts, progress=False)
    assert next(model.model.layers[3].parameters()).is_meta
    assert_equal(found, wanted.drop_vars("sink_output_share"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, prompts, wanted):
    """Rounded weights, float32 statistics."""
    found = measure(llama(dtype=dtype), prompts, progress=False)
    assert found.attrs["dtype"] == str(dtype).removeprefix("torch.")
    assert abs(found.sink_score - wanted.sink_score).max() < 0.05
    assert abs(found.row_mass - 1).max() < 1e-5  # rows that were rounded would not sum to one


def test_a_model_without_a_head(prompts, wanted):
    """What AutoModel returns has no logits, and no metric by default asks for them."""
    assert_equal(measure(llama().model, prompts, progress=False), wanted)


# -- what a model lacks, and refusals --


def test_a_scaled_residual_stream_has_no_writes(prompts):
    """Granite multiplies what it adds: no two modules add up, so those metrics are left out in words."""
    model = hf.GraniteForCausalLM(hf.GraniteConfig(**SIZES, residual_multiplier=0.5)).eval()
    served = serve(model)
    assert "no two modules of block" in served.lacks["mlp_out"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ds = measure(served, prompts, progress=False)
    assert "mlp_bos_norm" not in ds and "mlp_bos_norm" in ds.attrs["skipped_metrics"]
    assert any("no two modules" in str(warning.message) for warning in said)
    with pytest.raises(MissingHookPointError, match=r"as it is served has no 'mlp_out'.*load_model"):
        measure(served, prompts, ["bos_norm"], interventions=[zero_bos_mlp(0)], progress=False)


def test_gated_heads_have_no_z(prompts):
    """Where a gate stands between heads and projection, the heads are not what the projection reads."""
    kinds = {"layer_types": ["full_attention"] * 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    model = hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**SIZES, **kinds, **sizes)).eval()
    assert "reads the head outputs" in serve(model).lacks["z"]
    with pytest.warns(ObservationWarning, match="sink_output_share is left out"):
        assert "sink_score" in measure(model, prompts, progress=False)


def pattern_sum(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head"]:
    """A user's metric that needs the pattern itself."""
    return pattern.sum((2, 3))


class Biased(nn.Module):
    """Adds to every score how far away a key is, behind transformers' back."""


def biased_attention(module, query, key, value, attention_mask, **kwargs):
    length = query.shape[2]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    bias = torch.where(distance < 0, -torch.inf, -0.5 * distance)
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    values = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    pattern = (query @ keys.mT * kwargs["scaling"] + bias).softmax(-1)
    return (pattern @ values).transpose(1, 2).contiguous(), None


def test_attention_with_an_unknown_part_is_refused(tokens):
    """The trial does each layer again by the book, and the numbers do not agree."""
    hf.AttentionInterface.register("biased", biased_attention)
    model = llama()
    model.set_attn_implementation("biased")
    with pytest.raises(CannotServeError, match=r"layer 0 has a part that mcr_lens does not know.*ALiBi"):
        measure(model, tokens, progress=False)
    assert model.config._attn_implementation == "biased"


def refused_models():
    falcon = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
    t5 = hf.T5Config(d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=64, vocab_size=128)
    return [
        (hf.GPTNeoForCausalLM, hf.GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, vocab_size=128,
         attention_types=[[["global", "local"], 1]]), "computes its attention by itself"),
        (hf.FalconForCausalLM, hf.FalconConfig(**falcon), "computes something else when its"),
        (hf.T5ForConditionalGeneration, t5, "is an encoder with a decoder"),
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "words"), refused_models(), ids=lambda value: str(value)[-30:])
def test_what_cannot_be_served_is_refused_in_words(kind, config, words):
    """One sentence, and where there is a way out, the way out."""
    with pytest.raises(CannotServeError, match=words) as seen:
        serve(kind(config).eval())
    assert "\n" not in str(seen.value)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: serve(torch.nn.Linear(2, 2)),
            TypeError,
            "expected a Hugging Face model in memory, got Linear",
        ),
        (
            lambda: serve(bridge("llama")),
            TypeError,
            "TransformerBridge can be measured as it is, and is not served",
        ),
        (lambda: serve(llama(), dtype="float32"), ValueError, "dtype= has no effect on a model in memory"),
        (lambda: serve(llama(), revision="x"), ValueError, "revision= has no effect on a model in memory"),
        (
            lambda: serve("demo", device="cpu", device_map="auto"),
            ValueError,
            "device or device_map, not both",
        ),
        (lambda: serve("demo", dtype="int8"), ValueError, "dtype='int8': pass 'float32'"),
        (lambda: serve("no/such/model"), mcr_lens.ModelLoadError, "could not be loaded"),
        (lambda: measure(llama(), "text", progress=False), ValueError, "has no tokenizer"),
        (lambda: measure(bridge("llama"), [[5, 6]], tokenizer=1), TypeError, "tokenizer= goes with a plain"),
        (lambda: measure(llama(), [[5, 6]], [pattern_sum]), ValueError, "never builds the pattern"),
        (lambda: measure(llama().train(), [[5, 6]]), ValueError, "training mode"),
        (lambda: serve(llama())([[5]], return_type="all"), ValueError, "return_type='all'"),
        (
            lambda: serve(llama()).hooks([("nowhere", print)]).__enter__(),
            ValueError,
            "no hook point 'nowhere'",
        ),
        (lambda: serve(llama()).hooks([], [("x", print)]).__enter__(), ValueError, "forward hooks only"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


# -- the rest of the library --


def test_texts_comparisons_and_verdicts_are_those_of_the_bridge():
    """Through the whole library, with a tokenizer in memory."""
    texts = ["The river runs.", "A cat sat down.", "Up and down", "One two three", "some words", "and more"]
    tok = tokenizer(bos=True)
    wrapped = mcr_lens.load_model(hugging_face("qwen3"), tokenizer=tokenizer(bos=True), verbose=False)
    plain = hugging_face("qwen3", attention="sdpa")
    conditions = {"clean": [], "cut": zero_bos_mlp(0)}
    found = compare(plain, texts, conditions, tokenizer=tok, progress=False)
    wanted = compare(wrapped, texts, conditions, progress=False)
    assert np.allclose(found.kl_divergence, wanted.kl_divergence, atol=1e-5)
    assert list(found.text.values) == list(wanted.text.values) and bool(found.has_bos.all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = diagnose(plain, texts, tokenizer=tok, progress=False)
        other = diagnose(wrapped, texts, progress=False)
    assert [c.verdict for c in one.claims] == [c.verdict for c in other.claims]


def test_decoding_steps_are_left_out_and_ablations_reach_them():
    """While the model generates with a cache: one prompt is measured, four tokens are made."""
    model = llama()
    served, ids = serve(model), torch.tensor([[0, 9, 8, 7]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    plain = model.generate(ids, **options)
    with observe(served) as watch:
        assert torch.equal(model.generate(ids, **options), plain)
    with pytest.warns(ObservationWarning, match="3 decoding steps"):
        assert watch.result().sizes["prompt"] == 1
    cut = mcr_lens.zero_ablation("mlp_out", layers=[0, 1, 2, 3], positions=slice(4, None))
    seen = []
    with (
        served.hooks(cut.fwd_hooks(served)),
        served.hooks([("blocks.1.hook_mlp_out", lambda t, hook: seen.append(float(t.abs().sum(-1)[0, -1])))]),
    ):
        model.generate(ids, **options)
    assert len(seen) == 4


def test_what_a_result_says():
    """Which door, which class, which attention; results of both doors are of one model in one state."""
    ids = torch.tensor([[5, 6, 7, 8]])
    found = measure(llama(), ids, progress=False)
    assert found.attrs["door"] == "Hugging Face model as it is served, sdpa attention"
    assert found.attrs["model_class"] == "LlamaForCausalLM"
    other = measure(bridge("llama"), ids + 1, progress=False)
    assert other.attrs["door"] == "TransformerLens"
    assert mcr_lens.merge(found, other).sizes["prompt"] == 2


def test_loss_and_logits_are_the_model_s_own(tokens):
    """By every return type; texts go through the tokenizer."""
    served, model = serve(llama(), tokenizer(bos=True)), llama()
    with torch.no_grad():
        logits, loss = served(tokens, return_type="both")
        assert torch.equal(logits, model(tokens).logits)
        assert float(loss) == pytest.approx(float(model(tokens, labels=tokens).loss), rel=1e-5)
        assert served("some text").shape[0] == 1 and served(tokens, return_type=None) is None


def test_batches_of_a_served_model_are_bounded_by_tokens_alone():
    """Where no pattern is built, none has to fit."""
    lengths = [2000] * 4
    small = llama(max_position_embeddings=4096)
    served = serve(small)
    assert [len(batch) for batch in make_batches(lengths, served, "auto")] == [2, 2]


def test_a_served_model_can_be_inspected_and_has_twins(tokens):
    """Facts by its own masks, and the same class with other weights."""
    served = serve(hugging_face("mistral", attention="sdpa"))
    seen = mcr_lens.inspect_model(served)
    assert seen.supported and seen.layers[0].window == 4 and not seen.layers[0].mask_problem
    assert all(at.adds_up and at.heads_add_up for at in seen.layers)
    twin = mcr_lens.random_twin(served, seed=1)
    assert isinstance(twin, ServedModel)
    assert not torch.equal(twin(tokens), served(tokens))


def test_a_folder_and_the_command(tmp_path):
    """`serve` loads what `load_model` loads, and --served does from a shell."""
    served = serve(demo_folder(), dtype="float32", verbose=False)
    texts = ["The sea was calm.", "He said so, and left."]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure(served, texts, progress=False)
        wanted = measure(mcr_lens.load_model("demo", verbose=False), texts, progress=False)
    assert_equal(found.drop_vars("tightest_token"), wanted.drop_vars("tightest_token"), 1e-4)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(texts))
    command = ["measure", "demo", "--prompts", str(prompts), "--out", str(tmp_path / "out"), "--served"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    ds = mcr_lens.load(tmp_path / "out" / "result.nc")
    assert ds.attrs["door"].startswith("Hugging Face model as it is served")
    assert json.loads(ds.attrs["interventions"]) == []
