"""Does multiple choice say at the last depth what lm-evaluation-harness says of the same model?"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from models import hugging_face, tokenizer

from mcr_lens.measurement import PromptWarning
from mcr_lens.models import demo_folder
from mcr_lens.readouts.choice_sources import read_choices
from mcr_lens.readouts.continuations import continuation_log_likelihood
from mcr_lens.readouts.multiple_choice import multiple_choice

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (--group harness)")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

TASKS = Path(lm_eval.__file__).parent / "tasks"
SHARED = Path(__file__).parents[2] / "shared"
ARC = SHARED / "data/multiple_choice/arc_easy_1000.jsonl"
STORIES = SHARED / "models/stories260K"

PAIRS = [
    ("Question: what is hot?\nAnswer:", " ice"),
    ("Question: what is hot?\nAnswer: ", "the sun"),  # the space belongs to the continuation
    ("Question: what is hot?\n\n ", "the sun"),
    ("a", "b"),
    ("a", "b"),
    ("ab", "c"),  # what the model is given is the same as in the next pair
    ("a", "bc"),
    ("", "nothing came before"),
    ("Hä? Naïve — ", "日本"),
    ("A longer text of a few words, and then", " several tokens, and a comma."),
]
"""Contexts and continuations that are encoded in every way there is."""

TOO_LONG = [("x" * 100, " end"), ("y" * 64, "z"), ("y" * 63, "zz"), ("y" * 65, "zz"), ("ab", "c" * 64)]
"""For a model of 64 tokens, which reads bytes; the last token is never given to it."""


def of_harness(model, words, pairs, **options):
    """Log-likelihoods and greedy or not, as the harness has them."""
    # Its cache of what is given to the model reads the wrong position where two pairs are cut differently.
    harness = HFLM(pretrained=model, tokenizer=words, batch_size=4, logits_cache=False, **options)
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    said = harness.loglikelihood(asked, disable_tqdm=True)
    return np.array([likely for likely, _ in said]), np.array([greedy for _, greedy in said])


def agrees(model, words, pairs, prepend_bos="auto", **options):
    """Ours at the last depth is theirs."""
    likely, greedy = of_harness(model, words, pairs, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ contexts were too long", PromptWarning)
        ours = continuation_log_likelihood(
            model, pairs, tokenizer=words, prepend_bos=prepend_bos, progress=False
        ).isel(depth=-1)
    np.testing.assert_allclose(ours["log_likelihood"], likely, atol=1e-4, rtol=1e-6)
    np.testing.assert_array_equal(ours["is_greedy"], greedy)
    return greedy


def greedy_pairs(model, words, contexts):
    """Contexts continued by the one or two tokens that the model finds most likely."""
    found = []
    for context in contexts:
        ids = words(context, return_tensors="pt")["input_ids"]
        for _ in range(2):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
            whole = words.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            found.append((context, whole.removeprefix(context)))
    return [(context, rest) for context, rest in found if rest.strip()]


@pytest.mark.parametrize(
    "family, prepends, prepend_bos, options",
    [
        ("gpt2", False, "auto", {}),  # no BOS of its own
        ("gpt2", False, False, {"add_bos_token": False}),
        ("llama", True, "auto", {}),  # a BOS that the tokenizer prepends
        ("llama", True, "auto", {"add_bos_token": True}),
        ("llama", True, False, {"add_bos_token": False}),
        ("neox", None, False, {}),  # a BOS that it does not prepend: the harness leaves it out
        ("gemma3", True, "auto", {}),
    ],
)
def test_pairs(family, prepends, prepend_bos, options):
    """The same numbers for every way to encode a pair, and for contexts that are cut."""
    words = tokenizer(bos=prepends is not False, prepends=bool(prepends))
    agrees(hugging_face(family), words, PAIRS + TOO_LONG, prepend_bos, **options)


@pytest.mark.demo
def test_demo():
    """The bundled model and its tokenizer, greedy continuations among them."""
    model = tf.AutoModelForCausalLM.from_pretrained(demo_folder()).eval()
    words = tf.AutoTokenizer.from_pretrained(demo_folder())
    pairs = PAIRS + greedy_pairs(model, words, ["Once upon a time", "The", "Who is it? It"])
    own = words("a")["input_ids"][0] == words.bos_token_id
    assert agrees(model, words, pairs, "auto" if own else False).any()


RECORDS = {
    "arc/arc_easy.yaml": [
        {
            "question": f"Which of these is {what}?",
            "choices": {"text": texts, "label": labels},
            "answerKey": labels[1],
        }
        for what, texts, labels in (
            ("hot", ["ice", "the sun itself", "snow"], ["A", "B", "C"]),
            ("wet", ["sand", "a sea", "one dry rock", "dust"], ["1", "2", "3", "4"]),
            ("big", ["a mouse", "an elephant in a house", "a fly", "an ant"], ["A", "B", "C", "D"]),
        )
    ],
    "hellaswag/hellaswag.yaml": [
        {
            "activity_label": activity,
            "ctx_a": "A man  sits [header] on a chair. ",
            "ctx_b": "the MAN",
            "ctx": "unused",
            "endings": ["[substeps] runs  away.", "cuts hair. [title] And", "eats", "is [x] there."],
            "label": label,
        }
        for activity, label in (("Cutting hair", "1"), ("Eating ", "2"), ("[a] Sitting", "3"))
    ],
    "winogrande/default.yaml": [
        {"sentence": sentence, "option1": "Ann", "option2": "Bea", "answer": answer}
        for sentence, answer in (
            ("Ann helped Bea since _ was ill.", "2"),
            ("_ told Bea that Ann would leave.", "1"),
            ("He asked for  _  and waited.", "1"),
        )
    ],
}
"""Records in the form of each benchmark, by the harness' own description of the task."""


