"""Does observing somebody's own loop give what `measure` gives?"""

import gc
import weakref

import numpy as np
import pytest
import torch
from models import GENERATION, bridge, hooked_transformer, hugging_face, is_encoder, tokenizer
from torch import Tensor

from mcr_lens import (
    HookDidNotFireError,
    ObservationWarning,
    Observer,
    load_model,
    measure,
    observe,
)

PAD = 2


def close(got, wanted):
    """Every default metric, per prompt, within 1e-5."""
    for name in wanted.data_vars:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)


def padded(prompts, side):
    """One batch of token ids and its attention mask."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    return ids, mask


@pytest.fixture(scope="module")
def reader():
    """A Llama-like model with a tokenizer that pads on the left."""
    return load_model(hugging_face("llama"), tokenizer=tokenizer(side="left"), verbose=False)


def test_one_pass(any_model, tokens):
    """One forward pass in the block is one batch in the result."""
    with observe(any_model) as watch, torch.no_grad():
        any_model(tokens)
    ds = watch.result()
    close(ds, measure(any_model, tokens, progress=False))
    wanted = measure(any_model, tokens, ["bos_norm"], progress=False)
    assert ds.prompt_hash.values.tolist() == wanted.prompt_hash.values.tolist()
    assert ds.attrs["position"] == 0 and ds.attrs["model"] == wanted.attrs["model"]


def test_position_beyond_the_prompt(llama, tokens):
    """It is said after the pass, in one sentence, and the pass itself is left alone."""
    with observe(llama, position=12) as watch, torch.no_grad():
        llama(tokens)
    with pytest.raises(ValueError, match=r"position=12, but a prompt has 12 tokens; leave it out or choose"):
        watch.result()


def test_several_passes(any_model, prompts):
    """Passes add up in the order they came, whatever their lengths."""
    with observe(any_model) as watch, torch.no_grad():
        for prompt in prompts:
            any_model(prompt[None])
        early = watch.result()
        any_model(torch.tensor([[5, 6, 7]]))
    ds = watch.result()
    wanted = measure(any_model, prompts, progress=False)
    close(early, wanted)
    close(ds.isel(prompt=slice(0, 5)), wanted)
    assert ds.n_tokens.values.tolist() == [12, 5, 17, 12, 9, 3]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_a_mask_does_not_count(any_model, prompts, side):
    """Padded rows with an attention mask give the numbers of the unpadded prompts."""
    ids, mask = padded(prompts, side)
    with observe(any_model) as watch, torch.no_grad():
        any_model(ids, attention_mask=mask)
    ds = watch.result()
    close(ds, measure(any_model, prompts, progress=False))
    assert ds.n_tokens.values.tolist() == [len(p) for p in prompts]
    assert ds.padding.values.tolist() == [17 - len(p) for p in prompts]
    hashes = measure(any_model, prompts, ["bos_norm"], progress=False).prompt_hash
    assert ds.prompt_hash.values.tolist() == hashes.values.tolist()


def test_mask_given_to_observe(llama, prompts):
    """Right padding needs no mask in a causal model, so observe takes it instead."""
    ids, mask = padded(prompts, "right")
    with observe(llama, attention_mask=mask) as watch, torch.no_grad():
        llama(ids)
    close(watch.result(), measure(llama, prompts, progress=False))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 5), r"attention_mask has shape \(2, 5\) for tokens of shape \(3, 12\)"),
        (torch.tensor([[1] * 12, [0] * 12, [1] * 12]), "row 1 of attention_mask has no real token"),
        (torch.tensor([[1] * 12, [1] * 12, [1, 0] * 6]), "row 2 of attention_mask has padding between"),
    ],
)
def test_masks_that_cannot_be(llama, tokens, mask, message):
    """A mask of another batch, an empty row, and a gap."""
    with pytest.raises(ValueError, match=message), observe(llama, attention_mask=mask), torch.no_grad():
        llama(tokens)


def test_list_of_strings(reader):
    """TransformerLens pads and masks strings itself; the padding is seen and left out."""
    texts = ["one sink", "another, longer prompt", "x y"]
    with observe(reader) as watch, torch.no_grad():
        reader(texts, prepend_bos=True)
    ds = watch.result()
    close(ds, measure(reader, texts, progress=False))
    assert ds.has_bos.all() and ds.position_token.values.tolist() == ["<bos>"] * 3


@pytest.mark.skipif(GENERATION >= 4, reason="TransformerLens 4 has no HookedTransformer")
def test_list_of_strings_in_hooked_transformer():
    """There left padding is masked as well; right padding comes without a mask, and that is said."""
    names = tokenizer(side="left")
    names.init_kwargs["name_or_path"] = "local"
    names.add_bos_token = True
    model = hooked_transformer(names, default_prepend_bos=True)
    texts = ["one sink", "another, longer prompt", "x y"]
    with observe(model) as watch, torch.no_grad():
        model(texts, padding_side="left")
    ds = watch.result()
    close(ds, measure(model, texts, progress=False))
    assert ds.has_bos.all() and ds.n_tokens.values.tolist() == [9, 23, 4]
    with observe(model) as watch, torch.no_grad():
        model(texts, padding_side="right")
    with pytest.warns(ObservationWarning, match=r"padding.*pass attention_mask="):
        watch.result()


def test_raw_hooks(any_model, prompts):
    """The callbacks work with run_with_hooks; `expect` says what the rows hold."""
    watch = Observer(any_model)
    ids, mask = padded(prompts, "right")
    watch.expect(ids, mask)
    # An encoder sees padding on the right unless a mask hides it; a decoder does not look there.
    hidden = {"attention_mask": mask} if is_encoder(any_model) else {}
    with torch.no_grad():
        any_model.run_with_hooks(ids, fwd_hooks=watch.fwd_hooks, **hidden)
    ds = watch.result()
    close(ds, measure(any_model, prompts, progress=False))
    assert ds.n_tokens.values.tolist() == [len(p) for p in prompts]


def test_raw_hooks_without_expect(llama, tokens):
    """Without token ids every position is real, and the identity of the prompts is unknown."""
    watch = Observer(llama, ["bos_norm", "sink_score"])
    for _ in range(2):
        llama.run_with_hooks(tokens, fwd_hooks=watch.fwd_hooks)
    ds = watch.result()
    assert ds.sizes["prompt"] == 6 and set(ds.prompt_hash.values.tolist()) == {""}
    np.testing.assert_array_equal(ds.bos_norm[:3], ds.bos_norm[3:])


def test_generation_skips_decoding_steps(reader):
    """Of a generation with a key-value cache only the prompt is measured, and the user hears it."""
    ids = torch.randint(3, 128, (1, 8))
    with observe(reader) as watch, torch.no_grad():
        reader.generate(ids, max_new_tokens=4, do_sample=False, verbose=False)
    with pytest.warns(
        ObservationWarning, match=r"\d decoding steps with a key-value cache were not measured"
    ):
        ds = watch.result()
    assert ds.sizes["prompt"] == 1 and int(ds.n_tokens[0]) == 8
    close(ds, measure(reader, ids, progress=False))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_a_mask_warns(reader, prompts, side):
    """Padding that no mask mentions cannot be told from text, but it can be said."""
    ids, _ = padded(prompts, side)
    with observe(reader) as watch, torch.no_grad():
        reader(ids)
    with pytest.warns(ObservationWarning, match=r"padding.*pass attention_mask="):
        watch.result()


def test_hook_that_never_fires(llama, tokens):
    """A pass that stops early is no result: the error names a hook."""
    watch = Observer(llama, ["bos_norm"])
    llama.run_with_hooks(tokens, fwd_hooks=watch.fwd_hooks, stop_at_layer=2)
    with pytest.raises(HookDidNotFireError, match=r"never fired, among them 'blocks\..*stopped early"):
        watch.result()


def test_incomplete_pass_among_complete_ones(llama, tokens):
    """What did not reach every hook is left out and counted."""
    with observe(llama, ["bos_norm"]) as watch, torch.no_grad():
        llama(tokens)
        llama(tokens, stop_at_layer=2)
    with pytest.warns(ObservationWarning, match="1 forward passes did not reach every hook point"):
        assert watch.result().sizes["prompt"] == 3


def test_nothing_was_run(llama):
    """An empty block has no result."""
    with observe(llama) as watch:
        pass
    with pytest.raises(ValueError, match="nothing was measured: run the model inside"):
        watch.result()


def test_loss_is_for_measure_only(llama, tokens):
    """The logits are not handed to a hook; the message says who hands them over."""
    with pytest.raises(ValueError, match="reads logits, which only `measure` hands over"):
        with observe(llama, ["next_token_loss"]) as watch, torch.no_grad():
            llama(tokens)
        watch.result()


@pytest.fixture
def garbage():
    """Collects what a test leaves behind, and does not look through all that was there before."""
    gc.freeze()
    yield gc.collect
    gc.unfreeze()


@pytest.mark.parametrize("run", ["measure", "observe"])
def test_tensors_do_not_outlive_their_layer(any_model, tokens, run, garbage):
    """When a pattern or a stream arrives, the one of two layers before is gone already."""
    seen: list[weakref.ref] = []
    alive: list[int] = []

    def spy(tensor, hook=None):
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(tensor))

    points = [f"blocks.{layer}.attn.hook_pattern" for layer in range(4)]
    with torch.no_grad(), any_model.hooks(fwd_hooks=[(name, spy) for name in points]):
        if run == "measure":
            measure(any_model, tokens, progress=False)
        else:
            with observe(any_model) as watch:
                any_model(tokens, return_type=None)
            watch.result()
    garbage()
    if run == "measure":
        assert len(alive) == 4 and max(alive) <= 1, alive
        assert not any(ref() is not None for ref in seen)


def test_no_pattern_is_alive_after_measuring(any_model, garbage):
    """No tensor of shape [*, T, T] exists after a run, not even one the bridge keeps for itself."""
    length = 23
    measure(any_model, torch.randint(3, 128, (2, length)), progress=False)
    garbage()
    alive = [
        tuple(o.shape) for o in gc.get_objects()
        if issubclass(type(o), Tensor) and o.ndim == 4 and o.shape[-2:] == (length, length)
        and o.is_floating_point() and o.shape[1] > 1
    ]  # fmt: skip
    assert alive == []
    for block in any_model.blocks:
        assert getattr(block.attn, "_pattern", None) is None


def unembedded_rows(model, tokens, metrics):
    """How many positions per call reach the unembedding while measuring."""
    rows = []
    head = model.original_model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    try:
        measure(model, tokens, metrics, progress=False)
    finally:
        handle.remove()
    return rows


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_unembedding_is_skipped(family, tokens):
    """Without a metric that reads logits at most one row meets the vocabulary; with one, all do."""
    model = bridge(family)
    assert sum(unembedded_rows(model, tokens, None)) <= 1
    assert unembedded_rows(model, tokens, ["next_token_loss"]) == [tokens.shape[1]]


@pytest.mark.skipif(GENERATION >= 4, reason="TransformerLens 4 has no HookedTransformer")
def test_unembedding_is_skipped_by_hooked_transformer(tokens):
    """HookedTransformer does without the unembedding altogether."""
    model, calls = hooked_transformer(), []
    model.unembed.register_forward_hook(lambda *_: calls.append(1))
    measure(model, tokens, progress=False)
    assert not calls
    measure(model, tokens, ["next_token_loss"], progress=False)
    assert calls
