"""Questions with a choice of answers: what is one, and how is it made of a benchmark's record?"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcr_lens._checks import as_shown
from mcr_lens.prompt_files import names_in

HARNESS = "lm-evaluation-harness (EleutherAI, v0.4)"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class ChoiceItem:
    """One question: how each choice continues its context, and which of them is right.

    `contexts` and `continuations` hold one text per choice; the model scores log p(continuation | context).
    Where the choices continue the same context, it comes several times. A continuation begins with the space
    that parts it from its context. `gold` is the number of the right choice, from 0. `lengths` are the
    characters by which a log-likelihood is divided for the normalised accuracy; by default those of the
    continuation without the space around it. `style` says where the texts come from.

    Raises:
        TypeError: contexts or continuations that are not text.
        ValueError: fewer than two choices, differing numbers of them, an empty continuation, a gold that is
            none of the choices, or lengths that are not positive.

    Source: this library.

    >>> ChoiceItem(("The sky is", "The sky is"), (" blue", " green"), gold=0).lengths
    (4, 5)
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    lengths: tuple[int, ...] = ()
    style: str = "own"

    def __post_init__(self) -> None:
        for name in ("contexts", "continuations"):
            if not isinstance(getattr(self, name), Sequence):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"{name} came as {kind}; pass one text for each choice")
        contexts, continuations = tuple(self.contexts), tuple(self.continuations)
        for name, texts in (("contexts", contexts), ("continuations", continuations)):
            wrong = [text for text in texts if not isinstance(text, str)]
            if wrong or isinstance(getattr(self, name), str):
                kind = type(wrong[0]).__name__ if wrong else "single text"
                raise TypeError(f"{name} hold a {kind}; pass one text for each choice")
        n = len(continuations)
        if n < 2 or len(contexts) != n:
            raise ValueError(
                f"{len(contexts)} contexts and {n} continuations; pass one of each for every choice, and two "
                "choices or more"
            )
        if not all(text.strip() for text in continuations):
            raise ValueError("a choice is empty, so there is nothing to score; leave the question out")
        if isinstance(self.gold, bool) or not isinstance(self.gold, int) or not 0 <= self.gold < n:
            raise ValueError(f"gold={as_shown(self.gold)}: pass the number of the right choice, 0..{n - 1}")
        if not isinstance(self.lengths, Sequence) or isinstance(self.lengths, str):
            raise TypeError(f"lengths came as {type(self.lengths).__name__}; pass a number for each choice")
        lengths = tuple(self.lengths) or tuple(len(text.strip()) for text in continuations)
        if len(lengths) != n or not all(isinstance(length, int) and length > 0 for length in lengths):
            raise ValueError(
                f"lengths={as_shown(self.lengths)}: pass {n} positive numbers of characters, or none"
            )
        for name, value in (("contexts", contexts), ("continuations", continuations), ("lengths", lengths)):
            object.__setattr__(self, name, value)


class RecordError(ValueError):
    """A record that is not what its style says; the message goes on from the name of its place."""


def item_of(record: Any, style: str, delimiter: str | None = None) -> ChoiceItem:
    """A record of a benchmark as a question.

    Raises:
        RecordError: a field that is missing or holds something else.

    Source: templates of lm-evaluation-harness' tasks arc_easy, hellaswag and winogrande.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"holds a {type(record).__name__}; every record must be an object with fields")
    needed, make = STYLES[style]
    missing = [name for name in needed if name not in record]
    if missing:
        there = names_in(record)
        raise RecordError(
            f"has no field {missing[0]!r}, which {as_shown(style)} needs; its fields are: {there}"
        )
    try:
        return make(record, delimiter)
    except RecordError:
        raise
    except (TypeError, ValueError) as error:  # ChoiceItem says what is wrong with its texts
        raise RecordError(f"is no question: {error}") from None


def style_of(record: Any) -> str:
    """Which benchmark's fields a record has.

    Raises:
        RecordError: none that is known.

    Source: this library.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"holds a {type(record).__name__}; every record must be an object with fields")
    for name, (needed, _) in STYLES.items():
        if set(needed) <= set(record):
            return name
    known = "; ".join(f"{name}: {', '.join(needed)}" for name, (needed, _) in STYLES.items())
    there = names_in(record)
    raise RecordError(f"has the fields {there}, which are those of no known style ({known})")


