"""Does an edit at one layer act there and downstream, and nowhere else?"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from jaxtyping import Float
from models import hugging_face, is_encoder
from probes import attention, stream
from torch import Tensor

from mcr_lens import IndirectEditWarning, measure, zero_ablation, zero_bos_mlp

LAYER = 1


def writes(mlp_out: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """What the MLP writes."""
    return mlp_out


def attention_writes(attn_out: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """What the attention writes."""
    return attn_out


RAW = {"stream": stream, "attention": attention, "writes": writes, "attention_writes": attention_writes}


def measure_edited(model, tokens, edit):
    """Measured with an edit, which on BERT comes with the warning that it goes through a norm."""
    expected = pytest.warns(IndirectEditWarning) if is_encoder(model) else nullcontext()
    with expected:
        return measure(model, tokens, RAW, interventions=[edit], progress=False)


def block_output(model, layer, stream, attention, mlp) -> np.ndarray:
    """What a block makes of the stream it gets and of what its two halves write: their sum.

    Except on BERT, where both additions are normalised, here by the LayerNorms of an untouched model.
    """
    if not is_encoder(model):
        return (stream + attention + mlp).values
    block = hugging_face("bert").bert.encoder.layer[layer]
    stream, attention, mlp = (torch.tensor(part.values) for part in (stream, attention, mlp))
    with torch.no_grad():
        return block.output.LayerNorm(block.attention.output.LayerNorm(stream + attention) + mlp).numpy()


@pytest.fixture
def runs(any_model, tokens):
    """The same prompts without and with the MLP's write at BOS in layer 1."""
    plain = measure(any_model, tokens, RAW, progress=False)
    return plain, measure_edited(any_model, tokens, zero_bos_mlp(LAYER))


def test_nothing_changes_upstream(runs):
    """Depths up to l and patterns up to l are bitwise unchanged; so is what those layers write."""
    plain, edited = runs
    up_to = slice(0, LAYER)
    assert np.array_equal(plain.stream.sel(depth=up_to), edited.stream.sel(depth=up_to))
    assert np.array_equal(plain.attention.sel(layer=up_to), edited.attention.sel(layer=up_to))
    assert np.array_equal(plain.attention_writes.sel(layer=up_to), edited.attention_writes.sel(layer=up_to))
    assert np.array_equal(plain.writes.sel(layer=0), edited.writes.sel(layer=0))


def test_everything_changes_downstream(runs):
    """Every later depth and every later pattern is different."""
    plain, edited = runs
    for depth in range(LAYER + 1, plain.sizes["depth"]):
        assert not np.allclose(plain.stream.sel(depth=depth), edited.stream.sel(depth=depth), atol=1e-4)
    for layer in range(LAYER + 1, plain.sizes["layer"]):
        assert not np.allclose(plain.attention.sel(layer=layer), edited.attention.sel(layer=layer), atol=1e-5)


def test_the_edit_is_the_stream_without_that_write(any_model, runs):
    """At depth l + 1 the BOS row is the old one minus MLP(x)₀, and no other row has moved."""
    plain, edited = runs
    before, after = plain.stream.sel(depth=LAYER + 1), edited.stream.sel(depth=LAYER + 1)
    if is_encoder(any_model):
        enters, attention = plain.stream.sel(depth=LAYER), plain.attention_writes.sel(layer=LAYER)
        without = block_output(any_model, LAYER, enters, attention, edited.writes.sel(layer=LAYER))[:, 0]
    else:
        without = before.isel(pos=0) - plain.writes.sel(layer=LAYER).isel(pos=0)
    np.testing.assert_allclose(after.isel(pos=0), without, atol=1e-5)
    assert np.array_equal(before.isel(pos=slice(1, None)), after.isel(pos=slice(1, None)))


def test_metrics_see_the_edited_write(runs):
    """Edits come first, readers after: the write at BOS reads zero, the others are untouched."""
    plain, edited = runs
    written = edited.writes.sel(layer=LAYER)
    assert not written.isel(pos=0).any()
    later = slice(1, None)
    assert np.array_equal(written.isel(pos=later), plain.writes.sel(layer=LAYER).isel(pos=later))


def test_the_stream_is_the_sum_of_the_writes(any_model, tokens):
    """x at depth l + 1 is x at depth l plus what attention and MLP of block l write (on BERT, normalised)."""
    ds = measure(any_model, tokens, RAW, progress=False)
    for layer in range(any_model.cfg.n_layers):
        writes = ds.attention_writes.sel(layer=layer), ds.writes.sel(layer=layer)
        wanted = block_output(any_model, layer, ds.stream.sel(depth=layer), *writes)
        np.testing.assert_allclose(ds.stream.sel(depth=layer + 1), wanted, atol=1e-5)


def test_a_later_token_changes_no_earlier_row(any_model, tokens):
    """Causality of the model as measured: the last token is seen by nobody before it, or, on BERT, by all."""
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 100 + 3
    one, two = (measure(any_model, t, RAW, progress=False).stream for t in (tokens, changed))
    if is_encoder(any_model):
        embedded, first = (slice(0, 1), slice(1, 2))
        np.testing.assert_array_equal(one[:, embedded, :-1], two[:, embedded, :-1])
        assert (abs(one - two)[:, first].max("d_model") > 1e-4).all()
    else:
        np.testing.assert_allclose(one.isel(pos=slice(0, -1)), two.isel(pos=slice(0, -1)), atol=1e-6)
    assert not np.allclose(one.isel(pos=-1), two.isel(pos=-1), atol=1e-3)


def test_attention_ablation_acts_on_the_attention(any_model, tokens):
    """Zeroing `attn_out` leaves the block's own pattern and takes its write away."""
    plain = measure(any_model, tokens, RAW, progress=False)
    edited = measure_edited(any_model, tokens, zero_ablation("attn_out", layers=LAYER, positions=None))
    assert np.array_equal(plain.attention.sel(layer=LAYER), edited.attention.sel(layer=LAYER))
    assert not edited.attention_writes.sel(layer=LAYER).any()
    writes = edited.attention_writes.sel(layer=LAYER), edited.writes.sel(layer=LAYER)
    after = block_output(any_model, LAYER, edited.stream.sel(depth=LAYER), *writes)
    np.testing.assert_allclose(edited.stream.sel(depth=LAYER + 1), after, atol=1e-5)


def test_without_interventions_nothing_is_edited(llama, tokens):
    """An edit is gone after its run."""
    plain = measure(llama, tokens, RAW, progress=False)
    measure(llama, tokens, RAW, interventions=[zero_bos_mlp([0, 1, 2, 3])], progress=False)
    again = measure(llama, tokens, RAW, progress=False)
    assert np.array_equal(plain.stream, again.stream)
