"""Are the measured values those of the raw Hugging Face model?"""

import copy

import numpy as np
import pytest
import torch
from jaxtyping import Float
from models import FAMILIES, bridge, hugging_face, tokenizer
from probes import attention, stream
from tokenizers import processors
from torch import Tensor

import mcr_lens
from mcr_lens import load_model, measure

FINAL_NORM = {"gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm", "llama": "model.norm"}
CHECKED = pytest.mark.parametrize("family", FINAL_NORM)


RAW = {"stream": stream, "attention": attention}


def hidden_states(model, family, tokens) -> tuple[Tensor, Tensor]:
    """Residual stream [depth, batch, pos, d] and attention [layer, ...], without TransformerLens."""
    last = {}
    norm = model.get_submodule(FINAL_NORM[family])
    handle = norm.register_forward_pre_hook(lambda module, args: last.update(stream=args[0]))
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True, output_attentions=True)
    handle.remove()
    states = [*out.hidden_states[:-1], last["stream"]]  # theirs ends after the final norm
    return torch.stack(states), torch.stack(out.attentions)


@pytest.fixture(scope="module", params=FINAL_NORM)
def pair(request):
    """An untouched model and an independent copy of it behind the bridge."""
    raw = hugging_face(request.param)
    return request.param, raw, load_model(copy.deepcopy(raw), verbose=False)


def test_residual_stream(pair, tokens):
    """Depth l is what enters block l; the last depth is before the final norm."""
    family, raw, model = pair
    states, patterns = hidden_states(raw, family, tokens)
    assert len(states) == raw.config.num_hidden_layers + 1
    ds = measure(model, tokens, RAW, progress=False)
    np.testing.assert_allclose(ds.stream.transpose("depth", ...), states, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ds.attention.transpose("layer", ...), patterns, atol=1e-5)


def test_metrics_from_hidden_states(pair, tokens):
    """BOS norm, entropy, sink score from numpy alone."""
    family, raw, model = pair
    states, patterns = (t.double().numpy() for t in hidden_states(raw, family, tokens))
    ds = measure(model, tokens, progress=False)
    norms = np.linalg.norm(states, axis=-1)
    np.testing.assert_allclose(ds.bos_norm.T, norms[:, :, 0], rtol=1e-5)
    np.testing.assert_allclose(ds.other_norm_median.T, np.median(norms[:, :, 1:], axis=-1), rtol=1e-5)
    squares = np.linalg.svd(states, compute_uv=False) ** 2
    shares = squares / squares.sum(-1, keepdims=True)
    np.testing.assert_allclose(ds.matrix_entropy.T, -(shares * np.log(shares)).sum(-1), atol=1e-5)
    np.testing.assert_allclose(ds.anisotropy.T, shares[..., 0], atol=1e-6)
    np.testing.assert_allclose(
        ds.sink_score.transpose("layer", "prompt", "head"), patterns[..., 0].mean(-1), atol=1e-5
    )
    diagonal = np.diagonal(patterns, axis1=-2, axis2=-1)[..., 1:].mean(-1)
    np.testing.assert_allclose(ds.identity_score.transpose("layer", ...), diagonal, atol=1e-5)


def test_loss_equals_hugging_faces(pair, prompts):
    """Next-token loss per prompt, mixed lengths in one batch, equals the model's own loss one by one."""
    _, raw, model = pair
    with torch.no_grad():
        wanted = [float(raw(p[None], labels=p[None]).loss) for p in prompts]
    ds = measure(model, prompts, ["next_token_loss"], batch_size=5, progress=False)
    np.testing.assert_allclose(ds.next_token_loss, wanted, rtol=1e-5)


@pytest.mark.parametrize("with_tokenizer", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_memory(family, with_tokenizer, tokens):
    """A model in memory, with and without a tokenizer, computes what it computed before."""
    raw = hugging_face(family)
    with torch.no_grad():
        wanted = raw(tokens).logits
    given = {"tokenizer": tokenizer()} if with_tokenizer else {}
    model = load_model(copy.deepcopy(raw), verbose=False, **given)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, return_type="logits"), wanted, atol=1e-5, rtol=1e-5)
    ds = measure(model, "some text" if with_tokenizer else tokens, progress=False)
    assert ds.attrs["processing"] == "raw" and ds.attrs["dtype"] == "float32"
    assert ds.attrs["model"].endswith("(in memory)")
    if with_tokenizer:
        assert ds.attrs["bos_token"] == "<bos>" and ds.has_bos.all() and int(ds.n_tokens[0]) == 10
        assert ds.text.values.tolist() == ["some text"]


