"""Is what is read off queries and keys what would be read off the pattern?"""

import pytest
import torch
from dispatch import Largest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr_lens import attention_summary, row_sums
from mcr_lens.attention_summary import summarize
from mcr_lens.visibility import Visibility


def from_pattern(query, key, *, scale, causal, window, chunk, softcap, sink_logits, position):
    """The same five tensors by the book: the whole pattern, in float64."""
    query, key = query.double(), key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.mT * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    visible = Visibility(query.shape[2], causal, window, chunk).mask()
    scores = scores.masked_fill(~visible, -torch.inf)
    if sink_logits is not None:
        column = sink_logits.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        pattern = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        pattern = scores.softmax(-1)
    return {
        "column_sums": pattern.sum(2),
        "row_entropy": torch.special.entr(pattern).sum(-1),
        "diagonal": pattern.diagonal(dim1=-2, dim2=-1),
        "previous_diagonal": pattern.diagonal(-1, -2, -1),
        "sink_column": pattern[..., position],
    }


def random_inputs(seed, batch, heads, kv, length, width, dtype=torch.float32, size=1.0):
    g = torch.Generator().manual_seed(seed)
    query = size * torch.randn(batch, heads, length, width, generator=g)
    return query.to(dtype), torch.randn(batch, kv, length, width, generator=g).to(dtype), g


def assert_same(query, key, within, **options):
    found = summarize(query, key, **options)
    options.pop("row_lse", None)
    defaults = {"causal": True, "window": None, "chunk": None, "softcap": None, "sink_logits": None}
    wanted = from_pattern(query, key, **{**defaults, "position": 0, **options})
    for name, tensor in wanted.items():
        got = getattr(found, name)
        assert got.shape == tensor.shape, name
        assert torch.allclose(got.double(), tensor, atol=within, rtol=within), (
            name,
            float((got - tensor).abs().max()),
        )
    return found


ANY: dict = {
    "seed": st.integers(0, 2**20),
    "batch": st.integers(1, 3),
    "kv": st.integers(1, 3),
    "group": st.integers(1, 3),
    "length": st.integers(1, 90),
    "causal": st.booleans(),
    "window": st.none() | st.integers(1, 100),
    "chunk": st.none() | st.integers(1, 100),
    "where": st.floats(0, 1),
}
"""Queries and keys of any shape, seen in any way, and a position as a share of the length."""


@settings(max_examples=150, deadline=None)
@given(
    **ANY,
    width=st.integers(1, 9),
    softcap=st.none() | st.floats(0.1, 50),
    sinks=st.booleans(),
    elements=st.sampled_from([1, 64, 700, 2**13, 2**20]),
)
def test_it_is_what_the_pattern_says(
    seed, batch, kv, group, length, width, causal, window, chunk, softcap, sinks, where, elements
):
    """Every option together with every other, in blocks of every size."""
    query, key, g = random_inputs(seed, batch, kv * group, kv, length, width, size=2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_summary, "ELEMENTS", elements)
        assert_same(
            query, key, 1e-5, scale=0.7, causal=causal, window=window, chunk=chunk, softcap=softcap,
            sink_logits=3 * torch.randn(kv * group, generator=g) if sinks else None,
            position=int(where * (length - 1)),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_in_float32(dtype):
    """The inputs are rounded, what is made of them is not."""
    query, key, _ = random_inputs(0, 2, 4, 2, 50, 8, dtype)
    found = assert_same(query, key, 1e-5, scale=0.5)
    assert {tensor.dtype for tensor in found} == {torch.float32}


def test_double_precision_stays():
    """A float64 model is measured in float64."""
    query, key, _ = random_inputs(0, 1, 2, 2, 40, 8, torch.float64)
    found = assert_same(query, key, 1e-13, scale=0.5)
    assert {tensor.dtype for tensor in found} == {torch.float64}


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_scores_neither_overflow_nor_cancel(size):
    """A head that looks at one key has entropy 0, and not the rounding of its scores."""
    query = torch.ones(1, 1, 30, 4) * size
    key = torch.zeros(1, 1, 30, 4)
    key[:, :, 0] = 1.0
    found = summarize(query, key, scale=1.0)
    assert float(found.row_entropy.abs().max()) == 0
    assert torch.equal(found.sink_column, torch.ones(1, 1, 30))


def test_a_sink_logit_that_takes_everything_leaves_nothing():
    """No NaN where a row is all but empty."""
    query, key, _ = random_inputs(0, 1, 2, 1, 20, 4)
    found = summarize(query, key, scale=1.0, sink_logits=torch.tensor([300.0, -300.0]))
    assert all(bool(tensor.isfinite().all()) for tensor in found)
    assert float(found.column_sums[:, 0].sum()) == 0 and float(found.row_entropy[:, 0].sum()) == 0
    assert float(found.column_sums[:, 1].sum()) == pytest.approx(20, abs=1e-4)


def logsumexp(query, key, scale, **seen):
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).mT * scale
    return scores.masked_fill(~Visibility(query.shape[2], **seen).mask(), -torch.inf).logsumexp(-1)


