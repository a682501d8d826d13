"""Are questions read as they stand there, in every style, and what is wrong with one is said in words?"""

import json

import pytest

from mcr_lens.readouts.choice_items import ChoiceItem
from mcr_lens.readouts.choice_sources import read_choices

QUERY = {"query": "Question: Is it hot?", "choices": ["yes", "not at all"], "gold": 1}
ARC = {
    "id": "a",
    "question": "Is it hot?",
    "choices": {"text": ["yes", "no", "maybe"], "label": ["A", "B", "C"]},
    "answerKey": "C",
}
NESTED = {
    "question": {
        "stem": "Is it hot?",
        "choices": [{"text": "yes", "label": "1"}, {"text": "no", "label": "2"}],
    },
    "answerKey": "1",
}
HELLASWAG = {
    "activity_label": "Cutting hair",
    "ctx_a": "A man  sits [header] here.",
    "ctx_b": "the MAN",
    "ctx": "unused",
    "endings": ["[substeps] runs  away. ", "cuts. [title] And"],
    "label": "0",
}
WINOGRANDE = {
    "sentence": "Ann helped Bea since _ was ill. ",
    "option1": "Ann",
    "option2": "Bea",
    "answer": "2",
}


def test_styles():
    """Contexts, continuations, the right one, and the characters to divide by, written out for each style."""
    assert read_choices([QUERY]) == [
        ChoiceItem(("Question: Is it hot?\nAnswer:",) * 2, (" yes", " not at all"), 1, (3, 10), "query")
    ]
    asked = "Question: Is it hot?\nAnswer:"
    assert read_choices([ARC]) == [ChoiceItem((asked,) * 3, (" yes", " no", " maybe"), 2, (3, 2, 5), "arc")]
    assert read_choices([NESTED]) == [ChoiceItem((asked,) * 2, (" yes", " no"), 0, (3, 2), "arc")]
    context = "Cutting hair: A man sits here. The man"
    assert read_choices([HELLASWAG]) == [
        ChoiceItem((context,) * 2, ("  runs away.", " cuts.. And"), 0, (11, 10), "hellaswag")
    ]
    assert read_choices([WINOGRANDE]) == [
        ChoiceItem(
            ("Ann helped Bea since Ann", "Ann helped Bea since Bea"),
            (" was ill.",) * 2,
            1,
            style="winogrande",
        )
    ]


def test_variants():
    """HellaSwag with its whole context alone; queries of other kinds; a delimiter of one's own."""
    short = {"ctx": "A man sits", "endings": ["down", "up"], "label": 1}
    assert read_choices([short])[0].contexts[0] == "A man sits"
    plain = {**QUERY, "query": "The sky is"}
    assert read_choices([plain])[0] == ChoiceItem(
        ("The sky is",) * 2, (" yes", " not at all"), 1, (3, 10), "query"
    )
    done = {**QUERY, "query": "Question: Is it hot? Answer:"}
    assert read_choices([done])[0].contexts[0] == "Question: Is it hot? Answer:"
    assert read_choices([QUERY], delimiter=" - ")[0].contexts[0] == "Question: Is it hot? -"
    assert read_choices([{**QUERY, **ARC}], style="arc")[0].style == "arc"
    own = ChoiceItem(("a", "b"), (" c", " d"), 0)
    assert read_choices([own, own], limit=1) == [own]


def test_files(tmp_path):
    """JSON Lines with blank lines and a byte order mark, and one JSON list, by either name."""
    lines, whole = tmp_path / "q.jsonl", tmp_path / "q.json"
    lines.write_bytes(
        "\ufeff".encode() + b"\n".join(json.dumps(r).encode() for r in [QUERY, QUERY]) + b"\r\n\n"
    )
    whole.write_text(json.dumps([QUERY, QUERY], indent=1))
    assert read_choices(lines) == read_choices(str(whole)) == read_choices([QUERY] * 2)
    assert len(read_choices(lines, limit=1)) == 1


