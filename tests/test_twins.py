"""Is a random twin the same model but for its weights, and the given one left alone?"""

import hashlib

import pytest
import torch
from models import bridge, hugging_face, tokenizer

from mcr_lens import load_model, measure
from mcr_lens.twins import random_twin


def parameters(model) -> dict[str, torch.Tensor]:
    return dict((getattr(model, "original_model", None) or model).named_parameters())


def fingerprint(model) -> str:
    digest = hashlib.sha256()
    for name, p in parameters(model).items():
        digest.update(name.encode() + p.detach().float().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", ["initialised", "shuffled"])
def test_a_twin_differs_in_its_weights_alone(any_model, tokens, kind):
    """Same class, sizes and precision; the given model and the global random numbers stay as they were."""
    before, state = fingerprint(any_model), torch.get_rng_state()
    twin, other = (random_twin(any_model, seed, kind=kind) for seed in (3, 4))
    assert fingerprint(any_model) == before and torch.equal(torch.get_rng_state(), state)
    given, made = parameters(any_model), parameters(twin)
    assert {n: (p.shape, p.dtype) for n, p in given.items()} == {
        n: (p.shape, p.dtype) for n, p in made.items()
    }
    assert type(twin) is type(any_model) and not twin.training
    assert fingerprint(twin) != fingerprint(other)
    shared = {p.data_ptr() for p in given.values()} & {p.data_ptr() for p in made.values()}
    assert not shared
    norms = [measure(m, tokens, ["bos_norm"], progress=False).bos_norm for m in (any_model, twin)]
    assert norms[0].shape == norms[1].shape and abs(norms[0] - norms[1]).max() > 1e-3


def test_shuffled_keeps_every_value(any_model):
    """Each tensor holds the same numbers, in another order."""
    given = parameters(any_model)
    for name, made in parameters(random_twin(any_model, 0, kind="shuffled")).items():
        old = given[name].detach().flatten()
        new = made.detach().flatten()
        assert torch.equal(old.sort().values, new.sort().values), name
        if len(old) > 8 and len(old.unique()) > 8:
            assert not torch.equal(old, new), name


@pytest.mark.parametrize("kind", ["initialised", "shuffled"])
def test_one_seed_one_twin(llama, kind):
    """Whatever the global random numbers are."""
    one = fingerprint(random_twin(llama, 3, kind=kind))
    torch.manual_seed(99)
    assert fingerprint(random_twin(llama, 3, kind=kind)) == one


def test_shuffled_is_what_runs():
    """Where a bridge splits joint weights, the split ones are those that are shuffled and used."""
    model = bridge("gpt2")
    twin = random_twin(model, 0, kind="shuffled")
    given, made = model.blocks[1].attn.W_Q, twin.blocks[1].attn.W_Q
    assert torch.equal(given.flatten().sort().values, made.flatten().sort().values)
    assert not torch.equal(given, made)


def test_initialised_is_how_hugging_face_starts():
    """Standard deviation 0.02, gains one, biases zero, whatever the given weights are."""
    model = bridge("gpt2")
    twin = random_twin(model, 0).original_model.transformer
    assert float(twin.wte.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert (twin.h[0].ln_1.weight == 1).all() and not twin.h[0].ln_1.bias.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_is_kept(dtype):
    """Of parameters; RoPE frequencies stay in float32, as they are in a model that was loaded."""
    model = bridge("llama3", dtype=dtype)
    twin = random_twin(model, 0)
    assert {p.dtype for p in parameters(twin).values()} == {p.dtype for p in parameters(model).values()}
    buffers = [dict(m.original_model.named_buffers()) for m in (model, twin)]
    assert {n: b.dtype for n, b in buffers[0].items()} == {n: b.dtype for n, b in buffers[1].items()}


def test_the_tokenizer_comes_along():
    """A copy of it: text becomes the same tokens, and nothing is shared."""
    model = load_model(hugging_face("llama3"), tokenizer=tokenizer(prepends=True), verbose=False)
    twin = random_twin(model, 0)
    assert twin.tokenizer is not model.tokenizer
    texts = ["abc", "<bos>abcd", " x yz "]
    first, second = (measure(m, texts, ["bos_norm"], progress=False) for m in (model, twin))
    assert first.prompt_hash.values.tolist() == second.prompt_hash.values.tolist()
    assert second.attrs["model"] == "LlamaForCausalLM (in memory) (initialised weights, seed 0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed=-1: pass a whole number from 0"),
        ({"seed": True}, "seed=True: pass a whole number from 0"),
        ({"seed": 0, "kind": "noise"}, "kind='noise': pass 'initialised' .*; 'shuffled'"),
    ],
)
def test_nonsense_is_refused(llama, arguments, message):
    """In one sentence."""
    with pytest.raises(ValueError, match=message):
        random_twin(llama, **arguments)


def test_not_a_model():
    """A Hugging Face model is told how to become one."""
    with pytest.raises(TypeError, match=r"expected a TransformerLens model.*load_model"):
        random_twin(hugging_face("gpt2"), 0)


def test_what_has_no_twin_is_refused():
    """Packed weights, weights on several devices, processed weights, and parameters that were changed."""
    model = bridge("gpt2")
    model.original_model.config.quantization_config = {"bits": 4}
    with pytest.raises(ValueError, match=r"packed \(quantised\) weights; pass it in full precision"):
        random_twin(model, 0)
    model = bridge("gpt2")
    model.original_model.hf_device_map = {"transformer.wte": "cpu", "transformer.h": "disk"}
    with pytest.raises(ValueError, match="is spread over devices; pass it on one"):
        random_twin(model, 0)
    model = bridge("gpt2")
    model._weights_processed = True
    with pytest.raises(ValueError, match=r"are processed .*, and its twin's would be raw"):
        random_twin(model, 0)
    model = bridge("gpt2")
    model.original_model.extra = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="they were changed after loading; load it again"):
        random_twin(model, 0, kind="shuffled")
