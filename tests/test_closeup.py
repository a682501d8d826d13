"""Is a close-up what `measure` sums up, prompt by prompt, and what is refused?"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from models import bridge, hugging_face, is_encoder, tokenizer
from traces import hook_census

from mcr_lens import (
    HookDidNotFireError,
    IndirectEditWarning,
    NonFiniteActivationError,
    PatternNotComputedError,
    ProcessedWeightsWarning,
    PromptWarning,
    load_model,
    measure,
    resample_ablation,
    scale,
    zero_ablation,
    zero_bos_mlp,
)
from mcr_lens.attention_views import AttentionView
from mcr_lens.closeup import attention_view, close_up
from mcr_lens.results import save
from mcr_lens.schema import ResultSchemaError

HEADS = [(layer, head) for layer in range(4) for head in range(4)]
LAYER = 1


def edited(model) -> Any:
    """BERT says that an edit there goes through a norm."""
    return pytest.warns(IndirectEditWarning) if is_encoder(model) else nullcontext()


def by_head(ds: xr.Dataset, variable: str) -> list[np.ndarray]:
    """A variable of a result of one prompt, head by head, in the order of HEADS."""
    return [ds[variable].values[0, layer, head] for layer, head in HEADS]


@pytest.fixture
def prompt(tokens) -> torch.Tensor:
    """Twelve token ids."""
    return tokens[0]


def test_is_what_measure_sums_up(any_model, prompt):
    """‖x₀‖ is the BOS norm, column 0 the sink score, the diagonal the identity score, a row its mass."""
    seen = close_up(any_model, prompt, HEADS)
    names = ["bos_norm", "other_norm_max", "sink_score", "sink_queries", "identity_score", "row_mass"]
    ds = measure(any_model, prompt, names, progress=False)
    assert np.array_equal(seen.token_norm.sel(condition="clean", position=0), ds.bos_norm[0])
    assert np.array_equal(seen.token_norm[0, :, 1:].max("position"), ds.other_norm_max[0])
    pattern = seen.pattern.sel(condition="clean")
    queries = [ds.sink_queries.values[0, layer] for layer, _ in HEADS]
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(pattern[:, :, 0].sum("query") / queries, by_head(ds, "sink_score"), **close)
    np.testing.assert_allclose(pattern.sum("key").mean("query"), by_head(ds, "row_mass"), **close)
    for place, identity in enumerate(by_head(ds, "identity_score")):
        own = np.diagonal(pattern[place])[1:]
        np.testing.assert_allclose(own.mean(), identity, **close)
    assert pattern.dtype == np.float32 and (pattern.values >= 0).all()


def test_nothing_changes_upstream(any_model, prompt):
    """An edit of block l leaves depths and patterns up to l bitwise as they are; later ones change."""
    with edited(any_model):
        seen = close_up(any_model, prompt, HEADS, conditions={"cut": zero_bos_mlp(LAYER)})
    clean, cut = seen.sel(condition="clean"), seen.sel(condition="cut")
    assert np.array_equal(clean.token_norm[: LAYER + 1], cut.token_norm[: LAYER + 1])
    assert not np.isclose(clean.token_norm[LAYER + 1 :, 0], cut.token_norm[LAYER + 1 :, 0], rtol=1e-6).any()
    up_to = seen.layer.values <= LAYER
    assert np.array_equal(clean.pattern[up_to], cut.pattern[up_to])
    for place in np.flatnonzero(~up_to):
        assert not np.allclose(clean.pattern[place], cut.pattern[place], atol=1e-5)


def test_clean_is_the_model_as_it_is(any_model, prompt):
    """Also beside an edit, and also where it was asked for by name, later in the map."""
    alone = close_up(any_model, prompt, HEADS)
    with edited(any_model):
        beside = close_up(any_model, prompt, HEADS, conditions={"cut": zero_bos_mlp(0), "clean": []})
    assert beside.condition.values.tolist() == ["clean", "cut"]
    for name in ("token_norm", "pattern"):
        assert np.array_equal(alone[name][0], beside[name].sel(condition="clean"))


def test_edits_are_seen_as_measure_sees_them(llama, prompt):
    """Readers stand behind the edits; what is drawn by prompt is drawn as for the first prompt."""
    edits = {
        "doubled": scale("resid", 2.0, layers=1, positions=None),
        "several": [zero_ablation("z", layers=0, heads=1, positions=None), zero_bos_mlp(2)],
        "drawn": resample_ablation("mlp_out", layers=0, prompts=[[5, 6, 7], [9, 8, 3], [20, 30, 40]]),
    }
    seen = close_up(llama, prompt, [(3, 2)], conditions=edits)
    np.testing.assert_allclose(
        seen.token_norm.sel(condition="doubled", depth=2), 2 * seen.token_norm[0, 2], rtol=1e-6
    )
    for name, edit in edits.items():
        made = edit if isinstance(edit, list) else [edit]
        ds = measure(llama, prompt, ["bos_norm", "sink_score"], interventions=made, progress=False)
        one = seen.sel(condition=name)
        assert np.array_equal(one.token_norm[:, 0], ds.bos_norm[0])
        np.testing.assert_allclose(
            one.pattern[0, :, 0].mean(), ds.sink_score[0].sel(layer=3, head=2), rtol=1e-5
        )
    wanted = {"clean": [], **{name: [e.describe() for e in edits_of(edit)] for name, edit in edits.items()}}
    assert json.loads(seen.attrs["interventions"]) == wanted


def edits_of(given) -> list:
    return given if isinstance(given, list) else [given]


def test_the_numbers_of_the_cache(llama, prompt):
    """Every row and every pattern, against TransformerLens' own cache; heads in the order they came."""
    heads = [(3, 1), (0, 2), (3, 0)]
    seen = close_up(llama, prompt, heads)
    with torch.no_grad():
        cache = llama.run_with_cache(prompt[None])[1]
    rows = [cache["blocks.0.hook_resid_pre"], *(cache[f"blocks.{i}.hook_resid_post"] for i in range(4))]
    norms = torch.stack([row[0].norm(dim=-1) for row in rows])
    np.testing.assert_allclose(seen.token_norm[0], norms, rtol=1e-6)
    assert list(zip(seen.layer.values, seen["head"].values, strict=True)) == heads
    for place, (layer, head) in enumerate(heads):
        assert np.array_equal(seen.pattern[0, place], cache[f"blocks.{layer}.attn.hook_pattern"][0, head])


