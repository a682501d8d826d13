"""Does an edit at one layer act there and downstream, and nowhere else?"""

import numpy as np
import pytest
from jaxtyping import Float
from probes import attention, stream
from torch import Tensor

from mcr_lens import measure, zero_ablation, zero_bos_mlp

LAYER = 1


def writes(mlp_out: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """What the MLP writes."""
    return mlp_out


def attention_writes(attn_out: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """What the attention writes."""
    return attn_out


RAW = {"stream": stream, "attention": attention, "writes": writes, "attention_writes": attention_writes}


@pytest.fixture
def runs(any_model, tokens):
    """The same prompts without and with the MLP's write at BOS in layer 1."""
    plain = measure(any_model, tokens, RAW, progress=False)
    edited = measure(any_model, tokens, RAW, interventions=[zero_bos_mlp(LAYER)], progress=False)
    return plain, edited


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


def test_the_edit_is_the_stream_without_that_write(runs):
    """At depth l + 1 the BOS row is the old one minus MLP(x)₀, and no other row has moved."""
    plain, edited = runs
    before, after = plain.stream.sel(depth=LAYER + 1), edited.stream.sel(depth=LAYER + 1)
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
    """x at depth l + 1 is x at depth l plus what attention and MLP of block l write."""
    ds = measure(any_model, tokens, RAW, progress=False)
    for layer in range(any_model.cfg.n_layers):
        total = ds.stream.sel(depth=layer) + ds.attention_writes.sel(layer=layer) + ds.writes.sel(layer=layer)
        np.testing.assert_allclose(ds.stream.sel(depth=layer + 1), total, atol=1e-5)


def test_a_later_token_changes_no_earlier_row(any_model, tokens):
    """Causality of the model as measured: the last token is seen by nobody before it."""
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 100 + 3
    one, two = (measure(any_model, t, RAW, progress=False) for t in (tokens, changed))
    np.testing.assert_allclose(
        one.stream.isel(pos=slice(0, -1)), two.stream.isel(pos=slice(0, -1)), atol=1e-6
    )
    assert not np.allclose(one.stream.isel(pos=-1), two.stream.isel(pos=-1), atol=1e-3)


def test_attention_ablation_acts_on_the_attention(any_model, tokens):
    """Zeroing `attn_out` leaves the block's own pattern and takes its write away."""
    edit = zero_ablation("attn_out", layers=LAYER, positions=None)
    plain = measure(any_model, tokens, RAW, progress=False)
    edited = measure(any_model, tokens, RAW, interventions=[edit], progress=False)
    assert np.array_equal(plain.attention.sel(layer=LAYER), edited.attention.sel(layer=LAYER))
    assert not edited.attention_writes.sel(layer=LAYER).any()
    after = edited.stream.sel(depth=LAYER) + edited.writes.sel(layer=LAYER)
    np.testing.assert_allclose(edited.stream.sel(depth=LAYER + 1), after, atol=1e-5)


def test_without_interventions_nothing_is_edited(llama, tokens):
    """An edit is gone after its run."""
    plain = measure(llama, tokens, RAW, progress=False)
    measure(llama, tokens, RAW, interventions=[zero_bos_mlp([0, 1, 2, 3])], progress=False)
    again = measure(llama, tokens, RAW, progress=False)
    assert np.array_equal(plain.stream, again.stream)
