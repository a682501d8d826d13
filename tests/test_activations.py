"""Are recorded rows those of the model's own cache, prompt by prompt, padded or not?"""

import pytest
import torch
from models import bridge, hugging_face, is_encoder, tokenizer
from traces import hook_census

from mcr_lens import at_tokens, load_model, record_activations
from mcr_lens.hookpoints import HookDidNotFireError

SITES = ("mlp_out", "attn_out", "z", "resid")
LAYERS = [0, 3]


def cached(model, prompt, site: str, layer: int) -> torch.Tensor:
    """All rows of one prompt alone, [pos, ...], from `run_with_cache`."""
    # On BERT, hook_attn_out is the stream behind the addition and its LayerNorm, not what is written.
    attention = "attn.o.hook_out" if is_encoder(model) else "hook_attn_out"
    names = {"mlp_out": "hook_mlp_out", "attn_out": attention, "z": "attn.hook_z", "resid": "hook_resid_post"}
    with torch.no_grad():
        return model.run_with_cache(prompt[None])[1][f"blocks.{layer}.{names[site]}"][0]


@pytest.mark.parametrize("site", SITES)
def test_rows_are_those_of_the_cache(any_model, prompts, site):
    """Prompts in the order given, positions in order, though the longest run first and are padded."""
    where = [4, 0, 11]  # the prompts of 5 and 9 tokens have no position 11
    found = record_activations(any_model, prompts, site, layers=LAYERS, positions=where, batch_size=5)
    assert list(found) == LAYERS
    for layer, rows in found.items():
        wanted = [
            cached(any_model, p, site, layer)[[i for i in sorted(where) if i < len(p)]] for p in prompts
        ]
        torch.testing.assert_close(rows, torch.cat(wanted), rtol=1e-5, atol=1e-5)
        assert len(rows) == 13 and rows.device.type == "cpu" and not rows.requires_grad


@pytest.mark.parametrize("site", SITES)
def test_padding_makes_no_difference(llama, prompts, site):
    """Every position of every prompt, and none of the padding."""
    options = {"layers": 1, "positions": None}
    together = record_activations(llama, prompts, site, batch_size=5, **options)[1]
    alone = record_activations(llama, prompts, site, batch_size=1, **options)[1]
    assert len(together) == sum(map(len, prompts))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone, torch.cat([cached(llama, p, site, 1) for p in prompts]))


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ("bos", [[0], [0]]),
        (slice(1, None, 2), [[1, 3], [1]]),
        (3, [[3], []]),
        (at_tokens(7, 9), [[0, 2], [1, 2]]),
        (at_tokens(11), [[3], []]),
    ],
)
def test_chosen_positions(llama, positions, wanted):
    """By name, slice, number and token; a prompt without it has no row."""
    prompts = [torch.tensor([7, 5, 9, 11]), torch.tensor([5, 7, 7])]
    found = record_activations(llama, prompts, "mlp_out", layers=2, positions=positions)[2]
    rows = [cached(llama, p, "mlp_out", 2)[at] for p, at in zip(prompts, wanted, strict=True)]
    torch.testing.assert_close(found, torch.cat(rows), rtol=1e-5, atol=1e-6)


def test_text_has_its_bos():
    """Text is tokenized as for `measure`: with BOS, unless told otherwise."""
    model = load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    for bos, text in ((True, "<bos>abc"), (False, "abc")):
        found = record_activations(model, "abc", "resid", layers=0, positions=None, prepend_bos=bos)[0]
        ids = torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        torch.testing.assert_close(found, cached(model, ids, "resid", 0))


def test_in_the_dtype_of_the_model(tokens):
    """Nothing is rounded or widened."""
    model = bridge("llama", dtype=torch.bfloat16)
    assert record_activations(model, tokens, "mlp_out", layers=0)[0].dtype == torch.bfloat16


def test_recording_leaves_no_trace(llama, tokens):
    """Hooks are gone, also after an error in the model; the logits are the same."""
    before, clean = hook_census(llama), llama(tokens)
    record_activations(llama, tokens, "z", layers=0)
    assert hook_census(llama) == before and torch.equal(llama(tokens), clean)

    def boom(*_):
        raise KeyboardInterrupt

    handle = llama.blocks[2].register_forward_pre_hook(boom)
    try:
        with pytest.raises(KeyboardInterrupt):
            record_activations(llama, tokens, "z", layers=0)
    finally:
        handle.remove()
    assert hook_census(llama) == before and torch.equal(llama(tokens), clean)


@pytest.mark.parametrize(
    ("site", "options", "message"),
    [
        ("pattern", {}, "site 'pattern' cannot be edited; pass one of mlp_out, attn_out, z, resid"),
        ("resid", {"layers": 4}, r"layer 4 does not exist: the model has layers 0\.\.3"),
        ("resid", {"layers": []}, r"layers=\[\]: pass one or more numbers counted from 0"),
        ("resid", {"positions": 12}, "no prompt has a token at positions=12; choose others"),
        ("resid", {"positions": slice(12, None)}, "no prompt has a token at positions=slice"),
        ("resid", {"positions": at_tokens(0)}, "no prompt has a token at positions=AtTokens"),
        ("resid", {"positions": 1.5}, "positions=1.5: pass one or more numbers counted from 0"),
        ("resid", {"batch_size": 0}, "batch_size=0: pass a positive integer or 'auto'"),
        ("resid", {"prompts": []}, "no prompts were given"),
    ],
)
def test_refusals(llama, tokens, site, options, message):
    """Never an empty tensor."""
    given = {"layers": 1, "prompts": tokens, **options}
    with pytest.raises(ValueError, match=message):
        record_activations(llama, given.pop("prompts"), site, **given)


def test_a_site_that_is_never_reached(llama, tokens, monkeypatch):
    """A hook point that exists and stays silent is not a prompt without the token."""
    monkeypatch.setattr("mcr_lens.activations.site_names", lambda *_: ["blocks.0.hook_in"] * 4)
    monkeypatch.setattr(type(llama), "forward", lambda *_, **__: None)
    with pytest.raises(HookDidNotFireError, match=r"never reaches 'blocks.0.hook_in'"):
        record_activations(llama, tokens, "resid", layers=1, positions=None)