def test_layout(llama, prompt):
    """Axes, coordinates, and what every variable says of itself; no patterns where no heads were chosen."""
    seen = close_up(llama, prompt, [(0, 1)], conditions={"cut": zero_bos_mlp(0)})
    assert seen.token_norm.dims == ("condition", "depth", "position")
    assert seen.pattern.dims == ("condition", "shown", "query", "key")
    assert dict(seen.sizes) == {
        "condition": 2, "depth": 5, "position": 12, "shown": 1, "query": 12, "key": 12
    }  # fmt: skip
    for name in seen.data_vars:
        assert {"units", "long_name", "source"} <= set(seen[name].attrs)
    assert seen.attrs["n_layers"] == 4 and seen.attrs["n_tokens"] == seen.attrs["shown_tokens"] == 12
    assert seen.attrs["attention"] == "causal" and seen.attrs["prompt"] == ""
    assert seen.token.values.tolist() == [str(i) for i in prompt.tolist()]
    bare = close_up(llama, prompt)
    assert set(bare.data_vars) == {"token_norm"} and set(bare.dims) == {"condition", "depth", "position"}


def test_text():
    """With its BOS, spelt as the tokenizer spells it; a row of ids is decoded."""
    model = load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    seen = close_up(model, "abc")
    assert seen.token.values.tolist() == ["<bos>", "a", "b", "c"] and seen.attrs["prompt"] == "abc"
    without = close_up(model, "abc", prepend_bos=False)
    assert without.token.values.tolist() == ["a", "b", "c"]
    ids = model.tokenizer("abc", add_special_tokens=False)["input_ids"]
    given = close_up(model, ids)
    assert given.attrs["prompt"] == "abc" and np.array_equal(given.token_norm, without.token_norm)


