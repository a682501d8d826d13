"""Is a choice scored as the model scores it, at every depth, whatever runs beside it?"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import bridge, hugging_face, tokenizer

from mcr_lens import load, load_model, plot_readouts, save, serve, zero_bos_mlp
from mcr_lens.measurement import PromptWarning
from mcr_lens.readouts.choice_items import ChoiceItem
from mcr_lens.readouts.choice_scores import chance, score, wilson
from mcr_lens.readouts.continuations import continuation_log_likelihood
from mcr_lens.readouts.multiple_choice import multiple_choice
from mcr_lens.readouts.unembedding import CannotReadOutError

ITEMS = [
    ChoiceItem(("The sky is",) * 3, (" blue", " green", " a very long word"), 0),
    ChoiceItem(("Two and two",) * 2, (" four", " five"), 1),
    ChoiceItem(("Ann helped Bea since Ann", "Ann helped Bea since Bea"), (" was ill.",) * 2, 1),
    ChoiceItem(("",) * 4, ("a", "b", "cc", "d"), 2),
    ChoiceItem(("One letter:",) * 4, (" a", " b", " c", " d"), 3),
]
"""With 2 to 4 choices, a context per choice, no context at all, and choices that share what is given."""

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def words():
    return tokenizer(prepends=True)


@pytest.fixture(scope="module")
def llama_reads(words):
    return load_model(hugging_face("llama"), tokenizer=words, verbose=False)


def directly(model, words, context, continuation):
    """Σ ln p of the continuation's tokens from the logits of the raw model."""
    start = len(words(context)["input_ids"]) if context else 1
    ids = torch.tensor([words(context + continuation)["input_ids"]])
    with torch.no_grad():
        said = model(ids).logits[0].double().log_softmax(-1)
    return float(sum(said[place - 1, ids[0, place]] for place in range(start, ids.shape[1])))


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2", "gpt_oss", "opt"])
def test_last_depth(family, words):
    """At the last depth a choice has the log-likelihood that the model's own logits give it."""
    model = hugging_face(family)
    ds = multiple_choice(model, ITEMS, tokenizer=words, **QUIET)
    assert ds.attrs["score"] == "accuracy" and ds.attrs["n_items"] == len(ITEMS)
    for number, item in enumerate(ITEMS):
        wanted = [
            directly(model, words, context, continuation)
            for context, continuation in zip(item.contexts, item.continuations, strict=True)
        ]
        likely = ds["log_likelihood"].isel(item=number, depth=-1).values
        np.testing.assert_allclose(likely[: len(wanted)], wanted, atol=1e-4, rtol=1e-5)
        assert np.isnan(likely[len(wanted) :]).all()
        assert bool(ds["correct"][number, -1]) == (int(np.argmax(wanted)) == item.gold)
        by_character = np.array(wanted) / item.lengths
        assert bool(ds["correct_norm"][number, -1]) == (int(np.argmax(by_character)) == item.gold)