@CHECKED
def test_saved_folder(family, tmp_path, tokens):
    """The same numbers from a folder as from memory, tokenizer included."""
    raw = hugging_face(family)
    raw.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    states, _ = hidden_states(raw, family, tokens)
    model = load_model(tmp_path, verbose=False)
    ds = measure(model, tokens, RAW, progress=False)
    np.testing.assert_allclose(ds.stream.transpose("depth", ...), states, atol=1e-5, rtol=1e-5)
    assert ds.attrs["model"] == str(tmp_path)
    text = measure(model, ["some text"], ["bos_norm"], progress=False)
    assert text.position_token.values.tolist() == ["<bos>"]


def test_sdpa_model_is_switched_to_eager(tokens):
    """A model that came with sdpa attention is measured all the same."""
    ds = measure(bridge("opt", attention="sdpa"), tokens, ["sink_score"], progress=False)
    wanted = measure(bridge("opt"), tokens, ["sink_score"], progress=False)
    np.testing.assert_allclose(ds.sink_score, wanted.sink_score, atol=1e-6)


def test_dtype_option(tokens):
    """dtype= converts, and the result says so."""
    model = load_model(hugging_face("llama"), dtype="bfloat16", verbose=False)
    assert measure(model, tokens, ["bos_norm"], progress=False).attrs["dtype"] == "bfloat16"


def test_one_line_about_what_was_loaded(capsys):
    """Standard error gets one line; standard output nothing; verbose=False silence."""
    load_model(hugging_face("llama"))
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "4 layers, 4 heads, width 32" in err and "weights as trained" in err and "float32" in err
    load_model(hugging_face("llama"), verbose=False)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def processed():
    """A GPT-2-like model with every bias and mean non-zero, in full compatibility mode."""
    model = bridge("gpt2")
    model.enable_compatibility_mode(disable_warnings=True)
    return model


def test_processed_weights_warn_and_are_recorded(processed, tokens):
    """Compatibility mode moves the stream: the user hears it and the result says it."""
    with pytest.warns(
        mcr_lens.ProcessedWeightsWarning, match=r"norms and entropies are not the trained"
    ) as seen:
        ds = measure(processed, tokens, ["bos_norm"], progress=False)
    assert "load_model" in str(seen[0].message)
    assert ds.attrs["processing"].startswith("processed (compatibility mode")
    raw = measure(bridge("gpt2"), tokens, ["bos_norm"], progress=False)
    assert not np.allclose(raw.bos_norm, ds.bos_norm, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::mcr_lens.ProcessedWeightsWarning")
def test_compatibility_mode_counts_everything_once(processed, tokens):
    """Aliases of one hook point do not double passes or values."""
    calls = []

    def counted(resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
        calls.append(resid.shape[0])
        return resid[:, 0].norm(dim=-1)

    ds = measure(processed, tokens, [counted, "sink_score"], progress=False)
    assert ds.sizes["prompt"] == len(tokens) and len(calls) == processed.cfg.n_layers + 1
    _, cache = processed.run_with_cache(tokens)
    for layer in range(processed.cfg.n_layers):
        norms = cache[f"blocks.{layer}.hook_resid_post"][:, 0].norm(dim=-1)
        np.testing.assert_allclose(ds.counted.sel(depth=layer + 1), norms.detach(), rtol=1e-5)


def test_compatibility_mode_without_processing(tokens):
    """Only the names change: no warning, the same numbers, and the result says which."""
    model = bridge("gpt2")
    model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    ds = measure(model, tokens, progress=False)
    assert ds.attrs["processing"] == "raw (compatibility mode without processing)"
    raw = measure(bridge("gpt2"), tokens, progress=False)
    for name in ds.data_vars:
        np.testing.assert_allclose(ds[name], raw[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_an_encoders_tokenizer_keeps_its_ends():
    """[CLS] and [SEP] stay around a text, and the user's tokenizer stays as it was."""
    ours = tokenizer()
    ours._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    before = ours("abc").input_ids
    assert before[0] == 0 and before[-1] == 1
    model = load_model(hugging_face("bert"), tokenizer=ours, verbose=False)
    ds = measure(model, "abc", ["strongest_token"], progress=False)
    assert int(ds.n_tokens[0]) == len(before) and ours("abc").input_ids == before