def _query(record: Record, delimiter: str | None) -> ChoiceItem:
    query = _text(record, "query")
    if delimiter is None:
        asks = query.startswith("Question:") and not query.rstrip().endswith("Answer:")
        delimiter = "\nAnswer: " if asks else " "
    return _same_context(query + delimiter, _texts(record, "choices"), _number(record, "gold"), "query")


def _arc(record: Record, _: str | None) -> ChoiceItem:
    question = record["question"]
    if isinstance(question, Mapping):  # as AI2 publishes it; the hub has it flat
        stem, listed = _text(question, "stem"), _listed(question.get("choices"), "choices")
        texts = [_text(choice, "text") for choice in listed]
        labels = [_text(choice, "label") for choice in listed]
    else:
        stem, choices = _text(record, "question"), record.get("choices")
        if not isinstance(choices, Mapping):
            raise RecordError("has no 'choices' with the lists 'text' and 'label'")
        texts, labels = _texts(choices, "text"), _texts(choices, "label")
    key = record["answerKey"]
    if len(labels) != len(texts):
        raise RecordError(f"has {len(texts)} choices and {len(labels)} labels for them; give each its own")
    if key not in labels:
        raise RecordError(f"has answerKey {as_shown(key)}, which is none of its labels {', '.join(labels)}")
    return _same_context(f"Question: {stem}\nAnswer: ", texts, labels.index(key), "arc")


def _hellaswag(record: Record, _: str | None) -> ChoiceItem:
    if "ctx_a" in record and "ctx_b" in record:
        context = _text(record, "ctx_a") + " " + _text(record, "ctx_b").capitalize()
    elif "ctx" in record:
        context = _text(record, "ctx")
    else:
        raise RecordError("has neither 'ctx_a' and 'ctx_b' nor 'ctx'")
    if "activity_label" in record:
        context = f"{_text(record, 'activity_label')}: {context}"
    endings = [_clean(ending) for ending in _texts(record, "endings")]
    return _same_context(_clean(context) + " ", endings, _number(record, "label"), "hellaswag")


def _winogrande(record: Record, _: str | None) -> ChoiceItem:
    sentence = _text(record, "sentence")
    if sentence.count("_") < 1:
        raise RecordError("has no _ in its sentence where the options would stand")
    before, _, after = sentence.partition("_")
    answer = record["answer"]
    if str(answer) not in ("1", "2"):
        raise RecordError(f"has the answer {as_shown(answer)} instead of 1 or 2; read a split with answers")
    contexts = tuple(before + _text(record, name) for name in ("option1", "option2"))
    # Every choice has the same continuation, so lengths make no difference.
    return ChoiceItem(contexts, (" " + after.strip(),) * 2, int(answer) - 1, style="winogrande")


STYLES: dict[str, tuple[tuple[str, ...], Callable[[Record, str | None], ChoiceItem]]] = {
    "query": (("query", "choices", "gold"), _query),
    "arc": (("question", "answerKey"), _arc),
    "hellaswag": (("endings", "label"), _hellaswag),
    "winogrande": (("sentence", "option1", "option2", "answer"), _winogrande),
}
"""By style: the fields it is recognised by, and what makes a question of a record."""


def _same_context(context: str, choices: list[str], gold: int, style: str) -> ChoiceItem:
    """Choices behind one context; the white space at its end goes before every choice, as one scores it."""
    bare = context.rstrip(" ")
    space = context[len(bare) :]
    lengths = tuple(len(choice) for choice in choices)
    return ChoiceItem((bare,) * len(choices), tuple(space + c for c in choices), gold, lengths, style)


def _clean(text: str) -> str:
    """HellaSwag's texts without the marks that WikiHow left in them."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _text(record: Any, name: str) -> str:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, str):
        raise RecordError(f"holds a {type(value).__name__} in the field {as_shown(name)}; it must be text")
    return value


def _texts(record: Record, name: str) -> list[str]:
    values = _listed(record.get(name), name)
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong:
        raise RecordError(
            f"holds a {type(wrong[0]).__name__} in the list {as_shown(name)}; it must hold texts"
        )
    return values


def _listed(values: Any, name: str) -> list[Any]:
    if not isinstance(values, list | tuple):
        raise RecordError(f"holds a {type(values).__name__} in the field {as_shown(name)}; it must be a list")
    return list(values)


def _number(record: Record, name: str) -> int:
    """The number of a choice; HellaSwag writes it as text, and leaves it empty where answers are secret."""
    value = record[name]
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(value, bool | float) or number < 0:
        raise RecordError(
            f"has {name} {as_shown(value)} instead of the number of a choice; read a split with answers"
        )
    return number
