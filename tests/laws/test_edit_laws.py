"""What must hold for every edit, at every site, in every model: it acts where it says, and downstream."""

import warnings

import numpy as np
import pytest
import torch
from probes import attention, stream

from mcr_lens import (
    IndirectEditWarning,
    at_tokens,
    clamp_norm,
    inject,
    mean_ablation,
    measure,
    merge,
    random_direction,
    remove_direction,
    resample_ablation,
    scale,
    zero_ablation,
)

LAYER = 2
RAW = {"stream": stream, "attention": attention}
REFERENCE = [[5, 9, 13, 17, 21], [7, 11, 6, 100, 90, 80]]
SITES = ("mlp_out", "attn_out", "z", "resid")


def edits_at(model, site: str, layer: int = LAYER) -> dict:
    """One of every kind, all of which change something."""
    width = model.cfg.d_head if site == "z" else model.cfg.d_model
    vector = torch.randn(width, generator=torch.Generator().manual_seed(3))
    where = {"layers": layer, "positions": [0, 3]}
    return {
        "zero": zero_ablation(site, **where),
        "scale": scale(site, 0.3, **where),
        "mean": mean_ablation(site, prompts=REFERENCE, **where),
        "resample": resample_ablation(site, prompts=REFERENCE, **where),
        "clamp": clamp_norm(site, 0.01, **where),
        "remove": remove_direction(site, vector, **where),
        "inject vector": inject(site, vector=vector, **where),
        "inject norm": inject(site, norm=50.0, **where),
        "random direction": random_direction(site, **where),
        "every token": zero_ablation(site, layers=layer, positions=slice(2, None, 2)),
        "by token": scale(site, 2.0, layers=layer, positions=at_tokens(5, 6, 7, 8, 9, 10, 11, 12, 13, 14)),
    }


