"""Is every mistake answered with one clear sentence: what came, what is allowed, what to do?"""

import copy

import pytest
import torch
from jaxtyping import Float
from models import bridge, hugging_face
from refusals import ROWS, refused
from torch import Tensor

import mcr_lens
from mcr_lens import get_metric, load_model, measure, observe


@pytest.mark.parametrize("group", ["spectral", "norms", "attention", "sinks", "loss"])
def test_every_group_in_the_documentation_exists(llama, group):
    """The groups that `measure` names can be asked for."""
    ds = measure(llama, ROWS, group, progress=False)
    assert {variable.attrs["group"] for variable in ds.data_vars.values()} == {group}


def test_get_metric_suggests_too():
    """The nearest name, in a sentence without quotes around it."""
    with pytest.raises(mcr_lens.UnknownMetricError) as seen:
        get_metric("sink_scor")
    assert (
        str(seen.value)
        == "unknown metric 'sink_scor': did you mean 'sink_score'? `mcr-lens metrics` lists them all"
    )


def test_text_without_tokenizer(llama):
    """A model without tokenizer cannot read."""
    refused(ValueError, "has no tokenizer, so it cannot read text; pass token ids instead", llama, "text")


def test_not_a_model():
    """Anything else, and a string."""
    refused(
        TypeError,
        "expected a TransformerLens model, got Linear; pass a TransformerBridge",
        torch.nn.Linear(2, 2),
    )
    with pytest.raises(TypeError, match=r"got LlamaForCausalLM; wrap it with mcr_lens.load_model.*serve"):
        mcr_lens.Observer(hugging_face("llama"))
    refused(TypeError, "expected a TransformerLens model, got str", "gpt2")


def test_training_mode():
    """Dropout is not to be measured; the own loop is only warned."""
    model = bridge("llama")
    model.train()
    refused(ValueError, r"in training mode, so dropout would be measured; call model.eval\(\)", model)
    with pytest.warns(mcr_lens.ObservationWarning, match="training mode"), observe(model):
        pass


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_not_finite(poison):
    """NaN in the stream is an error that names the depth and the prompt, never a result."""
    model = bridge("llama")
    with torch.no_grad():
        model.original_model.model.embed_tokens.weight[7] = poison
    message = (
        r"the residual stream is NaN or infinite from depth 0 on, in 1 of 2 prompts.*float32 or bfloat16"
    )
    refused(mcr_lens.NonFiniteActivationError, message, model, [[4, 5, 6], [5, 6, 7]])
    refused(mcr_lens.NonFiniteActivationError, "row 1", model, [[4, 5, 6], [5, 6, 7]], ["sink_score"])
    assert measure(model, [[4, 5, 6]], progress=False).sizes["prompt"] == 1


def test_not_finite_from_a_later_layer():
    """The depth is the first that is not finite."""
    model = bridge("gpt2")
    with torch.no_grad():
        for name, parameter in model.original_model.named_parameters():
            if ".h.2." in name and "mlp" in name and parameter.dim() == 1:
                parameter.fill_(torch.nan)
    refused(mcr_lens.NonFiniteActivationError, "from depth 3 on, in 2 of 2 prompts", model)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "'/no/such/folder' is no model: there is no such folder"),
        ("empty", "is no model: it holds no config.json; pass a Hugging Face folder"),
        ("file.txt", "is no model: it is a file"),
        (
            "no-such/model",
            "neither a local folder nor a model that could be fetched.*check the name and the network",
        ),
    ],
)
def test_path_that_is_no_model(tmp_path, path, message):
    """One sentence instead of a traceback of the hub."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    name = str(tmp_path / path) if path in ("empty", "file.txt") else path
    with pytest.raises(mcr_lens.ModelLoadError, match=message) as seen:
        load_model(name, verbose=False)
    assert "\n" not in str(seen.value)


def test_load_model_arguments(llama):
    """Options that exclude each other, and things that are no model."""
    raw = hugging_face("llama")
    with pytest.raises(ValueError, match="pass device or device_map, not both"):
        load_model(raw, device="cpu", device_map="auto")
    with pytest.raises(ValueError, match="device_map has no effect on a model in memory"):
        load_model(raw, device_map="auto")
    with pytest.raises(ValueError, match="dtype='int8': pass one of float32, bfloat16, float16"):
        load_model(raw, dtype="int8")
    with pytest.raises(TypeError, match="expected a hub name, a folder or a Hugging Face model, got int"):
        load_model(7)
    with pytest.raises(TypeError, match="is a TransformerLens model already; pass it to measure"):
        load_model(llama)


def mid_norm(resid_mid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
    """Norm between attention and MLP."""
    return resid_mid[:, 0].norm(dim=-1)


def test_parallel_blocks_have_no_middle(llama):
    """resid_mid exists in sequential blocks only; the message says which hook is missing."""
    refused(
        mcr_lens.MissingHookPointError,
        r"has no hook point 'blocks.0.hook_resid_mid' \(and 3 more like it\).*leave out the metrics",
        bridge("neox"), ROWS, [mid_norm],
    )  # fmt: skip
    assert measure(llama, ROWS, [mid_norm], progress=False).mid_norm.dims == ("prompt", "layer")


def test_pattern_that_is_never_computed():
    """OPT leaves attention to Hugging Face: under sdpa there is no pattern, and that is found out first."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    raw = hugging_face("opt", attention="sdpa")
    model = build_bridge_from_module(copy.deepcopy(raw), "OPTForCausalLM", hf_config=raw.config)
    model.original_model.set_attn_implementation("sdpa")
    model.eval()
    message = "'sdpa' attention, which never computes .*load it with mcr_lens.load_model, or call"
    refused(mcr_lens.PatternNotComputedError, message, model)
    with pytest.raises(mcr_lens.PatternNotComputedError), observe(model):
        pass
    assert measure(model, ROWS, ["bos_norm"], progress=False).sizes["prompt"] == 2
