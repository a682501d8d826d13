"""Are interventions values: equal when they say the same, written down in full, checked when made?"""

import json

import numpy as np
import pytest
import torch

from mcr_lens import (
    at_tokens,
    clamp_norm,
    inject,
    mean_ablation,
    random_direction,
    remove_direction,
    resample_ablation,
    scale,
    zero_ablation,
    zero_bos_mlp,
)

V = [3.0, 0.0, -4.0]
ROWS = [[5, 6, 7], [8, 9]]
PLACE = {"site": "mlp_out", "layers": [1, 2], "positions": [0]}
KINDS = {
    "zero": (zero_ablation, {}, {"kind": "zero_ablation"}),
    "scale": (scale, {"factor": 0.5}, {"kind": "scale", "factor": 0.5}),
    "mean": (mean_ablation, {"prompts": ROWS}, {"kind": "mean_ablation", "reference": {"prompts": 2}}),
    "resample": (
        resample_ablation,
        {"prompts": ["a", "b", "c"], "seed": 3},
        {"kind": "resample_ablation", "reference": {"prompts": 3}, "seed": 3},
    ),
    "clamp": (clamp_norm, {"limit": 2}, {"kind": "clamp_norm", "limit": 2.0}),
    "remove": (remove_direction, {"direction": V},
               {"kind": "remove_direction", "direction": {"size": 3, "norm": 5.0}}),
    "inject vector": (inject, {"vector": V, "positions": 0},
                      {"kind": "inject", "vector": {"size": 3, "norm": 5.0}}),
    "inject norm": (inject, {"norm": 7, "positions": 0}, {"kind": "inject", "norm": 7.0}),
    "random": (random_direction, {"seed": 4}, {"kind": "random_direction", "seed": 4}),
}  # fmt: skip

OTHER = {
    "scale": {"factor": 0.25}, "mean": {"prompts": [[5, 6, 7], [8, 10]]}, "resample": {"seed": 4},
    "clamp": {"limit": 2.5}, "remove": {"direction": [3.0, 0.0, 4.0]},
    "inject vector": {"vector": [3.0, 0.0, -4.1]},
    "inject norm": {"norm": 8}, "random": {"seed": 5},
}  # fmt: skip


def make(name: str, **changes):
    constructor, options, _ = KINDS[name]
    return constructor(**{"site": "mlp_out", "layers": [1, 2], **options, **changes})


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_down(name):
    """Everything it takes to make it again, as JSON; long vectors and texts by their identity."""
    found = json.loads(json.dumps(make(name).describe(), allow_nan=False))
    for part in ("reference", "direction", "vector"):
        if part in found:
            digest = found[part].pop("sha256")
            assert len(digest) == 16 and int(digest, 16) >= 0
    assert found == {**PLACE, **KINDS[name][2]}


@pytest.mark.parametrize("name", KINDS)
def test_equal_when_they_say_the_same(name):
    """Order and repetition of layers and positions make no difference; each setting does."""
    one, same = make(name), make(name, layers=(2, 1, 2), positions=(0, 0))
    assert one == same and hash(one) == hash(same) and len({one, same}) == 1
    others = [make(name, **change) for change in ({"layers": 1}, {"positions": 1}, {"site": "resid"})]
    others += [make(name, **OTHER[name])] if name in OTHER else []
    assert all(one != other for other in others) and len({one, *others}) == len(others) + 1
    assert all(one.describe() != other.describe() for other in others)
    with pytest.raises(AttributeError):
        one.site = "attn_out"
    assert repr(one).startswith("Intervention(site='mlp_out', layers=(1, 2), positions=(0,)")
    assert len(repr(one)) < 300


def test_kinds_differ():
    """Nine constructors, nine values."""
    assert len({make(name) for name in KINDS}) == len(KINDS)
    assert zero_ablation("mlp_out", layers=1) != scale("mlp_out", 0.0, layers=1)


