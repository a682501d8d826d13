"""Does measuring at the hooks give what the metrics give on cached tensors, whatever the batches?"""

import numpy as np
import pytest
import torch
import xarray as xr
from models import GENERATION, bridge, hooked_transformer, hugging_face
from pure import evaluate
from traces import cached_inputs

import mcr_lens
from mcr_lens import list_metrics, measure, passes

EVERYTHING = "all"


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    """Bit for bit, labels included; only the time of day may differ."""
    drop = {"created"}
    one, other = (d.assign_attrs({k: v for k, v in d.attrs.items() if k not in drop}) for d in (one, other))
    one.attrs, other.attrs = ({k: v for k, v in d.attrs.items() if k not in drop} for d in (one, other))
    xr.testing.assert_identical(one, other)


def test_stream_equals_cache(any_model, tokens):
    """The value at the hook is the pure function on `run_with_cache` tensors, for every metric."""
    ds = measure(any_model, tokens, EVERYTHING, progress=False)
    given = cached_inputs(any_model, tokens)
    for metric in list_metrics():
        wanted = [evaluate(metric, tensors).cpu().numpy() for tensors in given[metric.site]]
        wanted = np.stack(wanted, axis=1) if metric.site != "pass" else wanted[0]
        np.testing.assert_allclose(ds[metric.name].values, wanted, rtol=1e-5, atol=1e-6, err_msg=metric.name)


def test_axes_are_the_declared_ones(any_model, tokens):
    """Axes, sizes and labels of every variable follow from its declaration."""
    ds = measure(any_model, tokens, EVERYTHING, progress=False)
    cfg = any_model.cfg
    sizes = {
        "prompt": len(tokens), "depth": cfg.n_layers + 1, "layer": cfg.n_layers, "head": cfg.n_heads,
        "top": 3, "rank": 8,
    }  # fmt: skip
    vocabulary_ids = {f"{m.name}_id" for m in list_metrics() if m.units == "token"}
    assert set(ds.data_vars) == {m.name for m in list_metrics()} | vocabulary_ids
    for metric in list_metrics():
        array = ds[metric.name]
        assert array.dims == metric.axes
        assert array.shape == tuple(sizes[axis] for axis in metric.axes)
        assert array.attrs["units"] == metric.units and array.attrs["source"] == metric.source
    for axis in ("prompt", "depth", "layer", "head"):
        assert ds[axis].values.tolist() == list(range(sizes[axis]))


@pytest.mark.parametrize("position", [1, 4])
def test_stream_equals_cache_at_another_position(tokens, position, llama):
    """The position travels to every metric that has one."""
    ds = measure(llama, tokens, EVERYTHING, position=position, progress=False)
    given = cached_inputs(llama, tokens)
    for metric in list_metrics():
        wanted = [evaluate(metric, t, position=position).numpy() for t in given[metric.site]]
        wanted = np.stack(wanted, axis=1) if metric.site != "pass" else wanted[0]
        np.testing.assert_allclose(ds[metric.name].values, wanted, rtol=1e-5, atol=1e-6, err_msg=metric.name)
    assert ds.attrs["position"] == position
    assert ds.position_token.values.tolist() == [str(int(row[position])) for row in tokens]


def same_as_alone(model, prompts, batch_size) -> None:
    """Measured together in batches and measured one by one: the same numbers."""
    together = measure(model, prompts, EVERYTHING, batch_size=batch_size, progress=False)
    alone = mcr_lens.merge(*(measure(model, p, EVERYTHING, progress=False) for p in prompts))
    assert together.n_tokens.values.tolist() == [len(p) for p in prompts]
    assert together.prompt_hash.values.tolist() == alone.prompt_hash.values.tolist()
    assert set(together.data_vars) == set(alone.data_vars)
    for name in together.data_vars:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_mixed_lengths_equal_one_at_a_time(any_model, prompts):
    """Padding reaches no metric: a batch of mixed lengths gives the numbers of every prompt alone."""
    same_as_alone(any_model, prompts, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 8, "auto"])
def test_mixed_lengths_in_batches_of_any_size(llama, prompts, batch_size):
    """So does every other way to cut the prompts into batches."""
    same_as_alone(llama, prompts, batch_size)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_split_and_merged_is_one_run(llama, batch_size):
    """Measured in two halves and merged: bit for bit the result of one run."""
    tokens = torch.randint(3, 128, (6, 10))
    whole = measure(llama, tokens, EVERYTHING, batch_size=batch_size, progress=False)
    parts = [
        measure(llama, half, EVERYTHING, batch_size=batch_size, progress=False)
        for half in (tokens[:2], tokens[2:])
    ]
    before = [p.copy(deep=True) for p in parts]
    same(mcr_lens.merge(*parts), whole)
    same(mcr_lens.merge(mcr_lens.merge(parts[0]), parts[1]), whole)
    for part, copy in zip(parts, before, strict=True):
        xr.testing.assert_identical(part, copy)