@pytest.mark.parametrize("kind", ["ids", "text"])
def test_a_longer_prompt_is_cut_and_says_so(kind):
    """The first tokens of a causal model have the same numbers."""
    model = load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    text = "abcdefghij" * 8  # with its BOS 81 tokens, more than the context of 64
    ids = [0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    prompt = text if kind == "text" else ids
    cut = "^the prompt has 81 tokens and was cut to the first 5; pass max_tokens=64 to see more$"
    with pytest.warns(PromptWarning, match=cut):
        short = close_up(model, prompt, [(2, 1)], max_tokens=5)
    with pytest.warns(PromptWarning, match="cut to the first 64, all that the model takes$"):
        long = close_up(model, prompt, [(2, 1)], max_tokens=1000)
    assert short.attrs["n_tokens"] == long.attrs["n_tokens"] == 81
    assert short.attrs["shown_tokens"] == 5 and long.attrs["shown_tokens"] == 64
    np.testing.assert_allclose(short.token_norm, long.token_norm[..., :5], rtol=1e-5)
    np.testing.assert_allclose(short.pattern, long.pattern[..., :5, :5], rtol=1e-4, atol=1e-6)
    assert short.token.values.tolist() == ["<bos>", "a", "b", "c", "d"]


def test_a_cut_changes_an_encoder(prompt):
    """And the warning says so."""
    model = bridge("bert")
    with pytest.warns(PromptWarning, match="to see more. It is an encoder: with the rest, the numbers would"):
        short = close_up(model, prompt, [(0, 0)], max_tokens=6)
    long = close_up(model, prompt, [(0, 0)])
    assert not np.allclose(short.token_norm[0, -1], long.token_norm[0, -1, :6], rtol=1e-3)
    assert short.attrs["attention"] == "bidirectional" and (long.pattern.values > 0).all()


def test_processed_weights_are_named(prompt):
    """Norms of folded and centred weights are not the trained model's."""
    model = bridge("gpt2")
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.warns(ProcessedWeightsWarning, match="norms are not the trained model"):
        seen = close_up(model, prompt)
    assert seen.attrs["processing"].startswith("processed")


def test_one_token_and_half_precision(prompt):
    """A single token sees itself alone; numbers of a bfloat16 model are float32."""
    model = bridge("llama", dtype=torch.bfloat16)
    seen = close_up(model, prompt[:1], [(1, 1)])
    assert seen.pattern.values.tolist() == [[[[1.0]]]]
    assert seen.token_norm.dtype == seen.pattern.dtype == np.float32


def test_leaves_no_trace(llama, tokens):
    """Hooks are gone, also after an error in the model; the logits are the same."""
    before, clean = hook_census(llama), llama(tokens)
    close_up(llama, tokens[0], HEADS, conditions={"cut": zero_bos_mlp(0)})
    assert hook_census(llama) == before and torch.equal(llama(tokens), clean)

    def boom(*_):
        raise KeyboardInterrupt

    handle = llama.blocks[2].register_forward_pre_hook(boom)
    try:
        with pytest.raises(KeyboardInterrupt):
            close_up(llama, tokens[0], HEADS, conditions={"cut": zero_bos_mlp(0)})
    finally:
        handle.remove()
    assert hook_census(llama) == before and torch.equal(llama(tokens), clean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [(4, 0)]}, r"layer 4 does not exist: the model has layers 0\.\.3"),
        ({"heads": [(0, 4)]}, r"head 4 does not exist: the model has heads 0\.\.3"),
        ({"heads": [(0, 1), (2, 2), (0, 1)]}, r"heads: \(0, 1\) comes twice; name each head once"),
        ({"heads": []}, r"heads=\[\]: pass pairs \(layer, head\) counted from 0, such as"),
        ({"heads": (0, 1)}, r"heads=\(0, 1\): pass pairs"),
        ({"heads": [(0, -1)]}, "pass pairs"),
        ({"heads": [(0, 1.0)]}, "pass pairs"),
        ({"heads": "all"}, "heads='all': pass pairs"),
        ({"conditions": {"clean": zero_bos_mlp(0)}}, "condition 'clean' is the model as it is; give the"),
        ({"conditions": {}}, r"conditions: got an empty map; pass a map such as"),
        ({"conditions": {"cut": zero_bos_mlp(9)}}, r"layer 9 does not exist"),
        ({"conditions": {"cut": "zero"}}, "condition 'cut' holds a str, not an intervention"),
        ({"max_tokens": 0}, "max_tokens=0: pass a positive number of tokens"),
        ({"max_tokens": 2.5}, "max_tokens=2.5: pass a positive number of tokens"),
        ({"prompt": []}, "no prompts were given"),
        ({"prompt": [[5, 6], [7, 8]]}, "got 2 prompts, and a close-up shows one; pass one of them"),
        ({"prompt": [5, 500]}, "token id 500, outside the vocabulary"),
        ({"prepend_bos": "yes"}, "prepend_bos='yes'"),
    ],
)
def test_refusals(llama, prompt, options, message):
    """One clear sentence, before any run."""
    given = {"prompt": prompt, **options}
    with pytest.raises(ValueError, match=message) as seen:
        close_up(llama, given.pop("prompt"), **given)
    assert "\n" not in str(seen.value)


def test_what_is_no_model(prompt):
    with pytest.raises(TypeError, match="expected a TransformerLens model, got LlamaForCausalLM"):
        close_up(hugging_face("llama"), prompt)


def test_training_mode(prompt):
    model = bridge("llama").train()
    with pytest.raises(ValueError, match=r"training mode, so dropout would be shown; call model\.eval\(\)"):
        close_up(model, prompt)


def test_patterns_that_are_never_computed(prompt):
    """Under sdpa there are none, and that is found out first; norms can be had all the same."""
    model = load_model(hugging_face("opt", attention="sdpa"), verbose=False)
    model.original_model.set_attn_implementation("sdpa")
    with pytest.raises(PatternNotComputedError, match="'sdpa' attention, which never computes"):
        close_up(model, prompt, [(0, 0)])
    assert np.isfinite(close_up(model, prompt).token_norm).all()