@pytest.mark.parametrize("streaming", [True, False])
def test_dataset(tmp_path_factory, monkeypatch, tmp_path, streaming):
    """A Hugging Face dataset, here a folder: the split with answers by default."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path_factory.mktemp("questions")  # a name with `test` in it would be taken for a split
    for split, key in (("validation", "B"), ("test", "")):
        rows = [{**ARC, "id": f"{split}{i}", "answerKey": key} for i in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = read_choices(str(folder), streaming=streaming)
    assert found == read_choices([{**ARC, "answerKey": "B"}] * 3)
    assert len(read_choices(str(folder), streaming=streaming, limit=2)) == 2
    with pytest.raises(
        ValueError, match="split 'test', row 0 has answerKey '', which is none of its labels A"
    ):
        read_choices(str(folder), split="test", streaming=streaming)
    with pytest.raises(ValueError, match="could not be opened"):
        read_choices(str(folder / "nothing"))


@pytest.mark.parametrize(
    "record, said",
    [
        (
            {"text": "a"},
            "question 1 has the fields text, which are those of no known style (query: query, choices",
        ),
        ("a", "question 1 holds a str; every record must be an object with fields"),
        (
            {**QUERY, "gold": 2},
            "question 1 is no question: gold=2: pass the number of the right choice, 0..1",
        ),
        ({**QUERY, "gold": -1}, "has gold -1 instead of the number of a choice; read a split with answers"),
        ({**QUERY, "gold": 1.0}, "has gold 1.0 instead of the number of a choice"),
        ({**QUERY, "choices": ["a"]}, "1 contexts and 1 continuations; pass one of each for every choice"),
        ({**QUERY, "choices": ["a", ""]}, "a choice is empty, so there is nothing to score"),
        ({**QUERY, "choices": "ab"}, "holds a str in the field 'choices'; it must be a list"),
        ({**QUERY, "choices": ["a", 3]}, "holds a int in the list 'choices'; it must hold texts"),
        ({**QUERY, "query": None}, "holds a NoneType in the field 'query'; it must be text"),
        ({**ARC, "answerKey": "D"}, "has answerKey 'D', which is none of its labels A, B, C"),
        ({**ARC, "choices": ["a"]}, "has no 'choices' with the lists 'text' and 'label'"),
        ({"question": {"stem": "x"}, "answerKey": "A"}, "holds a NoneType in the field 'choices'"),
        ({**HELLASWAG, "label": ""}, "has label '' instead of the number of a choice; read a split with"),
        ({"endings": ["a", "b"], "label": 0}, "has neither 'ctx_a' and 'ctx_b' nor 'ctx'"),
        ({**WINOGRANDE, "answer": ""}, "has the answer '' instead of 1 or 2; read a split with answers"),
        ({**WINOGRANDE, "sentence": "None."}, "has no _ in its sentence where the options would stand"),
        ({**WINOGRANDE, "sentence": "It is _"}, "a choice is empty, so there is nothing to score"),
    ],
)
def test_records_that_are_none(record, said):
    """Each is refused in one sentence with its place."""
    styles = [{"query", "choices"}, {"question"}, {"endings"}, {"sentence"}]
    first = next(
        (
            good
            for good, fields in zip([QUERY, ARC, HELLASWAG, WINOGRANDE], styles, strict=True)
            if isinstance(record, dict) and fields <= set(record)
        ),
        None,
    )
    with pytest.raises(ValueError) as error:
        read_choices([first or ChoiceItem(("a", "b"), (" c", " d"), 0), record])
    assert "question 1 " in str(error.value) and said in str(error.value)


def test_one_style(tmp_path):
    """The first record says the style of all, and a line that differs is named."""
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, [QUERY, ARC])))
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2 has no field 'query', which 'query' needs; its"):
        read_choices(file)
    file.write_text(json.dumps(QUERY) + '\n{"query": \n')
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2 is not JSON"):
        read_choices(file)
    file.write_text("[{}, ")
    with pytest.raises(ValueError, match=r"q\.jsonl is not a JSON list .* in line 1, column"):
        read_choices(file)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"q\.jsonl is not UTF-8 text \(byte 3\); save it as UTF-8"):
        read_choices(file)
    file.write_text("\n")
    with pytest.raises(ValueError, match=r"q\.jsonl holds no questions; pass one or more"):
        read_choices(file)


def test_arguments(tmp_path):
    """Sources and arguments that are none."""
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl is not a file"):
        read_choices(tmp_path / "no.jsonl")
    with pytest.raises(
        TypeError, match="questions came as dict; pass a path, the name of a dataset, or a list"
    ):
        read_choices(QUERY)
    with pytest.raises(TypeError, match="questions came as int"):
        read_choices(3)
    with pytest.raises(ValueError, match="the list holds no questions; pass one or more"):
        read_choices([])
    with pytest.raises(
        ValueError, match="style='mmlu': pass 'query', 'arc', 'hellaswag', 'winogrande', or None"
    ):
        read_choices([QUERY], style="mmlu")
    with pytest.raises(ValueError, match="delimiter=' ' is a text that goes with the style 'query'"):
        read_choices([ARC], style="arc", delimiter=" ")
    for limit in (0, True, 1.5):
        with pytest.raises(ValueError, match="pass how many questions to read at most, or None for all"):
            read_choices([QUERY], limit=limit)


def test_items():
    """What is no item is refused when it is made."""
    with pytest.raises(TypeError, match="continuations hold a int; pass one text for each choice"):
        ChoiceItem(("a", "b"), (" c", 4), 0)
    with pytest.raises(TypeError, match="contexts hold a single text; pass one text for each choice"):
        ChoiceItem("ab", (" c", " d"), 0)
    with pytest.raises(ValueError, match="1 contexts and 2 continuations; pass one of each for every choice"):
        ChoiceItem(("a",), (" c", " d"), 0)
    for gold in (2, -1, True, "0"):
        with pytest.raises(ValueError, match=r"pass the number of the right choice, 0\.\.1"):
            ChoiceItem(("a", "b"), (" c", " d"), gold)
    with pytest.raises(ValueError, match=r"lengths=\(1,\): pass 2 positive numbers of characters, or none"):
        ChoiceItem(("a", "b"), (" c", " d"), 0, (1,))
    assert ChoiceItem(["a", "b"], [" c ", " de"], 0).lengths == (1, 2)