def test_the_papers_own_ablation():
    """A name for one of them."""
    assert zero_bos_mlp(1) == zero_ablation("mlp_out", layers=1) == make("zero", layers=1)
    assert zero_bos_mlp([2, 1], position=4) == make("zero", positions=[4])


@pytest.mark.parametrize(
    ("positions", "written"),
    [
        (0, [0]), ("bos", [0]), ([4, 1], [1, 4]), (None, None), (slice(2, None), "2:"),
        (slice(None, 9, 2), "0:9:2"),
        (at_tokens(13, "."), {"tokens": [13, "."]}),
    ],
)  # fmt: skip
def test_positions_are_written_down(positions, written):
    """As numbers, a slice, tokens, or null for everywhere."""
    assert zero_ablation("mlp_out", layers=0, positions=positions).describe()["positions"] == written


def test_heads_are_written_down_where_there_are_any():
    """Of head outputs only."""
    assert zero_ablation("z", layers=0, heads=[2, 0]).describe()["heads"] == [0, 2]
    assert "heads" not in zero_ablation("z", layers=0).describe()
    assert zero_ablation("z", layers=0, heads=1) != zero_ablation("z", layers=0)


@pytest.mark.parametrize("as_given", [list, np.array, torch.tensor, lambda v: np.array(v, np.float64)])
def test_vectors_may_come_as_anything(as_given):
    """A list, an array or a tensor of the same numbers is the same; a later change of it is not seen."""
    given = as_given(V)
    made = inject("mlp_out", layers=1, positions=0, vector=given)
    assert made == inject("mlp_out", layers=1, positions=0, vector=V)
    given[0] = 100.0
    assert made == inject("mlp_out", layers=1, positions=0, vector=V)
    assert made.describe()["vector"]["norm"] == 5.0


@pytest.mark.parametrize(
    "given", [[5, 6, 7], np.array([5, 6, 7]), torch.tensor([5, 6, 7]), [[5, 6, 7]], torch.tensor([[5, 6, 7]])]
)
def test_reference_prompts_may_come_as_anything(given):
    """A row of ids, or rows of them, as `measure` takes them."""
    assert mean_ablation("mlp_out", layers=0, prompts=given) == mean_ablation(
        "mlp_out", layers=0, prompts=[(5, 6, 7)]
    )
    assert mean_ablation("mlp_out", layers=0, prompts="a") == mean_ablation(
        "mlp_out", layers=0, prompts=["a"]
    )


def test_numpy_numbers_are_numbers():
    """What numpy counts and measures is taken at its value."""
    assert zero_bos_mlp(np.int64(1)) == zero_bos_mlp(1) == zero_bos_mlp(np.array([1]))
    assert scale("z", np.float32(0.5), layers=1) == scale("z", 0.5, layers=1)
    assert json.dumps(zero_ablation("z", layers=np.arange(2), heads=np.int64(0)).describe())


