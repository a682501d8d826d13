"""Does what is odd but valid work: odd text, odd tokenizers, odd precision, numpy's numbers?"""

import warnings

import models as tiny
import numpy as np
import pytest
import torch
from world import QUICK, ROWS, World, state_of

import mcr_lens as mcr

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models, made once."""
    return World(tmp_path_factory.mktemp("world"))


ODD = {
    "emoji": "\U0001f600\U0001f525 the sky",
    "an emoji of several parts": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "combining characters": "e\u0301a\u0308o\u0302",
    "marks without a letter": "\u0301\u0301\u0301",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202e abc",
    "NUL": "a\0b\0c",
    "spaces": "     ",
    "line ends": "\n\n\r\n\t",
    "controls": "\x01\x02\x7f\x9f",
    "the private use area": "\ue000\U000f0000",
    "what looks like BOS": "<bos> text",
    "a template": "{0} %s {{}} ${x} \\n",
    "one character": "x",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("door", ["reader", "served"])
def test_odd_text(world, name, door):
    """It is measured, kept in the result, and survives the file."""
    model = getattr(world, door)
    before = state_of(model)
    ds = mcr.measure(model, [ODD[name], "an ordinary one"], ["bos_norm", "matrix_entropy"], **QUICK)
    assert np.isfinite(ds.bos_norm).all() and np.isfinite(ds.matrix_entropy).all()
    assert ds.text.values[0] == ODD[name].replace("\0", "\ufffd")
    again = mcr.load(mcr.save(ds, world.folder / f"{door}.nc"))
    assert again.text.values.tolist() == ds.text.values.tolist()
    assert state_of(model) == before


def test_a_million_characters_are_cut_to_the_context(world):
    """With a warning that says so, and the same numbers as the part that fits."""
    long = "abc " * 250_000
    with pytest.warns(mcr.PromptWarning, match="1 of 1 prompts were longer than 64 tokens"):
        ds = mcr.measure(world.reader, long, ["bos_norm"], **QUICK)
    assert bool(ds.truncated.all()) and int(ds.n_tokens[0]) == 64
    short = mcr.measure(world.reader, long[:63], ["bos_norm"], **QUICK)
    assert np.array_equal(ds.bos_norm, short.bos_norm)


@pytest.mark.parametrize(
    ("options", "tokens", "has_bos"),
    [({"bos": False}, 4, False), ({}, 5, True), ({"prepends": True}, 5, True)],
)
def test_tokenizers_with_and_without_bos(world, options, tokens, has_bos):
    """BOS is there once, or not at all and the result says so."""
    ds = mcr.measure(world.raw, ["text"], ["bos_norm"], tokenizer=tiny.tokenizer(**options), **QUICK)
    assert int(ds.n_tokens[0]) == tokens and bool(ds.has_bos[0]) is has_bos


def test_several_bos_in_the_ids(world):
    """Ids are taken as they are."""
    ds = mcr.measure(world.reader, [[0, 0, 0, 5], [0, 5, 0, 6]], ["bos_norm"], **QUICK)
    assert ds.n_tokens.values.tolist() == [4, 4] and bool(ds.has_bos.all())


def test_a_chat_template_is_plain_text(world):
    """A tokenizer with a template reads a prompt as it stands; the template is for the user to apply."""
    plain, chat = tiny.tokenizer(), tiny.tokenizer()
    chat.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    one, other = (mcr.measure(world.raw, ["text"], "norms", tokenizer=t, **QUICK) for t in (plain, chat))
    assert np.array_equal(one.bos_norm, other.bos_norm)
    applied = chat.apply_chat_template([{"role": "user", "content": "text"}], tokenize=False)
    ds = mcr.measure(world.raw, [applied], ["bos_norm"], tokenizer=chat, **QUICK)
    assert int(ds.n_tokens[0]) == len("<user>text") + 1


def test_half_precision_that_overflows_when_squared():
    """Norms of rows beyond 256 in float16 are finite: they are taken in float32."""
    model = tiny.hugging_face("llama", dtype=torch.float16)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(6e4)
    for door in (mcr.serve, lambda raw: mcr.load_model(raw, verbose=False)):
        ds = mcr.measure(door(model), ROWS, ["bos_norm", "matrix_entropy"], **QUICK)
        assert np.isfinite(ds.bos_norm).all() and float(ds.bos_norm[0, 0]) == pytest.approx(
            6e4 * 32**0.5, rel=1e-3
        )


def test_numbers_of_numpy(world):
    """Layers, positions, heads, seeds and cut-offs may come out of an array."""
    cut = mcr.zero_ablation("z", layers=np.int64(1), positions=np.arange(2), heads=np.array([0, 3]))
    assert cut == mcr.zero_ablation("z", layers=1, positions=[0, 1], heads=[0, 3])
    same = mcr.random_direction("resid", layers=1, seed=np.int32(3))
    assert same == mcr.random_direction("resid", layers=1, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mcr.ShortPromptWarning)
        rates = [mcr.sink_rate(world.ds, cast(0.5)) for cast in (float, np.float64)]
    assert rates[0].equals(rates[1])


def test_unicode_in_names(world, tmp_path):
    """Conditions, tasks and files may be called by anything that can be written."""
    name = "sch\u00f6n \U0001f525"
    ds = mcr.compare(world.llama, ROWS, {"clean": [], name: mcr.zero_bos_mlp(1)}, ["bos_norm"], **QUICK)
    path = tmp_path / f"{name}.nc"
    assert mcr.condition_names(mcr.load(mcr.save(ds, path))) == ["clean", name]