@settings(max_examples=100, deadline=None)
@given(**ANY, keys=st.sampled_from([1, 7, 32, 512]), numbers=st.sampled_from([1, 700, 2**17]))
def test_row_sums_that_are_known_already_change_nothing(
    seed, batch, kv, group, length, causal, window, chunk, where, keys, numbers
):
    """The same numbers from them, in tiles of every shape."""
    query, key, _ = random_inputs(seed, batch, kv * group, kv, length, 8, size=2.0)
    seen = {"causal": causal, "window": window, "chunk": chunk}
    sums = logsumexp(query, key, 0.7, **seen)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"KEYS": keys, "NUMBERS": numbers, "LEAST": 1}.items():
            patch.setattr(row_sums, name, value)
        patch.setattr(torch, "softmax", None)  # no row is made whole
        assert_same(query, key, 1e-5, scale=0.7, position=int(where * (length - 1)), row_lse=sums, **seen)


@pytest.mark.parametrize("lift", [0.0, 30.0, 55.0])
def test_large_row_sums_leave_entropies_exact(lift):
    """Logarithms of them are rounded to some 1e-6; a row of many nats must not multiply that."""
    query, key, _ = random_inputs(0, 1, 2, 1, 1500, 8)
    query[..., 0], key[..., 0] = 1.0, lift / 0.25
    exact = query.double(), key.double()
    found = summarize(query, key, scale=0.25, row_lse=logsumexp(*exact, 0.25).float()).row_entropy
    wanted = summarize(*exact, scale=0.25).row_entropy
    assert float((found - wanted).abs().max()) <= 1e-5 and float(wanted.max()) > 6


@pytest.mark.parametrize("keys", [16, 512])
def test_scores_beyond_what_an_exponential_holds(keys, monkeypatch):
    """Keys with e^-600 of the attention, and hidden ones that would have e^600."""
    monkeypatch.setattr(row_sums, "KEYS", keys)
    monkeypatch.setattr(torch, "softmax", None)
    query, key, _ = random_inputs(0, 1, 2, 1, 60, 4)
    query[..., 0], key[..., 0] = 30.0, 0.0
    key[:, :, 20:40, 0], key[:, :, 59, 0] = -20.0, 20.0
    query[:, :, 59] = 0.0  # the only query that sees the last key; it looks at all alike
    found = assert_same(query, key, 1e-5, scale=1.0, row_lse=logsumexp(query, key, 1.0))
    assert found.column_sums[..., 30].flatten().tolist() == pytest.approx([1 / 60, 1 / 60])


@pytest.mark.parametrize("wrong", ["other scores", "one row", "large", "half", "half keys", "cap", "sinks"])
def test_row_sums_that_do_not_belong_are_left_aside(wrong):
    """Found out by the rows' own sums, or not fit to keep entropies exact."""
    query, key, _ = random_inputs(0, 1, 4, 2, 50, 8, size=200.0 if wrong == "large" else 1.0)
    sums, options = logsumexp(query, key, 0.5), {}
    if wrong == "other scores":
        sums[0, 2] += 0.01
    elif wrong == "one row":  # not one of the few that are tried
        sums[0, 2, 10] += 0.01
    elif wrong == "half":
        sums = sums.bfloat16()
    elif wrong == "half keys":
        key = key.bfloat16()
    elif wrong == "cap":
        options = {"softcap": 2.0}
    elif wrong == "sinks":
        options = {"sink_logits": torch.zeros(4)}
    found = summarize(query, key, scale=0.5, row_lse=sums, **options)
    wanted = summarize(query, key, scale=0.5, **options)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_rows_sum_to_one_by_columns():
    """Σ c = T for a softmax, whatever the blocks."""
    query, key, _ = random_inputs(3, 2, 4, 2, 700, 16)
    found = summarize(query, key, scale=0.25)
    assert torch.allclose(found.column_sums.sum(-1), torch.full((2, 4), 700.0), rtol=1e-6)
    assert torch.equal(found.diagonal[..., 0], torch.ones(2, 4))


@pytest.mark.parametrize("known", [False, True])
def test_memory_grows_with_the_length_and_not_with_its_square(known):
    """No operation ever makes a tensor of T × T numbers."""
    length = 3000
    query, key, _ = random_inputs(0, 1, 2, 1, length, 8)
    sums = logsumexp(query, key, 1.0) if known else None
    with Largest() as seen:
        summarize(query, key, scale=1.0, row_lse=sums)
    assert length <= seen.elements <= 2 * attention_summary.ELEMENTS + 1 < length**2


def test_inputs_are_left_alone_and_no_graph_is_kept():
    """Queries that need a gradient keep it, and their numbers."""
    query, key, _ = random_inputs(0, 1, 2, 2, 20, 4)
    query.requires_grad_()
    before = query.detach().clone(), key.clone()
    found = summarize(query, key, scale=1.0, softcap=2.0)
    assert torch.equal(query.detach(), before[0]) and torch.equal(key, before[1])
    assert not any(tensor.requires_grad for tensor in found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": torch.zeros(1, 3, 5, 4)}, "head a multiple of kv"),
        ({"key": torch.zeros(1, 2, 6, 4)}, "do not belong together"),
        ({"position": 5}, "there are keys 0..4"),
        ({"position": -1}, "there are keys 0..4"),
        ({"window": 0}, "window=0: pass a positive number"),
        ({"chunk": -1}, "chunk=-1: pass a positive number"),
        ({"softcap": 0.0}, "softcap=0.0: pass a positive number"),
        ({"sink_logits": torch.zeros(3)}, "pass one for each of 4 heads"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    given = {"query": torch.zeros(1, 4, 5, 4), "key": torch.zeros(1, 2, 5, 4), "scale": 1.0, **changes}
    with pytest.raises(ValueError, match=words):
        summarize(given.pop("query"), given.pop("key"), **given)