REFUSED = [
    (zero_ablation, {"site": "mlp"}, "site 'mlp' cannot be edited; pass one of mlp_out, attn_out, z, resid$"),
    (zero_ablation, {"site": "pattern"}, "site 'pattern' cannot be edited; pass one of"),
    (zero_ablation, {"layers": []}, r"layers=\[\]: pass one or more numbers counted from 0"),
    (zero_ablation, {"layers": -1}, "layers=-1: pass one or more numbers"),
    (zero_ablation, {"layers": True}, "layers=True: pass one or more numbers"),
    (zero_ablation, {"layers": 1.0}, "layers=1.0: pass one or more numbers"),
    (zero_ablation, {"layers": None}, "layers=None: pass one or more numbers"),
    (zero_ablation, {"layers": "1"}, "layers='1': pass one or more numbers"),
    (zero_ablation, {"positions": -1}, "positions=-1: pass one or more numbers"),
    (zero_ablation, {"heads": 0}, "heads=0 at site 'mlp_out': single heads are edited at site 'z'"),
    (zero_ablation, {"site": "resid", "heads": [1]}, r"heads=\[1\] at site 'resid': single heads"),
    (zero_ablation, {"site": "z", "heads": []}, r"heads=\[\]: pass one or more numbers"),
    (zero_ablation, {"site": "z", "heads": -1}, "heads=-1: pass one or more numbers"),
    *((scale, {"factor": f}, f"factor={f!r}: pass a finite number$")
      for f in (float("nan"), float("inf"), True, "0.5", None)),
    *((clamp_norm, {"limit": f}, f"limit={f!r}: pass a finite number from 0 on$")
      for f in (-1.0, float("nan"), float("inf"), False, "1")),
    (remove_direction, {"direction": [0.0, 0.0]}, "direction is zero, so there is nothing to remove; pass a"),
    (remove_direction, {"direction": [1.0, float("nan")]}, "got shape .2,. with NaN or infinity"),
    (remove_direction, {"direction": [[1.0, 2.0]]}, r"one row of finite numbers, got shape \(1, 2\)$"),
    (remove_direction, {"direction": []}, r"one row of finite numbers, got shape \(0,\)$"),
    (remove_direction, {"direction": 3.0}, r"one row of finite numbers, got shape \(\)$"),
    (remove_direction, {"direction": "x"}, "direction must be one row of numbers, got str"),
    (inject, {"positions": 0}, "inject takes either vector= .* or norm="),
    (inject, {"positions": 0, "vector": V, "norm": 1.0}, "inject takes either vector= .* or norm="),
    (inject, {"positions": 0, "norm": -1}, "norm=-1: pass a finite number from 0 on"),
    (inject, {"positions": 0, "norm": float("inf")}, "norm=inf: pass a finite number from 0 on"),
    (inject, {"positions": 0, "vector": [[1.0]]}, r"must be one row of finite numbers, got shape \(1, 1\)"),
    *((constructor, {"prompts": given}, message)
      for constructor in (mean_ablation, resample_ablation)
      for given, message in (([], "prompts is empty; pass at least one reference prompt"),
                             (None, "prompts holds a NoneType that is neither text nor token ids; pass"),
                             (5, "prompts holds a int that is neither text nor token ids"),
                             ([None], "neither text nor token ids; pass strings or rows of ids"))),
]  # fmt: skip


@pytest.mark.parametrize(("constructor", "changes", "message"), REFUSED)
def test_nonsense_is_refused_when_made(constructor, changes, message):
    """Before any model is there, in one sentence."""
    with pytest.raises(ValueError, match=message) as seen:
        constructor(**{"site": "mlp_out", "layers": 1, **changes})
    assert "\n" not in str(seen.value) and len(str(seen.value)) < 200


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (zero_bos_mlp([0, 4]), r"layer 4 does not exist: the model has layers 0\.\.3"),
        (zero_ablation("z", layers=1, heads=[0, 4]), r"head 4 does not exist: the model has heads 0\.\.3"),
        (inject("mlp_out", layers=1, positions=0, vector=V), "has 3 numbers and the rows there have 32"),
        (remove_direction("resid", V, layers=1), "the vector has 3 numbers and the rows there have 32"),
        (inject("z", layers=1, positions=0, vector=[1.0] * 32), "has 32 numbers and the rows there have 8"),
        (
            mean_ablation("mlp_out", layers=1, prompts=[[5]], positions=3),
            "no prompt has a token at positions",
        ),
        (
            mean_ablation("mlp_out", layers=1, prompts=[[]]),
            r"prompt 0 has shape \(0,\); pass one row of token ids",
        ),
        (resample_ablation("mlp_out", layers=1, prompts=[[500]]), "500"),
    ],
)
def test_what_a_model_does_not_have_is_refused_with_the_model(llama, edit, message):
    """When hooks are made, before the first forward pass of the user's."""
    with pytest.raises(ValueError, match=message):
        edit.fwd_hooks(llama)
