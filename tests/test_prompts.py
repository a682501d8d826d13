"""What do prompts become before the model sees them, and does the result say so?"""

import numpy as np
import pytest
import torch
from models import bridge, hugging_face, tokenizer

from mcr_lens import PromptWarning, load_model, measure
from mcr_lens.prompts import make_batches, own_bos, read_prompts

BOS, TEXT = 0, "a sink"


def with_tokenizer(**options):
    return load_model(hugging_face("llama"), tokenizer=tokenizer(**options), verbose=False)


@pytest.fixture(scope="module", params=[False, True], ids=["adds none", "prepends"])
def reader(request):
    """Tokenizers that have a BOS: one that does not prepend it, and one that does already."""
    return with_tokenizer(prepends=request.param)


@pytest.fixture(scope="module")
def without_bos():
    """A tokenizer without BOS, where TransformerLens puts EOS in its place."""
    return with_tokenizer(bos=False)


def ids(model, prompts, **options):
    return [p.ids.tolist() for p in read_prompts(model, prompts, **options)]


@pytest.mark.parametrize("policy", ["auto", True])
def test_bos_stands_first_once(reader, policy):
    """The tokenizer's own BOS is prepended, and never doubled."""
    (row,) = ids(reader, TEXT, prepend_bos=policy)
    assert row[0] == BOS and row.count(BOS) == 1 and len(row) == 1 + len(TEXT)


@pytest.mark.parametrize("policy", ["auto", True])
def test_bos_in_the_text_is_not_doubled(reader, policy):
    """A text that begins with <bos> itself keeps that one."""
    (row,) = ids(reader, "<bos>" + TEXT, prepend_bos=policy)
    assert row.count(BOS) == 1 and row[0] == BOS
    assert ids(reader, TEXT) == [row]


def test_bos_can_be_refused(reader):
    """prepend_bos=False: no BOS, whatever the tokenizer would have done."""
    (row,) = ids(reader, TEXT, prepend_bos=False)
    assert BOS not in row and len(row) == len(TEXT)


def test_bos_policy_is_recorded(reader):
    """The result tells which token stands at position 0 and who put it there."""
    ds = measure(reader, TEXT, ["bos_norm"], progress=False)
    assert ds.attrs["bos_token"] == "<bos>"
    assert ds.has_bos.item() and ds.bos_prepended.item() and ds.position_token.item() == "<bos>"
    ds = measure(reader, "<bos>" + TEXT, ["bos_norm"], progress=False)
    assert ds.has_bos.item() and not ds.bos_prepended.item()
    ds = measure(reader, TEXT, ["bos_norm"], prepend_bos=False, progress=False)
    assert not ds.has_bos.item() and not ds.bos_prepended.item() and ds.position_token.item() == "a"


def test_without_a_bos_nothing_is_added(without_bos):
    """No BOS of its own: "auto" adds none, position 0 is the first token, and the result says so."""
    assert own_bos(without_bos.tokenizer) is None
    ds = measure(without_bos, TEXT, ["bos_norm"], progress=False)
    assert int(ds.n_tokens[0]) == len(TEXT) and ds.position_token.item() == "a"
    assert not ds.has_bos.item() and ds.attrs["bos_token"].startswith("none")


def test_prepend_bos_true_uses_the_stand_in(without_bos):
    """Asked for explicitly, the token TransformerLens uses for BOS (EOS) is prepended."""
    (row,) = ids(without_bos, TEXT, prepend_bos=True)
    assert row[0] == without_bos.tokenizer.bos_token_id == without_bos.tokenizer.eos_token_id
    assert len(row) == 1 + len(TEXT)


def test_token_ids_are_taken_as_they_are(reader):
    """Rows of ids in every accepted form; nothing is prepended."""
    row = [5, 6, 7]
    for given in (row, torch.tensor(row), torch.tensor([row]), [torch.tensor(row)], [row], np.array([row])):
        assert ids(reader, given) == [row]
    assert ids(reader, [row, [8, 9]]) == [row, [8, 9]]
    assert ids(reader, [BOS, BOS, 5]) == [[BOS, BOS, 5]]
    ds = measure(reader, [row, [BOS, 9]], ["bos_norm"], progress=False)
    assert ds.has_bos.values.tolist() == [False, True] and not ds.bos_prepended.any()
    assert ds.n_tokens.values.tolist() == [3, 2]


def test_strings_and_ids_mix(reader):
    """Text and ids in one list; every prompt keeps its place and its text."""
    ds = measure(reader, [TEXT, [5, 6, 7, 8]], ["bos_norm"], progress=False)
    assert ds.n_tokens.values.tolist() == [7, 4]
    assert ds.text.values[0] == TEXT