@pytest.mark.parametrize("name", RECORDS)
def test_tasks(name, tmp_path, monkeypatch):
    """The harness' own tasks on local records: the same texts, log-likelihoods and accuracies."""
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[name]))
    model, words = hugging_face("gpt2"), tokenizer(bos=False)
    told, samples = by_harness(name, file, model, words, tmp_path, monkeypatch)
    items = read_choices(file)
    for item, sample in zip(items, samples, strict=True):
        assert list(zip(item.contexts, item.continuations, strict=True)) == sample["arguments"]
    compare(multiple_choice(model, file, tokenizer=words, progress=False), told, samples)


def test_arc_easy(tmp_path, monkeypatch):
    """A real model on real questions: the last depth is what the harness reports, item by item."""
    if not (ARC.is_file() and STORIES.is_dir()):
        pytest.skip("the real questions and the real model are not here")
    lines = ARC.read_text().splitlines()[:40]
    file = tmp_path / "arc.jsonl"
    file.write_text("".join(json.dumps(as_arc(json.loads(line))) + "\n" for line in lines))
    model = tf.AutoModelForCausalLM.from_pretrained(STORIES).eval()
    words = tf.AutoTokenizer.from_pretrained(STORIES)
    told, samples = by_harness("arc/arc_easy.yaml", file, model, words, tmp_path, monkeypatch)
    ours = multiple_choice(model, ARC, tokenizer=words, limit=40, progress=False)
    compare(ours, told, samples)


def as_arc(record):
    """llm-foundry's record in the form of the hub."""
    labels = [chr(ord("A") + number) for number in range(len(record["choices"]))]
    return {
        "question": record["query"].removeprefix("Question: "),
        "choices": {"text": record["choices"], "label": labels},
        "answerKey": labels[record["gold"]],
    }


def by_harness(name, file, model, words, folder, monkeypatch):
    """What the harness reports of one of its tasks, whose records come from a file instead."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    (folder / "here.yaml").write_text(
        f"include: {TASKS / name}\ntask: here\ntag: null\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs:\n  data_files:\n    validation: {file}\n"
        "training_split: null\ntest_split: null\nvalidation_split: validation\n"
    )
    report = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=words, batch_size=8),
        tasks=["here"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    return report["results"]["here"], sorted(report["samples"]["here"], key=lambda sample: sample["doc_id"])


def compare(ours, told, samples):
    """Log-likelihoods, right or wrong, and accuracies at the last depth."""
    ours = ours.isel(depth=-1)
    for number, sample in enumerate(samples):
        theirs = [likely for likely, _ in sample["filtered_resps"]]
        likely = ours["log_likelihood"][number].values
        np.testing.assert_allclose(likely[: len(theirs)], theirs, atol=1e-4, rtol=1e-6)
        assert np.isnan(likely[len(theirs) :]).all()
        assert ours["correct"][number] == sample["acc"]
        assert ours["correct_norm"][number] == sample.get("acc_norm", sample["acc"])
    assert float(ours["accuracy"]) == pytest.approx(told["acc,none"], abs=1e-12)
    if "acc_norm,none" in told:
        assert float(ours["accuracy_norm"]) == pytest.approx(told["acc_norm,none"], abs=1e-12)