def test_what_is_never_reached(llama, prompt, monkeypatch):
    monkeypatch.setattr(type(llama), "forward", lambda *_, **__: None)
    with pytest.raises(HookDidNotFireError, match=r"never reaches 'blocks\.0\.hook_"):
        close_up(llama, prompt)


def test_infinity_is_named(prompt):
    """Which depth, and under which condition."""
    model = bridge("llama")
    edit = scale("mlp_out", 1e38, layers=2, positions=1)
    with pytest.raises(NonFiniteActivationError, match="infinite from depth 3 on in condition 'huge'; run"):
        close_up(model, prompt, conditions={"huge": [edit, scale("resid", 1e38, layers=2, positions=1)]})


def test_is_kept_as_netcdf(llama, prompt, tmp_path):
    """As xarray writes it; `save` is for results of `measure`."""
    seen = close_up(llama, prompt, [(0, 1)], conditions={"cut": zero_bos_mlp(0)})
    seen.to_netcdf(tmp_path / "close_up.nc", engine="h5netcdf")
    back = xr.load_dataset(tmp_path / "close_up.nc", engine="h5netcdf")
    xr.testing.assert_identical(back, seen)
    with pytest.raises(ResultSchemaError, match="no `prompt` axis"):
        save(seen, tmp_path / "result.nc")


def test_view_of_a_layer(llama, prompt):
    """All heads, or those that were chosen; the condition bears the name of what it does."""
    view = attention_view(llama, prompt, 2, zero_bos_mlp(0))
    assert isinstance(view, AttentionView) and view.about == "4 heads, 2 conditions, 12 tokens"
    assert all(f"block 2, head {head}" in view.html for head in range(4))
    assert "<bdi>zero_ablation of mlp_out, block 0, position 0</bdi></strong>" in view.html
    alone = attention_view(llama, prompt, 2, heads=[3, 1])
    assert alone.about == "2 heads, 1 conditions, 12 tokens"
    assert "block 2, head 1" in alone.html and "block 2, head 0" not in alone.html
    assert attention_view(llama, prompt, 0, []).about == "4 heads, 1 conditions, 12 tokens"


def test_a_view_of_much_that_was_edited(llama, prompt):
    """A long description stands beside a short name."""
    edits = [zero_bos_mlp(0), zero_ablation("attn_out", layers=[0, 1, 2], positions=[0, 1, 2, 3])]
    html = attention_view(llama, prompt, 3, edits).html
    assert "<strong><bdi>edited</bdi></strong>" in html
    assert "attn_out, blocks 0 1 2, positions 0 1 2 3" in html


def test_a_view_says_what_was_cut(llama, prompt):
    with pytest.warns(PromptWarning, match="cut to the first 4; pass max_tokens=12"):
        view = attention_view(llama, prompt, 0, max_tokens=4)
    assert "The prompt has 12 tokens; the first 4 are shown." in view.html


@pytest.mark.once
def test_warnings_point_to_who_called(tmp_path):
    """In a process of its own: here, the type checks stand between the caller and what is called."""
    script = tmp_path / "users_own.py"
    script.write_text(
        "import warnings\n"
        "from mcr_lens import load_model\n"
        "from mcr_lens.closeup import attention_view, close_up\n"
        "from mcr_lens.testing import tiny_model\n"
        "model = load_model(tiny_model('llama3'), verbose=False)\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    close_up(model, [5, 6, 7], max_tokens=2)\n"
        "    attention_view(model, [5, 6, 7], 0, max_tokens=2)\n"
        "print(*[(w.category.__name__, w.filename == __file__, w.lineno) for w in seen])\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, script], cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "('PromptWarning', True, 8) ('PromptWarning', True, 9)"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((4,), {}, r"layer 4 does not exist: the model has layers 0\.\.3"),
        ((-1,), {}, "layer=-1: pass the number of a block, counted from 0"),
        (([1, 2],), {}, r"layer=\[1, 2\]: pass the number of a block"),
        ((1, "zero"), {}, "condition: got a str; pass an intervention such as zero_bos_mlp"),
        ((1, {"cut": zero_bos_mlp(0)}), {}, "condition: got a dict; pass an intervention"),
        ((1,), {"heads": [0, 4]}, r"head 4 does not exist: the model has heads 0\.\.3"),
        ((1,), {"heads": []}, r"heads=\[\]: pass one or more numbers counted from 0"),
        ((1,), {"max_tokens": 129}, "max_tokens=129: a view draws from 1 to 128 tokens"),
    ],
)
def test_refusals_of_a_view(llama, prompt, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        attention_view(llama, prompt, *arguments, **options)
