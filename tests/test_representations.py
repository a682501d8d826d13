"""Is one text one vector at each depth: that of its own tokens, whatever it ran with?"""

import numpy as np
import pytest
import torch
from models import bridge, hugging_face, tokenizer
from traces import cached_inputs, hook_census

from mcr_lens import load_model, record_activations, representations
from mcr_lens.measurement import PromptWarning
from mcr_lens.observer import NonFiniteActivationError

POOLINGS = ("mean", "last", "bos")


def streams(model, prompt) -> np.ndarray:
    """[depth, pos, d_model] of one prompt alone, from TransformerLens' cache."""
    return np.stack(
        [each["resid"][0].float().numpy() for each in cached_inputs(model, prompt[None])["depth"]]
    )


def by_hand(stream: np.ndarray, pooling: str, start: int = 0) -> np.ndarray:
    return {"mean": stream[:, start:].mean(1), "last": stream[:, -1], "bos": stream[:, 0]}[pooling]


def test_poolings_of_the_cache(any_model, prompts):
    """Every family: depth 0 is what enters the first block; token ids have no BOS to leave out."""
    found = representations(any_model, prompts, pooling=POOLINGS, batch_size=5, progress=False)
    wanted = [streams(any_model, prompt) for prompt in prompts]
    for name in POOLINGS:
        rows = np.stack([by_hand(stream, name) for stream in wanted])
        assert found[name].dtype == np.float32 and found[name].shape == rows.shape
        np.testing.assert_allclose(found[name], rows, rtol=1e-5, atol=1e-5)


def test_texts_do_not_know_each_other(llama, prompts):
    """One at a time, all together, in another order, one pooling or three: the same vectors."""
    together = representations(llama, prompts, pooling=POOLINGS, batch_size=5, progress=False)
    for name in POOLINGS:
        alone = representations(llama, prompts, pooling=name, batch_size=1, progress=False)
        np.testing.assert_allclose(together[name], alone, rtol=1e-5, atol=1e-5)
        turned = representations(llama, prompts[::-1], pooling=name, batch_size=2, progress=False)
        np.testing.assert_allclose(turned[::-1], alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        representations(llama, prompts, progress=False, batch_size=5), together["mean"]
    )


@pytest.fixture(scope="module")
def reader():
    return load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)


@pytest.mark.parametrize(
    ("text", "prepend_bos", "start"),
    [("abcd", "auto", 1), ("abcd", False, 0), ("<bos>abcd", "auto", 1), ("<bos>", "auto", 0)],
)
def test_a_bos_in_front_is_not_in_the_mean(reader, text, prepend_bos, start):
    """Whoever put it there; a text that is nothing else keeps it."""
    found = representations(reader, [text], prepend_bos=prepend_bos, progress=False)
    options = {"layers": 3, "positions": None, "prepend_bos": prepend_bos}
    rows = record_activations(reader, [text], "resid", **options)[3].numpy()
    np.testing.assert_allclose(found[0, -1], rows[start:].mean(0), rtol=1e-5, atol=1e-6)


def test_ids_with_the_bos_of_the_tokenizer(reader):
    """Ids say no less than a text."""
    ids = [reader.tokenizer("<bos>abcd", add_special_tokens=False)["input_ids"]]
    np.testing.assert_array_equal(
        representations(reader, ids, progress=False), representations(reader, ["abcd"], progress=False)
    )


def test_depth_0_is_embeddings(llama):
    """The mean of the rows of the embedding."""
    ids = torch.tensor([5, 9, 7])
    rows = llama.original_model.get_input_embeddings().weight[ids].detach()
    found = representations(llama, ids, progress=False)
    np.testing.assert_allclose(found[0, 0], rows.mean(0), rtol=1e-6, atol=1e-7)


def test_a_served_model_is_a_bridge(prompts):
    """The same weights, by either door."""
    model = hugging_face("llama", attention="sdpa")
    served = representations(model, prompts, pooling=POOLINGS, progress=False)
    wanted = representations(bridge("llama"), prompts, pooling=POOLINGS, progress=False)
    for name in POOLINGS:
        np.testing.assert_allclose(served[name], wanted[name], rtol=1e-5, atol=1e-5)


def test_half_precision_is_summed_in_float32(tokens):
    """The mean of what a model in bfloat16 holds is not rounded to bfloat16."""
    model = bridge("llama", dtype=torch.bfloat16)
    found = representations(model, tokens, progress=False)
    rows = record_activations(model, tokens, "resid", layers=3, positions=None)[3].float()
    np.testing.assert_allclose(found[:, -1], rows.reshape(3, 12, -1).mean(1).numpy(), rtol=1e-5, atol=1e-6)


def test_no_trace(llama, tokens):
    before = hook_census(llama)
    representations(llama, tokens, progress=False)
    assert hook_census(llama) == before


def test_cut_texts_are_announced(reader):
    """By the context with a warning; by the user without one."""
    with pytest.warns(PromptWarning, match=r"1 of 2 texts were longer than 64 tokens and were cut there"):
        representations(reader, ["a" * 200, "b"], progress=False)
    representations(reader, ["a" * 200, "b"], max_length=64, progress=False)


def test_broken_rows_are_named(llama, tokens):
    weight = llama.original_model.get_input_embeddings().weight
    ids, kept = tokens.clone(), weight[1].clone()
    ids[2, 4] = 1
    with torch.no_grad():
        weight[1] = torch.inf
    try:
        with pytest.raises(NonFiniteActivationError, match="at depth 0 in prompt 2"):
            representations(llama, ids, progress=False)
    finally:
        with torch.no_grad():
            weight[1] = kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, r"pooling='max': pass 'mean', 'last', 'bos', or several of them"),
        ({"pooling": []}, r"pooling=\[\]: pass 'mean', 'last', 'bos', or several of them"),
        ({"texts": []}, "no prompts were given"),
        ({"batch_size": 0}, "batch_size=0: pass a positive integer or 'auto'"),
    ],
)
def test_refusals(llama, tokens, options, message):
    given = {"texts": tokens, "progress": False, **options}
    with pytest.raises(ValueError, match=message):
        representations(llama, given.pop("texts"), **given)


def test_training_mode_is_refused(llama, tokens):
    llama.train()
    try:
        with pytest.raises(ValueError, match="the model is in training mode"):
            representations(llama, tokens, progress=False)
    finally:
        llama.eval()