def test_merging_with_nothing_changes_nothing(llama, tokens):
    """An empty result is the identity of merge, on either side."""
    ds = measure(llama, tokens, EVERYTHING, progress=False)
    empty = ds.isel(prompt=[])
    for merged in (mcr_lens.merge(ds, empty), mcr_lens.merge(empty, ds), mcr_lens.merge(ds)):
        xr.testing.assert_identical(merged, ds)
    assert mcr_lens.merge(empty, empty).sizes["prompt"] == 0


def test_measuring_twice_gives_the_same_bits(any_model, prompts):
    """Nothing is random, and the first run leaves nothing behind that the second would see."""
    first = measure(any_model, prompts, EVERYTHING, progress=False)
    same(measure(any_model, prompts, EVERYTHING, progress=False), first)


@pytest.mark.parametrize("family", ["llama3", "gemma3", "gpt_oss"])
def test_how_much_may_wait_changes_nothing(monkeypatch, prompts, family):
    """Small steps run for all layers together, or for each as soon as it is through, with windows or not."""
    model = bridge(family)
    together = measure(model, prompts, EVERYTHING, progress=False)
    settled, settle = [], passes.Site.settle_together
    monkeypatch.setattr(
        passes.Site, "settle_together", lambda sites: settled.append(len(sites)) or settle(sites)
    )
    for held in (0, 5000):
        monkeypatch.setattr(passes, "HELD", held)
        same(measure(model, prompts, EVERYTHING, progress=False), together)
    assert settled.count(1) >= model.cfg.n_layers


def test_one_metric_alone_is_the_same_as_among_all(llama, tokens):
    """Which other metrics are computed makes no difference."""
    everything = measure(llama, tokens, EVERYTHING, progress=False)
    for metric in list_metrics():
        alone = measure(llama, tokens, [metric.name], progress=False)
        assert set(alone.data_vars) - {f"{metric.name}_id"} == {metric.name}
        xr.testing.assert_identical(alone[metric.name], everything[metric.name])


def test_half_precision_model(tokens):
    """A bfloat16 model is measured in float32 or better, and says that it is bfloat16."""
    model = mcr_lens.load_model(hugging_face("llama").bfloat16(), verbose=False)
    ds = measure(model, tokens, EVERYTHING, progress=False)
    assert ds.attrs["dtype"] == "bfloat16"
    for metric in list_metrics():
        assert ds[metric.name].dtype in (np.float32, np.float64, np.int64), metric.name
        assert np.isfinite(ds[metric.name]).all(), metric.name


@pytest.mark.skipif(GENERATION >= 4, reason="TransformerLens 4 has no HookedTransformer")
def test_hooked_transformer_with_grouped_heads(tokens):
    """HookedTransformer's key-value heads are repeated for the query heads that use them."""
    model = hooked_transformer(n_key_value_heads=2, gated_mlp=True, act_fn="silu", normalization_type="RMS")
    ds = measure(model, tokens, progress=False)
    drain = ds.value_drain
    assert drain.sizes["head"] == 4
    np.testing.assert_array_equal(drain.isel(head=[0, 2]), drain.isel(head=[1, 3]))
    assert not np.allclose(drain.isel(head=0), drain.isel(head=2))


def test_key_value_heads_are_repeated_in_order(llama, tokens):
    """Query heads 0 and 1 use key-value head 0, heads 2 and 3 use head 1."""
    drain = measure(llama, tokens, ["value_drain"], progress=False).value_drain
    np.testing.assert_array_equal(drain.isel(head=[0, 2]), drain.isel(head=[1, 3]))
    assert not np.allclose(drain.isel(head=0), drain.isel(head=2))


def test_sliding_windows_count_their_own_keys():
    """A uniform head inside a sliding window has mixing score 1."""
    model = bridge("gemma2")
    with torch.no_grad():
        for layer in model.original_model.model.layers:
            weight = layer.self_attn.q_proj
            getattr(weight, "original_component", weight).weight.zero_()
    score = measure(model, torch.randint(3, 128, (2, 12)), ["mixing_score"], progress=False).mixing_score
    np.testing.assert_allclose(score, 1.0, atol=1e-5)