def test_every_depth(llama_reads, words):
    """Below, the stream is read by the final norm and the unembedding: written out for one choice."""
    model, item = hugging_face("llama"), ITEMS[0]
    ds = multiple_choice(llama_reads, [item], **QUIET)
    start = len(words(item.contexts[0])["input_ids"])
    ids = torch.tensor([words(item.contexts[0] + item.continuations[0])["input_ids"]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        for depth, state in enumerate(states[:-1]):  # the last one is behind the norm
            said = model.lm_head(model.model.norm(state))[0].log_softmax(-1)
            wanted = sum(float(said[p - 1, ids[0, p]]) for p in range(start, ids.shape[1]))
            assert float(ds["log_likelihood"][0, 0, depth]) == pytest.approx(wanted, abs=1e-4)


def test_accuracies(llama_reads):
    """Shares, chance and samples are what the log-likelihoods say, written out."""
    ds = multiple_choice(llama_reads, ITEMS, **QUIET)
    for depth in ds["depth"].values:
        right, by_character, probability = [], [], []
        for number, item in enumerate(ITEMS):
            n = len(item.continuations)
            likely = ds["log_likelihood"].sel(item=number, depth=depth).values[:n]
            lengths = [len(text.strip()) for text in item.continuations]
            assert ds["n_characters"].sel(item=number).values[:n].tolist() == lengths
            right.append(int(np.argmax(likely)) == item.gold)
            by_character.append(int(np.argmax(likely / lengths)) == item.gold)
            probability.append(np.exp(likely[item.gold]) / np.exp(likely).sum())
        at = ds.sel(depth=depth)
        assert float(at["accuracy"]) == pytest.approx(np.mean(right))
        assert float(at["accuracy_norm"]) == pytest.approx(np.mean(by_character))
        assert float(at["correct_probability"]) == pytest.approx(np.mean(probability))
        for name in ("accuracy", "accuracy_norm", "correct_probability"):
            assert 0 <= at[f"{name}_low"] <= at[name] <= at[f"{name}_high"] <= 1
    assert float(ds["chance"]) == pytest.approx((1 / 3 + 1 / 2 + 1 / 2 + 1 / 4 + 1 / 4) / 5)
    assert ds["gold"].values.tolist() == [0, 1, 1, 2, 3]
    assert ds["n_choices"].values.tolist() == [3, 2, 2, 4, 4]


def test_order_does_not_matter(llama_reads):
    """Questions in another order are the same questions."""
    ds = multiple_choice(llama_reads, ITEMS, **QUIET)
    turned = multiple_choice(llama_reads, ITEMS[::-1], **QUIET)
    np.testing.assert_allclose(
        ds["log_likelihood"], turned["log_likelihood"].isel(item=slice(None, None, -1)), atol=1e-5
    )
    np.testing.assert_allclose(ds["accuracy"], turned["accuracy"])
    np.testing.assert_allclose(ds["accuracy_low"], turned["accuracy_low"])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_batches_do_not_matter(family, words):
    """One at a time gives what eight at a time give."""
    model = load_model(hugging_face(family), tokenizer=words, verbose=False)
    one = multiple_choice(model, ITEMS, batch_size=1, **QUIET)
    eight = multiple_choice(model, ITEMS, batch_size=8, **QUIET)
    np.testing.assert_allclose(one["log_likelihood"], eight["log_likelihood"], atol=1e-5, rtol=1e-6)


def test_another_choice_changes_no_other(llama_reads):
    """A choice more leaves the others as they are, in every question."""
    ds = multiple_choice(llama_reads, ITEMS, **QUIET)
    more = [
        replace(
            item,
            contexts=(*item.contexts, item.contexts[0]),
            continuations=(*item.continuations, " the same"),
            lengths=(),
        )
        for item in ITEMS
    ]
    wider = multiple_choice(llama_reads, more, **QUIET)
    for number, item in enumerate(ITEMS):
        n = len(item.continuations)
        np.testing.assert_allclose(
            ds["log_likelihood"][number, :n], wider["log_likelihood"][number, :n], atol=1e-5
        )


def test_served_is_bridge(llama_reads, words):
    """As it is served, and behind a bridge: the same numbers at every depth."""
    served = multiple_choice(serve(hugging_face("llama"), tokenizer=words), ITEMS, **QUIET)
    bridged = multiple_choice(llama_reads, ITEMS, **QUIET)
    np.testing.assert_allclose(served["log_likelihood"], bridged["log_likelihood"], atol=1e-4, rtol=1e-5)
    np.testing.assert_array_equal(served["correct"], bridged["correct"])


def test_runs_once(llama_reads):
    """A question that comes twice costs nothing, nor do single tokens behind one context."""
    rows = []
    counting = llama_reads.hooks(fwd_hooks=[("embed.hook_in", lambda ids, hook: rows.append(len(ids)))])
    with counting:
        ds = multiple_choice(llama_reads, [ITEMS[1], ITEMS[1]], **QUIET)
    np.testing.assert_array_equal(ds["log_likelihood"][0], ds["log_likelihood"][1])
    letters = ChoiceItem(("A letter: ",) * 4, ("a", "b", "c", "d"), 0)
    few: list[int] = []
    with llama_reads.hooks(fwd_hooks=[("embed.hook_in", lambda ids, hook: few.append(len(ids)))]):
        multiple_choice(llama_reads, [letters], **QUIET)
    trial = 1  # the unembedding is found on one row
    assert sum(rows) == 2 + trial and sum(few) == 1 + trial


class Scaled:
    """A lens that scales the stream, by as much as the depth says."""

    def __init__(self, *factors):
        self.factors = factors

    def translate(self, stream, depth):
        return stream * self.factors[depth]


def test_lens(llama_reads):
    """The stream is translated before it is read, at every depth but the last."""
    plain = multiple_choice(llama_reads, ITEMS, **QUIET)
    scaled = multiple_choice(llama_reads, ITEMS, lens=Scaled(2, 2, 2, 2, 2), **QUIET)
    # An RMSNorm undoes the scale, but for its epsilon.
    np.testing.assert_allclose(plain["log_likelihood"], scaled["log_likelihood"], atol=2e-2)
    turned = multiple_choice(llama_reads, ITEMS, lens=Scaled(-1, 1, 1, 1, -1), **QUIET)
    same = np.isclose(plain["log_likelihood"], turned["log_likelihood"], atol=1e-4, equal_nan=True)
    assert same.all((0, 1)).tolist() == [False, True, True, True, True]
    assert (plain.attrs["lens"], scaled.attrs["lens"]) == ("logit lens", "tuned lens")


def test_interventions(llama_reads):
    """Edits are made before anything is read, and depths before them stay."""
    plain = multiple_choice(llama_reads, ITEMS, **QUIET)
    cut = multiple_choice(llama_reads, ITEMS, interventions=[zero_bos_mlp(1)], **QUIET)
    same = np.isclose(plain["log_likelihood"], cut["log_likelihood"], atol=1e-6, equal_nan=True)
    assert same[:, :, :2].all() and not same[:, :, -1].all()


def test_pairs(llama_reads):
    """Pairs are what choices are made of; white space belongs to the continuation wherever it stands."""
    pairs = list(zip(ITEMS[0].contexts, ITEMS[0].continuations, strict=True))
    ds = continuation_log_likelihood(llama_reads, pairs, **QUIET)
    items = multiple_choice(llama_reads, ITEMS[:1], **QUIET)
    np.testing.assert_array_equal(ds["log_likelihood"], items["log_likelihood"][0])
    assert ds["n_tokens"].values.tolist() == [5, 6, 17]
    assert (ds["mean_log_likelihood"] == ds["log_likelihood"].mean("pair")).all()
    moved = continuation_log_likelihood(llama_reads, [("The sky is ", "blue")], **QUIET)
    np.testing.assert_allclose(moved["log_likelihood"][0], ds["log_likelihood"][0], atol=1e-5)
    assert set(np.unique(ds["is_greedy"])) <= {0.0, 1.0}


def test_greedy(llama_reads, words):
    """Of all characters behind a context one is greedy, the model's own next token, and no other."""
    seen = 0
    characters = [words.decode([i]) for i in range(4, 128)]
    characters = [c for c in characters if c.isprintable() and len(words(f"x{c}")["input_ids"]) == 3]
    for context in ("The sky is", "Two and", "One", "Ann", "Bea", "c"):
        ds = continuation_log_likelihood(llama_reads, [(context, c) for c in characters], **QUIET)
        with torch.no_grad():
            said = hugging_face("llama")(torch.tensor([words(context)["input_ids"]])).logits[0, -1]
        best = [words(f"x{c}")["input_ids"][-1] == int(said.argmax()) for c in characters]
        np.testing.assert_array_equal(ds["is_greedy"][:, -1], best)
        assert (ds["is_greedy"].sum("pair") <= 1).all()
        seen += sum(best)
    assert seen > 0


def test_cut_on_the_left(words):
    """What is too long loses its beginning, is said, and is scored as what is left."""
    model = serve(hugging_face("gpt2"), tokenizer=tokenizer(bos=False))
    pairs = [("x" * 100 + "y" * 60, "zzzz"), ("y" * 60, "zzzz"), ("y" * 61, "zzzz")]
    with pytest.warns(PromptWarning, match="1 of 3 contexts were too long for the 64 tokens the model takes"):
        ds = continuation_log_likelihood(model, pairs, **QUIET)
    assert ds["truncated"].values.tolist() == [True, False, False]
    # One token more than the context: the last one is asked for and never given.
    cut = continuation_log_likelihood(model, [("x" + "y" * 60, "zzzz")], **QUIET)
    np.testing.assert_allclose(ds["log_likelihood"][0], cut["log_likelihood"][0], atol=1e-5)
    items = [ChoiceItem(("x" * 100,) * 2, (" a", " b"), 0)]
    with pytest.warns(PromptWarning, match="2 of 2 contexts were too long"):
        multiple_choice(model, items, **QUIET)


def test_results(llama_reads, tmp_path):
    """What comes out is named after its source, kept in a file, and drawn."""
    file = tmp_path / "weather.jsonl"
    records = [{"query": "Question: Is it hot?", "choices": ["yes", "no"], "gold": 1}] * 2
    file.write_text("\n".join(map(json.dumps, records)))
    ds = multiple_choice(llama_reads, file, **QUIET)
    assert (ds.attrs["task"], ds.attrs["style"]) == ("weather", "query")
    assert multiple_choice(llama_reads, records, **QUIET).attrs["task"] == "choice (query)"
    assert multiple_choice(llama_reads, records, task="heat", limit=1, **QUIET).attrs["task"] == "heat"
    save(ds, tmp_path / "result.nc")
    kept = load(tmp_path / "result.nc")
    np.testing.assert_array_equal(kept["log_likelihood"], ds["log_likelihood"])
    drawn = plot_readouts(ds)
    assert [a.text for a in drawn.layout.annotations if "likeliest" in (a.text or "")]


def test_refusals(llama_reads, words):
    """Everything is refused before the model runs, in one sentence."""
    with pytest.raises(ValueError, match="question 0, choice 1: 'x' has no tokens of its own behind 'a'"):
        multiple_choice(merging(), [ChoiceItem(("a", "a"), ("b", "x"), 0)], **QUIET)
    with pytest.raises(
        ValueError, match="pair 1: '' has no tokens of its own behind 'a'; begin it with a space"
    ):
        continuation_log_likelihood(llama_reads, [("a", "b"), ("a", "")], **QUIET)
    with pytest.raises(ValueError, match=r"pair 0: 'c+' has 65 tokens and the model takes 64; leave it out"):
        continuation_log_likelihood(llama_reads, [("a", "c" * 65)], **QUIET)
    with pytest.raises(ValueError, match="no pairs were given; pass at least one"):
        continuation_log_likelihood(llama_reads, [], **QUIET)
    for pairs, said in (("ab", "pairs came as str"), ([("a",)], "pair 0 is not two texts"), (3, "as int")):
        with pytest.raises(TypeError, match=said):
            continuation_log_likelihood(llama_reads, pairs, **QUIET)
    with pytest.raises(
        TypeError, match="lens came as str; pass None for the logit lens, or a tuned lens, which"
    ):
        multiple_choice(llama_reads, ITEMS, lens="tuned", **QUIET)
    with pytest.raises(ValueError, match="prepend_bos='yes': pass 'auto', True or False"):
        multiple_choice(llama_reads, ITEMS, prepend_bos="yes", **QUIET)
    with pytest.raises(ValueError, match="batch_size=0: pass a positive integer or 'auto'"):
        multiple_choice(llama_reads, ITEMS, batch_size=0, **QUIET)
    with pytest.raises(TypeError, match="task=3: pass what the questions are called, as text"):
        multiple_choice(llama_reads, ITEMS, task=3, **QUIET)
    with pytest.raises(ValueError, match="has no tokenizer, so it cannot read text; pass tokenizer="):
        multiple_choice(bridge("gpt2"), ITEMS, **QUIET)
    with pytest.raises(CannotReadOutError, match="looks both ways"):
        multiple_choice(hugging_face("bert"), ITEMS, tokenizer=words, **QUIET)
    bare = tokenizer(bos=False)
    bare.eos_token = None
    with pytest.raises(ValueError, match="a context is empty, and the tokenizer has neither BOS nor EOS"):
        continuation_log_likelihood(hugging_face("gpt2"), [("", "a")], tokenizer=bare, **QUIET)
    training = hugging_face("gpt2").train()
    with pytest.raises(ValueError, match="the model is in training mode"):
        multiple_choice(training, ITEMS, tokenizer=words, **QUIET)


def merging():
    """A model whose tokenizer makes one token of "ax"."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    written = json.loads(tokenizer().backend_tokenizer.to_str())
    written["model"]["vocab"] = {
        "<bos>": 0,
        "<eos>": 1,
        "<pad>": 2,
        "<unk>": 3,
        "a": 4,
        "b": 5,
        "x": 6,
        "ax": 7,
    }
    written["model"]["merges"] = [["a", "x"]]
    core = Tokenizer.from_str(json.dumps(written))
    words = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>")
    return serve(hugging_face("gpt2"), tokenizer=words)


def test_scores_by_hand():
    """Two questions at one depth, one of them with two choices only."""
    likely = np.log(np.array([[[0.4], [0.1], [0.2]], [[0.1], [0.3], [np.nan]]]))
    found = score(likely, np.array([[2.0, 1.0, 8.0], [4.0, 4.0, np.nan]]), np.array([2, 1]))
    assert found.correct[:, 0].tolist() == [0.0, 1.0]
    # ln 0.4 / 2 = −0.46, ln 0.1 / 1 = −2.3, ln 0.2 / 8 = −0.20: the last one is likeliest by character.
    assert found.correct_norm[:, 0].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(found.gold_probability[:, 0], [0.2 / 0.7, 0.75])
    assert chance(np.array([3, 2])) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_probabilities_of_nothing():
    """Log-likelihoods of long texts are far below what exp can tell from 0; their ratio is not."""
    found = score(np.array([[[-2000.0], [-2001.0]]]), np.ones((1, 2)), np.array([0]))
    assert found.gold_probability[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))


@pytest.mark.parametrize("right, n", [(0, 5), (5, 5), (1, 1), (3, 10), (250, 1000)])
def test_wilson(right, n):
    """Its ends are where a share would differ from the true one by 1.96 of the true one's deviations."""
    share = np.array([right / n])
    low, high = (float(end[0]) for end in wilson(share, n))
    z = 1.959963984540054
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share[0] - end) == pytest.approx(z * np.sqrt(end * (1 - end) / n), abs=1e-9)
    assert 0 <= low <= share[0] <= high <= 1
    assert (low == 0) == (right == 0) and (high == 1) == (right == n)