def test_order_of_the_prompts_is_kept(reader):
    """Sorted by length inside, returned in the order they were given."""
    texts = ["ab", "abcdefgh", "a", "abcd"]
    ds = measure(reader, texts, ["bos_norm"], batch_size=2, progress=False)
    assert ds.text.values.tolist() == texts
    for number, text in enumerate(texts):
        alone = measure(reader, text, ["bos_norm"], progress=False)
        np.testing.assert_allclose(ds.bos_norm[number], alone.bos_norm[0], rtol=1e-5)


def test_long_text_is_cut_and_said(reader):
    """Text longer than the context is cut there, with a warning and a mark."""
    with pytest.warns(PromptWarning, match=r"1 of 2 prompts were longer than 64 tokens and were cut there"):
        ds = measure(reader, ["x" * 100, TEXT], ["bos_norm"], progress=False)
    assert ds.truncated.values.tolist() == [True, False]
    assert ds.n_tokens.values.tolist() == [64, 7]


def test_max_length_cuts_text_and_ids(reader):
    """max_length is a wish, so it cuts token ids as well and needs no warning; the result says it."""
    ds = measure(reader, [TEXT, list(range(5, 15))], ["bos_norm"], max_length=4, progress=False)
    assert ds.n_tokens.values.tolist() == [4, 4] and ds.truncated.all()


def test_one_token_prompt_warns(reader):
    """A single token has nothing to be compared with: a warning, NaN there, numbers elsewhere."""
    with pytest.warns(PromptWarning, match="1 of 2 prompts have a single token"):
        ds = measure(reader, [[7], [7, 8, 9]], progress=False)
    assert ds.massive_activation_ratio[0].isnull().all()
    assert ds.massive_activation_ratio[1].notnull().all()
    assert ds.bos_norm.notnull().all() and (ds.matrix_entropy[0] == 0).all()
    assert (ds.sink_score[0] == 1).all()


def test_repeated_prompts_warn(reader):
    """Counted each time, and said."""
    with pytest.warns(PromptWarning, match="1 prompts come more than once"):
        ds = measure(reader, [TEXT, TEXT, "other"], ["bos_norm"], progress=False)
    assert ds.sizes["prompt"] == 3
    np.testing.assert_array_equal(ds.bos_norm[0], ds.bos_norm[1])


def test_prompt_hash_is_of_the_tokens(reader):
    """The same ids have the same hash, as text or as ids; other ids another."""
    (row,) = ids(reader, TEXT)
    with pytest.warns(PromptWarning, match="more than once"):
        ds = measure(reader, [TEXT, row, row[:-1]], ["bos_norm"], progress=False)
    first, second, third = ds.prompt_hash.values.tolist()
    assert first == second != third and len(first) == 16


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_hold_every_prompt_once(llama, size):
    """No batch is larger than asked, and prompts of one length are neighbours."""
    lengths = [5, 9, 5, 2, 9, 7]
    batches = make_batches(lengths, llama, size)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(batch) <= size for batch in batches)
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)


def test_automatic_batches_bound_the_memory(llama):
    """Automatic batches: tokens and the pattern of one layer stay bounded, short prompts run together."""
    assert len(make_batches([10] * 50, llama, "auto")) == 1
    for length in (1000, 4000):
        batches = make_batches([length] * 8, llama, "auto")
        assert max(map(len, batches)) * length <= 4096
        assert max(map(len, batches)) >= 1


def test_large_batches_run_in_equal_parts_on_a_processor(llama, monkeypatch):
    """No tensor beyond the limit, by the width of the MLP or by the pattern, and no part much smaller."""
    monkeypatch.setattr(
        "mcr_lens.prompts.LARGEST", 4 * llama.cfg.d_mlp * 10 * 5
    )  # five prompts of ten tokens
    assert [len(batch) for batch in make_batches([10] * 8, llama, 8)] == [4, 4]
    assert [len(batch) for batch in make_batches([10] * 8, llama, 3)] == [3, 3, 2]
    monkeypatch.setattr("mcr_lens.prompts.LARGEST", 2 * llama.cfg.n_heads * 60**2 * 3)
    assert [len(batch) for batch in make_batches([60] * 9, llama, 9)] == [3, 3, 3]
    assert [len(batch) for batch in make_batches([1000] * 2, llama, 2)] == [1, 1]
    monkeypatch.setattr(llama.cfg, "device", "cuda")
    assert [len(batch) for batch in make_batches([100] * 9, llama, 9)] == [9]


def test_special_tokens_of_the_tokenizer_stay(reader):
    """A model without tokenizer reads ids; the coordinates show the ids themselves."""
    ds = measure(bridge("llama"), [[5, 6, 7]], ["bos_norm"], progress=False)
    assert ds.position_token.item() == "5" and ds.text.item() == ""
