"""Who makes the norm of BOS: do the shares add up, and is what was planted named?"""

from importlib.resources import files

import numpy as np
import pytest
import torch
from jaxtyping import Float
from models import bridge, hugging_face, is_encoder
from probes import stream
from torch import Tensor

from mcr_lens import load_model, measure
from mcr_lens.culprit import norm_sources
from mcr_lens.testing import planted_model, planted_prompts

pytestmark = pytest.mark.once

FAMILIES = ["gpt2", "neox", "llama2", "llama3", "qwen2"]
QUIET = {"progress": False}


def mlp_writes(mlp_out: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """What the MLP writes."""
    return mlp_out


def attention_writes(attn_out: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """What the attention writes."""
    return attn_out


def test_shares_add_up_to_one(any_model, prompts):
    """Embedding, writes and rounding make the row, at every depth, and rounding is next to nothing."""
    if is_encoder(any_model):
        with pytest.raises(ValueError, match=r"is not the sum .* something else.*as in BERT"):
            norm_sources(any_model, prompts, depth=2, **QUIET)
        return
    for depth in (0, 3, any_model.cfg.n_layers):
        ds = norm_sources(any_model, prompts, depth=depth, **QUIET)
        total = ds.embedding_share + ds.write_share.sum(["layer", "part"]) + ds.rounding_share
        np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
        assert abs(ds.rounding_share).max() < 1e-5
        assert ds.sizes["layer"] == depth == int(ds.depth)


def test_shares_are_those_of_the_tensors(any_model, prompts):
    """⟨w, x⟩/‖x‖² by the law of cosines, from the tensors themselves, at another position too."""
    if is_encoder(any_model):
        pytest.skip("refused")
    reads = {"resid": stream, "attention": attention_writes, "mlp": mlp_writes}
    for position in (0, 2):
        ds = norm_sources(any_model, prompts, depth=3, position=position, **QUIET)
        for i in (1, 2):
            raw = measure(any_model, prompts[i], reads, **QUIET).isel(prompt=0, pos=position).astype(float)
            x = raw.resid.isel(depth=3)
            for part in ("attention", "mlp"):
                w = raw[part].isel(layer=slice(0, 3))
                size, rest, write = ((v**2).sum("d_model") for v in (x, x - w, w))
                wanted = (size - rest + write) / (2 * size)
                np.testing.assert_allclose(ds.write_share.sel(part=part)[i], wanted, atol=1e-5)
            np.testing.assert_allclose(ds.row_norm[i], float((x**2).sum() ** 0.5), rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_planted_block_is_named(family):
    """The MLP of block 1 writes nearly all of the row, at a depth that is found without being told."""
    planted = planted_model("massive_sinks", family)
    ds = norm_sources(load_model(planted.model, verbose=False), planted_prompts(), **QUIET)
    assert int(ds.depth) in planted.truth.massive[planted.bos]
    share = ds.write_share.mean("prompt")
    culprit = share.stack(write=["layer", "part"]).idxmax().item()
    assert culprit == (1, "mlp") and float(share.max()) > 0.95
    assert (ds.massive_activation_ratio > 50).all()


def test_what_is_taken_out_again_is_nobodys_share():
    """Behind block 4, which takes back what block 1 wrote, the two shares cancel and the row is short."""
    planted = planted_model("massive", "llama3")
    assert (planted.plants[0].block, planted.plants[0].removed_by) == (1, 4)
    model = load_model(planted.model, verbose=False)
    middle, last = (norm_sources(model, planted_prompts(), depth=depth, **QUIET) for depth in (4, 6))
    assert (middle.write_share.sel(part="mlp", layer=1) > 0.95).all()
    share = last.write_share.sel(part="mlp")
    assert (share.sel(layer=1) * share.sel(layer=4) < 0).all()
    np.testing.assert_allclose(share.sel(layer=1), -share.sel(layer=4), atol=0.01)
    assert (middle.row_norm > 50 * last.row_norm).all()


def test_the_embedding_alone():
    """At depth 0 nothing was written yet."""
    ds = norm_sources(bridge("gpt2"), torch.arange(3, 12), depth=0, **QUIET)
    np.testing.assert_allclose(ds.embedding_share, 1, atol=1e-12)
    assert ds.write_share.shape == (1, 0, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_lie(dtype, prompts):
    """What rounding loses is shown, and is not taken for a model whose writes do not add up."""
    for family in ("gpt2", "gemma2", "llama3"):
        ds = norm_sources(bridge(family, dtype=dtype), prompts, **QUIET)
        total = ds.embedding_share + ds.write_share.sum(["layer", "part"]) + ds.rounding_share
        np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
        assert 0 < abs(ds.rounding_share).max() < 0.02


def test_a_factor_behind_the_write_is_noticed(prompts):
    """A block that halves the stream behind what it adds leaves no shares, and is told so."""
    model = load_model(hugging_face("llama3"), verbose=False)

    def halved(module, given, out):
        return (out[0] / 2, *out[1:]) if isinstance(out, tuple) else out / 2

    model.original_model.model.layers[1].register_forward_hook(halved)
    with pytest.raises(ValueError, match=r"not the sum of the embedding and of what the blocks write"):
        norm_sources(model, prompts, depth=4, **QUIET)


def test_the_result_is_labelled(llama, prompts):
    """Every variable says what it is; prompts and provenance come along."""
    ds = norm_sources(llama, prompts, **QUIET)
    for variable in ds.data_vars.values():
        assert {"units", "long_name", "source"} <= set(variable.attrs)
    assert ds.attrs["schema"] and ds.attrs["model"]
    assert ds.n_tokens.values.tolist() == [12, 5, 17, 12, 9]
    assert ds.part.values.tolist() == ["attention", "mlp"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 5}, r"depth=5: the model has depths 0\.\.4"),
        ({"depth": True}, r"depth=True: the model has depths 0\.\.4"),
        ({"depth": -1}, r"depth=-1: the model has depths"),
        ({"position": 7}, "position=7, but the shortest prompt has 5 tokens"),
    ],
)
def test_nonsense_is_refused(llama, prompts, options, message):
    """In one sentence."""
    with pytest.raises(ValueError, match=message):
        norm_sources(llama, prompts, **options, **QUIET)


@pytest.mark.filterwarnings("ignore:.*have a single token:UserWarning")
def test_a_single_token_has_no_ratio(llama):
    """The depth cannot be found by a ratio to other rows that are not there, but it can be told."""
    with pytest.raises(ValueError, match=r"every prompt has a single token.*pass longer prompts, or depth="):
        norm_sources(llama, [[5], [6]], **QUIET)
    ds = norm_sources(llama, [[5], [6]], depth=2, **QUIET)
    assert np.isfinite(ds.write_share).all() and ds.massive_activation_ratio.isnull().all()


@pytest.mark.demo
def test_the_demo_model():
    """The norm of its BOS is made by writes of MLPs, and shares add up there too."""
    text = (files("mcr_lens") / "demo" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    ds = norm_sources(load_model("demo", verbose=False), [t for t in text if t][:8], **QUIET)
    by_part = ds.write_share.sum("layer").mean("prompt")
    assert float(by_part.sel(part="mlp")) > 0.5 > float(ds.embedding_share.mean())
