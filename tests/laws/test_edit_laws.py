"""What must hold for every edit, at every site, in every model: it acts where it says, and downstream."""

import warnings
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from mcr_lens import (
    IndirectEditWarning,
    at_tokens,
    clamp_norm,
    inject,
    mean_ablation,
    measure,
    random_direction,
    remove_direction,
    resample_ablation,
    scale,
    zero_ablation,
)

LAYER = 2
REFERENCE = [[5, 9, 13, 17, 21], [7, 11, 6, 100, 90, 80]]
SITES = ("mlp_out", "attn_out", "z", "resid")
TWO_SITES = ("mlp_out", "z", *(pytest.param(site, marks=pytest.mark.slow) for site in ("attn_out", "resid")))
"""With the lowest versions, one site of the stream and one of the heads will do."""


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


MANY_KINDS = ("mlp_out", "resid")
"""An edit knows nothing of its site, so elsewhere a few kinds will do."""
FEW = ("zero", "mean", "inject vector", "random direction", "by token")


class Seen(NamedTuple):
    """What a forward pass computed: [depth, prompt, pos, d_model] and [layer, prompt, head, query, key]."""

    stream: Tensor
    attention: Tensor


def run(model, tokens, *edits) -> Seen:
    """Run with edits, read by hooks of our own; on BERT they come with a warning that is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IndirectEditWarning)
        hooks = [hook for edit in edits for hook in edit.fwd_hooks(model)]
    layers, seen = range(model.cfg.n_layers), {}
    streams = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in layers)]
    patterns = [f"blocks.{i}.attn.hook_pattern" for i in layers]

    def keep(tensor, hook=None, *, name):
        seen[name] = tensor.detach().clone()

    hooks += [(name, partial(keep, name=name)) for name in [*streams, *patterns]]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(tokens, return_type=None)
    return Seen(torch.stack([seen[n] for n in streams]), torch.stack([seen[n] for n in patterns]))


def same(one: Seen, other: Seen) -> bool:
    """Bitwise."""
    return torch.equal(one.stream, other.stream) and torch.equal(one.attention, other.attention)


def after(*runs: Seen) -> list[Tensor]:
    """The depths behind the edited block."""
    return [seen.stream[LAYER + 1 :] for seen in runs]


@pytest.mark.parametrize("site", SITES)
def test_upstream_is_bitwise_unchanged_and_downstream_is_not(any_model, tokens, site):
    """Depths up to l and patterns up to l stay; depth l + 1 changes, by every kind of edit at every site."""
    tokens = tokens.clone()
    tokens[:, 5] = 9  # so that the edit by token finds one
    plain = run(any_model, tokens)
    edits = edits_at(any_model, site)
    for name in edits if site in MANY_KINDS else FEW:
        edited = run(any_model, tokens, edits[name])
        assert torch.equal(plain.stream[: LAYER + 1], edited.stream[: LAYER + 1]), name
        assert torch.equal(plain.attention[: LAYER + 1], edited.attention[: LAYER + 1]), name
        assert all(not torch.equal(a, b) for a, b in zip(*after(plain, edited), strict=True)), name


@pytest.mark.parametrize("site", TWO_SITES)
def test_only_the_chosen_rows_change_at_the_edited_depth(any_model, tokens, site):
    """At depth l + 1 the other positions are as before (experts round by who else is routed to them)."""
    plain = run(any_model, tokens).stream[LAYER + 1]
    others = [p for p in range(tokens.shape[1]) if p not in (0, 3)]
    for name in ("zero", "inject vector"):
        edited = run(any_model, tokens, edits_at(any_model, site)[name]).stream[LAYER + 1]
        np.testing.assert_allclose(plain[:, others], edited[:, others], atol=1e-6, err_msg=name)
        for position in (0, 3):
            assert not torch.allclose(plain[:, position], edited[:, position]), name


@pytest.mark.parametrize("site", TWO_SITES)
def test_scaling_by_one_is_nothing_and_by_zero_is_the_zero_ablation(any_model, tokens, site):
    """λ = 1: bitwise no intervention; λ = 0: bitwise the zero ablation; a clamp beyond the norm: nothing."""
    where = {"layers": [0, LAYER], "positions": slice(0, 5)}
    plain, zero = run(any_model, tokens), run(any_model, tokens, zero_ablation(site, **where))
    for edit in (scale(site, 1.0, **where), scale(site, 1, **where), clamp_norm(site, 1e9, **where)):
        assert same(run(any_model, tokens, edit), plain)
    assert same(run(any_model, tokens, scale(site, 0.0, **where)), zero) and not same(zero, plain)


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
    assert same(run(any_model, tokens, *reversed(edits)), once)
    assert same(run(any_model, tokens, *edits[3:], *edits[:3]), once)
    assert not torch.allclose(once.stream, run(any_model, tokens, *edits[1:]).stream)


def test_two_edits_of_one_place_are_made_in_their_order(llama, tokens):
    """The second sees what the first has left."""
    where = {"layers": 1, "positions": 0}
    put, cut = inject("mlp_out", norm=9.0, **where), clamp_norm("mlp_out", 2.0, **where)
    for edits, norm in (([put, cut], 2.0), ([cut, put], 9.0)):
        ds = measure(llama, tokens, ["mlp_bos_norm"], interventions=edits, progress=False)
        np.testing.assert_allclose(ds.mlp_bos_norm.sel(layer=1), norm, rtol=1e-6)


KINDS = (
    "resample",
    "by token",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("every token", "mean")),
)


@pytest.mark.parametrize("name", KINDS)
def test_batches_make_no_difference(any_model, prompts, name):
    """Padded together or one at a time: the same tokens get the same edit."""
    edit = edits_at(any_model, "mlp_out", 1)[name]
    names = ["bos_norm", "matrix_entropy", "sink_score"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IndirectEditWarning)
        options = {"metrics": names, "interventions": [edit], "progress": False}
        together = measure(any_model, prompts, batch_size=5, **options)
        small = measure(any_model, prompts, batch_size=1, **options)
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
    assert same(every, run(any_model, tokens, zero_ablation("z", **where)))
