"""Are labelled texts read as they are written: from a file with tabs, JSON Lines, a dataset?"""

import json

import datasets
import pytest

from mcr_lens import read_labelled, read_pairs

ROWS = [('good "film', 1), ("a 'bad' one", 0), ("so , so", 1)]
TEXTS, LABELS = [text for text, _ in ROWS], [label for _, label in ROWS]
PAIRS = [("a b", "a c", 2.5), ("d", "e f", 0.0), ("g", "g", 5.0)]


def write(path, text: str):
    path.write_bytes(text.encode())
    return path


def tabbed(rows, *, end: str = "\n") -> str:
    return "".join("\t".join(map(str, row)) + end for row in rows)


# -- the same rows, however they are written --


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sst.tsv", tabbed(ROWS)),
        ("sst.tsv", "\ufeff" + tabbed(ROWS, end="\r\n")),
        ("glue.tsv", tabbed([("sentence", "label"), *ROWS])),
        ("turned.txt", tabbed([("label", "idx", "text"), *((n, i, t) for i, (t, n) in enumerate(ROWS))])),
        ("blank.tsv", "\n" + tabbed([ROWS[0], ("  ", 1), *ROWS[1:]]) + "\n\n"),
        ("rows.jsonl", "\n".join(json.dumps({"text": t, "label": n}) for t, n in ROWS)),
        ("rows.jsonl", "\n".join(json.dumps({"label": bool(n), "id": 3, "sentence": t}) for t, n in ROWS)),
    ],
)
def test_files(tmp_path, name, text):
    """With or without names, in any order of columns; quotation marks are characters."""
    file = write(tmp_path / name, text)
    for given in (file, str(file)):
        assert read_labelled(given) == (TEXTS, LABELS)
    assert read_labelled(file, limit=1) == (TEXTS[:1], LABELS[:1])


def test_columns_by_name(tmp_path):
    file = write(tmp_path / "r.tsv", tabbed([("review", "tone", "label"), ("x", "sad", 9), ("y", "gay", 8)]))
    assert read_labelled(file, text="review", label="tone") == (["x", "y"], ["sad", "gay"])
    file = write(tmp_path / "r.jsonl", '{"q": "x", "a": 3}\n{"q": "y", "a": 4}')
    assert read_labelled(file, text="q", label="a") == (["x", "y"], [3, 4])


def test_labels_are_numbers_only_where_all_are(tmp_path):
    """JSON has types of its own, and a string stays one there."""
    assert read_labelled(write(tmp_path / "a.tsv", "x\t-1\ny\t02\n"))[1] == [-1, 2]
    assert read_labelled(write(tmp_path / "a.tsv", "x\t1\ny\tb\n"))[1] == ["1", "b"]
    assert read_labelled(write(tmp_path / "a.tsv", "x\t0.5\ny\t1\n"))[1] == ["0.5", "1"]
    assert read_labelled(write(tmp_path / "a.jsonl", '{"text": "x", "label": "1"}'))[1] == ["1"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.tsv", tabbed(PAIRS)),
        ("p.tsv", tabbed([("score", "sentence2", "sentence1"), *((s, b, a) for a, b, s in PAIRS)])),
        ("p.jsonl", "\n".join(json.dumps({"sentence1": a, "sentence2": b, "label": s}) for a, b, s in PAIRS)),
        (
            "p.jsonl",
            "\n".join(json.dumps({"sentence1": a, "sentence2": b, "score": str(s)}) for a, b, s in PAIRS),
        ),
    ],
)
def test_pairs(tmp_path, name, text):
    file = write(tmp_path / name, text)
    assert read_pairs(file) == ([(a, b) for a, b, _ in PAIRS], [s for *_, s in PAIRS])


