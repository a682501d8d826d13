"""Is every token scored once, with as much context as fits?"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import hugging_face, tokenizer

from mcr_lens import load_model
from mcr_lens.readouts.windows import Tokens, cut, read_texts, split


def reading_llama():
    return load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)


def text(n: int, bos: int = 0) -> Tokens:
    return Tokens(torch.arange(100, 100 + n), bos)


def scored(windows, number: int = 0) -> list[int]:
    return [int(t) for w in windows if w.text == number for t in w.targets]


@settings(deadline=None)
@given(st.integers(2, 70), st.integers(0, 1), st.integers(2, 20), st.data())
def test_every_token_is_scored_once_and_in_order(n, bos, window, data):
    stride = data.draw(st.integers(1, window - 1))
    windows = cut([text(n, bos)], 64, window, stride)
    assert scored(windows) == list(range(101, 100 + n))
    for i, w in enumerate(windows):
        ids = w.prompt.ids.tolist()
        assert 2 <= len(ids) <= window and 1 <= w.first_scored < len(ids)
        assert ids[bos:] == list(range(ids[-1] - len(ids) + 1 + bos, ids[-1] + 1))  # what came before
        assert not bos or ids[0] == 100
        assert i == 0 or len(w.targets) <= stride


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(0, 1), st.floats(0.05, 0.95))
def test_a_split_loses_nothing(n, bos, share):
    texts = [text(n, bos), text(n + 3, bos)]
    try:
        first, rest = split(texts, share)
    except ValueError as error:
        assert "cannot be parted" in str(error)
        return
    tokens = [i for part in (first, rest) for t in part for i in t.ids[t.bos :].tolist()]
    assert tokens == [i for t in texts for i in t.ids[bos:].tolist()]
    assert all(len(t.ids) >= 2 for t in (*first, *rest))


def test_the_default_is_the_context_and_half_of_it():
    windows = cut([text(20)], 8)
    assert [len(w.prompt.ids) for w in windows] == [8, 8, 8, 8]
    assert [len(w.targets) for w in windows] == [7, 4, 4, 4]
    assert len(cut([text(3000)], None)[0].prompt.ids) == 1024


def test_what_cannot_be_cut_is_said():
    for window, stride, message in (
        (65, None, r"window=65: pass a number of tokens in 2\.\.64, the model's context"),
        (1, None, "window=1: pass a number of tokens in 2"),
        (True, None, "window=True: pass"),
        (8, 8, r"stride=8: pass a number of tokens in 1\.\.7, below the window"),
        (8, 0, "stride=0: pass"),
        (8, 1.5, r"stride=1\.5: pass"),
    ):
        with pytest.raises(ValueError, match=message):
            cut([text(9)], 64, window, stride)
    with pytest.raises(ValueError, match="text 1 has a single token and nothing to predict"):
        cut([text(4), text(1)], 64)
    with pytest.raises(ValueError, match="2 tokens cannot be parted at 50% so that both sides have"):
        split([text(2)], 0.5)


def test_files_are_texts_as_they_stand(tmp_path):
    llama = reading_llama()
    content = " = A heading = \n\nabc <unk> de\n"
    (tmp_path / "wiki.txt").write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    from_file, from_string = (
        read_texts(llama, given)[0].ids.tolist() for given in (tmp_path / "wiki.txt", content)
    )
    assert from_file == from_string
    long = read_texts(llama, "abc " * 100)[0]
    assert len(long.ids) > llama.cfg.n_ctx and long.bos == 1  # windows are for that
    assert read_texts(llama, "abc", prepend_bos=False)[0].bos == 0
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_texts(llama, tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"is not UTF-8 text \(byte 3\)"):
        read_texts(llama, [tmp_path / "latin.txt"])


def test_ids_that_begin_with_bos_keep_it_in_every_window():
    llama = reading_llama()
    ids = [0, *range(5, 40)]
    windows = cut(read_texts(llama, [ids]), 64, 10, 5)
    assert len(windows) > 2 and {int(w.prompt.ids[0]) for w in windows} == {0}


def test_whole_numbers_of_numpy_are_whole_numbers():
    texts = read_texts(reading_llama(), [[*range(5, 40)]])
    one, two = cut(texts, 64, 10, 5), cut(texts, 64, np.int64(10), np.int32(5))
    assert [w.prompt.ids.tolist() for w in one] == [w.prompt.ids.tolist() for w in two]