def run(model, tokens, *edits, metrics=None):
    """Measured with edits; on BERT they come with a warning that is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IndirectEditWarning)
        return measure(model, tokens, metrics or RAW, interventions=edits, progress=False)


@pytest.mark.parametrize("site", SITES)
def test_upstream_is_bitwise_unchanged_and_downstream_is_not(any_model, tokens, site):
    """Depths up to l and patterns up to l stay; depth l + 1 changes, by every kind of edit at every site."""
    tokens = tokens.clone()
    tokens[:, 5] = 9  # so that the edit by token finds one
    plain = run(any_model, tokens)
    for name, edit in edits_at(any_model, site).items():
        edited = run(any_model, tokens, edit)
        up_to = slice(0, LAYER)
        assert np.array_equal(plain.stream.sel(depth=up_to), edited.stream.sel(depth=up_to)), name
        assert np.array_equal(plain.attention.sel(layer=up_to), edited.attention.sel(layer=up_to)), name
        after = slice(LAYER + 1, None)
        moved = abs(plain.stream - edited.stream).sel(depth=after).max(["pos", "d_model", "prompt"])
        assert (moved > 0).all(), name


@pytest.mark.parametrize("site", SITES)
def test_only_the_chosen_rows_change_at_the_edited_depth(any_model, tokens, site):
    """At depth l + 1 the other positions are as before (experts round by who else is routed to them)."""
    plain = run(any_model, tokens).stream.sel(depth=LAYER + 1)
    for name in ("zero", "inject vector"):
        edited = run(any_model, tokens, edits_at(any_model, site)[name]).stream.sel(depth=LAYER + 1)
        others = [p for p in range(tokens.shape[1]) if p not in (0, 3)]
        np.testing.assert_allclose(plain.isel(pos=others), edited.isel(pos=others), atol=1e-6, err_msg=name)
        assert not np.allclose(plain.isel(pos=[0, 3]), edited.isel(pos=[0, 3])), name


@pytest.mark.parametrize("site", SITES)
def test_scaling_by_one_is_nothing_and_by_zero_is_the_zero_ablation(any_model, tokens, site):
    """λ = 1: bitwise no intervention; λ = 0: bitwise the zero ablation; a clamp beyond the norm: nothing."""
    where = {"layers": [0, LAYER], "positions": slice(0, 5)}
    plain, zero = run(any_model, tokens), run(any_model, tokens, zero_ablation(site, **where))
    for edit in (scale(site, 1.0, **where), scale(site, 1, **where), clamp_norm(site, 1e9, **where)):
        assert run(any_model, tokens, edit).drop_attrs().identical(plain.drop_attrs())
    assert run(any_model, tokens, scale(site, 0.0, **where)).drop_attrs().identical(zero.drop_attrs())


def test_edits_of_different_places_compose_in_any_order(any_model, tokens):
    """Another site, another layer, another position, another head: the order makes no bit of difference."""
    edits = [
        zero_ablation("mlp_out", layers=1, positions=0),
        random_direction("mlp_out", layers=1, positions=[1, 2]),
        scale("attn_out", 3.0, layers=1, positions=None),
        inject("resid", layers=2, positions=4, norm=7.0),
        zero_ablation("z", layers=3, positions=None, heads=[0, 2]),
        mean_ablation("z", layers=3, positions=None, heads=1, prompts=REFERENCE),
    ]
    once = run(any_model, tokens, *edits)
    assert run(any_model, tokens, *reversed(edits)).drop_attrs().identical(once.drop_attrs())
    assert run(any_model, tokens, *edits[3:], *edits[:3]).drop_attrs().identical(once.drop_attrs())
    assert not np.allclose(once.stream, run(any_model, tokens, *edits[1:]).stream)


def test_two_edits_of_one_place_are_made_in_their_order(llama, tokens):
    """The second sees what the first has left."""
    where = {"layers": 1, "positions": 0}
    put, cut = inject("mlp_out", norm=9.0, **where), clamp_norm("mlp_out", 2.0, **where)
    written = {"metrics": ["mlp_bos_norm"]}
    np.testing.assert_allclose(
        run(llama, tokens, put, cut, **written).mlp_bos_norm.sel(layer=1), 2.0, rtol=1e-6
    )
    np.testing.assert_allclose(
        run(llama, tokens, cut, put, **written).mlp_bos_norm.sel(layer=1), 9.0, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["resample", "by token", "every token", "mean"])
def test_batches_make_no_difference(any_model, prompts, name):
    """Padded together or one at a time: the same tokens get the same edit."""
    edit = edits_at(any_model, "mlp_out", 1)[name]
    names = ["bos_norm", "matrix_entropy", "sink_score"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IndirectEditWarning)
        options = {"metrics": names, "interventions": [edit], "progress": False}
        together = measure(any_model, prompts, batch_size=5, **options)
        small = measure(any_model, prompts, batch_size=1, **options)
        if name != "resample":  # what it draws goes by the prompt's number
            small = merge(*(measure(any_model, [p], **options) for p in prompts))
    for variable in names:
        np.testing.assert_allclose(together[variable], small[variable], rtol=1e-5, atol=1e-5)


def test_a_head_is_edited_alone(any_model, tokens):
    """The same as a hand-written hook on z; all heads one by one are all heads at once."""

    def by_hand(z, hook=None):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    name = any_model.hook_dict["blocks.1.attn.hook_z"].name or "blocks.1.attn.hook_z"
    where = {"layers": 1, "positions": None}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", IndirectEditWarning)
        ours = zero_ablation("z", heads=2, **where).fwd_hooks(any_model)
        edited, wanted = (any_model.run_with_hooks(tokens, fwd_hooks=h) for h in (ours, [(name, by_hand)]))
        assert torch.equal(edited, wanted) and not torch.equal(edited, any_model(tokens))
    every = run(any_model, tokens, *(zero_ablation("z", heads=h, **where) for h in range(4)))
    assert every.drop_attrs().identical(run(any_model, tokens, zero_ablation("z", **where)).drop_attrs())