# -- datasets --


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A dataset with names of classes, on disk as a folder of Parquet files."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "reviews"
    folder.mkdir()
    names = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    for split, rows in (("train", ROWS), ("validation", [("  ", 1), *ROWS[:2]]), ("test", [("x", -1)])):
        table = {"sentence": [t for t, _ in rows], "label": [n for _, n in rows]}
        datasets.Dataset.from_dict(table, features=names).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_with_names_of_classes(saved, streaming):
    """Labels by name; the split that is asked for; blank texts left out."""
    options = {"streaming": streaming}
    assert read_labelled(str(saved), **options) == (TEXTS, ["yes", "no", "yes"])
    assert read_labelled(saved, split="validation", **options) == (TEXTS[:2], ["yes", "no"])
    assert read_labelled(saved, limit=2, **options) == (TEXTS[:2], ["yes", "no"])
    with pytest.raises(
        ValueError, match=r"split 'test', row 0: 'label' is -1, .* kept secret; choose another split"
    ):
        read_labelled(saved, split="test", **options)


def test_a_dataset_without_names(tmp_path, monkeypatch):
    """Numbers stay numbers."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "train.jsonl", "\n".join(json.dumps({"text": t, "label": n}) for t, n in ROWS))
    assert read_labelled(folder) == (TEXTS, LABELS)
    write(
        folder / "train.jsonl",
        "\n".join(json.dumps({"sentence1": a, "sentence2": b, "score": s}) for a, b, s in PAIRS),
    )
    assert read_pairs(folder, streaming=True) == ([(a, b) for a, b, _ in PAIRS], [s for *_, s in PAIRS])
    with pytest.raises(
        ValueError, match="has no column 'text' or 'sentence'; its columns are: sentence1, sentence2"
    ):
        read_labelled(folder)
    with pytest.raises(ValueError, match="could not be opened"):
        read_labelled(folder, split="tset")


def test_datasets_is_asked_for_in_words(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        read_labelled("any/name")


# -- what is said --


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.tsv",
            "x\t1\ny\n",
            r"a.tsv, line 2 has 1 columns and not 2 \(text, label\); divide them by tabs, or name",
        ),
        ("a.tsv", "", "a.tsv holds no rows with a text; choose another file, dataset or split"),
        ("a.tsv", "x\t\n", "a.tsv, line 1 holds nothing for a label; a label is a text or a whole number"),
        ("a.jsonl", "x\n", r"a.jsonl, line 1 is not JSON \(Expecting value at column 1\); write an object"),
        ("a.jsonl", "[3]\n", "a.jsonl, line 1 holds a list; write an object on each line"),
        (
            "a.jsonl",
            '{"label": 1}',
            r"a.jsonl has no column 'text' or 'sentence'; its columns are: label .*text=",
        ),
        (
            "a.jsonl",
            '{"text": "x"}',
            r"a.jsonl has no column 'label'; its columns are: text \(name one with label=\)",
        ),
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n{"text": "y"}',
            "line 2 has no 'label'; leave it out or complete it",
        ),
        ("a.jsonl", '{"text": 3, "label": 1}', "line 1 holds a int where a text should be; leave it out"),
        ("a.jsonl", '{"text": "x", "label": 0.5}', "line 1 holds a float for a label"),
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n{"text": "y", "label": "b"}',
            "both numbers and texts for labels",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_labelled(write(tmp_path / name, text))


def test_other_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.tsv is not a file"):
        read_labelled(tmp_path / "nothing.tsv")
    with pytest.raises(TypeError, match="the source came as NoneType; pass a file, or the name of a dataset"):
        read_labelled(None)
    (tmp_path / "b.tsv").write_bytes(b"x\t1\n\xff\t0\n")
    with pytest.raises(ValueError, match=r"b.tsv, line 2 is not UTF-8 text \(byte 0\); save it as UTF-8"):
        read_labelled(tmp_path / "b.tsv")
    file = write(tmp_path / "c.tsv", "x\t1\n")
    with pytest.raises(ValueError, match=r"c.tsv has no column 'words'; .*\(name one with text=\)"):
        read_labelled(write(tmp_path / "c.tsv", "text\tlabel\nx\t1\n"), text="words")
    with pytest.raises(ValueError, match="limit=0: pass how many rows to read at most, or None for all"):
        read_labelled(file, limit=0)
    for score in ("high", "nan"):
        with pytest.raises(
            ValueError, match=f"line 1 holds '{score}' for a score; a score is a finite number"
        ):
            read_pairs(write(tmp_path / "d.tsv", f"x\ty\t{score}\n"))
