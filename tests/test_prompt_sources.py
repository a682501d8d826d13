"""Are prompts read in chunks, and the very ones that are there?"""

import json
import tracemalloc

import pytest

from mcr_lens.prompt_files import read_prompt_file
from mcr_lens.prompt_sources import DatasetPrompts, FilePrompts, TextPrompts, in_chunks, texts_digest

TEXT = "one\r\n\n  two \n\u2028three\x0cthree\n\t\nfour\rfour\nünï"


@pytest.mark.parametrize("text", [TEXT, "\ufeff" + TEXT, TEXT + "\n", TEXT + "\r\n", "a\n" * 3])
def test_text_as_the_whole_file_is_read(tmp_path, text):
    """Line by line gives what reading everything gives: BOM, blank lines, odd line ends and all."""
    file = tmp_path / "p.txt"
    file.write_bytes(text.encode())
    assert list(FilePrompts(file)) == read_prompt_file(file)[0]


def test_json_lines(tmp_path):
    """Likewise for JSON Lines, by name or by field; a bad line is named."""
    file = tmp_path / "p.jsonl"
    rows = [{"text": "a\nb", "other": "x"}, {"text": "c", "other": "y"}]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert list(FilePrompts(file)) == read_prompt_file(file)[0] == ["a\nb", "c"]
    assert list(FilePrompts(file, "other")) == ["x", "y"]
    with pytest.raises(ValueError, match=r"line 1 has no field 'txt'; its fields are: text, other"):
        list(FilePrompts(file, "txt"))
    file.write_text('{"text": "fine"}\n{"text": \n')
    reader = iter(FilePrompts(file))
    assert next(reader) == "fine"
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        next(reader)


def test_file_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        list(FilePrompts(tmp_path / "no.txt"))
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"line 2 is not UTF-8 text \(byte 3\); save it as UTF-8"):
        list(FilePrompts(tmp_path / "latin.txt"))


def test_chunks_never_read_ahead():
    """No prompt is taken from the source before its chunk is asked for, nor one behind the limit."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield f"prompt {taken}"

    chunks = in_chunks(TextPrompts(endless), 10, 25)
    assert taken == 0
    assert next(chunks)[-1] == "prompt 10" and taken == 10
    assert [len(chunk) for chunk in chunks] == [10, 5] and taken == 25


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file a hundred times the chunk is read in the memory of a few chunks."""
    file = tmp_path / "long.txt"
    line = "x" * 1000 + "\n"
    with file.open("w") as lines:
        for _ in range(20_000):
            lines.write(line)
    tracemalloc.start()
    assert sum(len(chunk) for chunk in in_chunks(FilePrompts(file), 100)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 100 * len(line) < file.stat().st_size / 10


@pytest.fixture
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")  # a name with `test` in it would be taken for a split
    rows = [{"text": f"row {i}", "label": i} for i in range(7)]
    rows.insert(3, {"text": "  ", "label": 99})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.mark.parametrize("streaming", [True, False])
def test_dataset(folder, streaming, monkeypatch, tmp_path):
    """A Hugging Face dataset, here a folder: streamed or not, the same texts, without the blank one."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    prompts = DatasetPrompts(str(folder), streaming=streaming)
    assert list(prompts) == list(prompts) == [f"row {i}" for i in range(7)]
    assert [len(c) for c in in_chunks(prompts, 4, 5)] == [4, 1]


def test_dataset_refusals(folder):
    with pytest.raises(ValueError, match="has no column 'txt'; its columns are: text, label"):
        list(DatasetPrompts(str(folder), field="txt"))
    with pytest.raises(ValueError, match="row 0: 'label' holds a int; a prompt is text"):
        list(DatasetPrompts(str(folder), field="label"))
    with pytest.raises(ValueError, match="could not be opened"):
        list(DatasetPrompts(str(folder / "nothing")))
    with pytest.raises(ValueError, match="could not be opened"):
        list(DatasetPrompts(str(folder), split="tset"))


def test_datasets_is_asked_for_in_words(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        list(DatasetPrompts("any"))


def test_texts():
    """A list, or a function called anew; what is no text is named."""
    assert list(TextPrompts(["a", "b"])) == ["a", "b"]
    source = TextPrompts(lambda: (c for c in "abc"))
    assert list(source) == list(source) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="prompt 1 is an empty string; a prompt is text"):
        list(TextPrompts(["a", ""]))
    with pytest.raises(ValueError, match="prompt 0 is a int"):
        list(TextPrompts([3]))  # type: ignore[list-item]


def test_digest_tells_texts_apart():
    """Where one ends and the next begins counts, and so does the order."""
    kinds = [["ab"], ["a", "b"], ["b", "a"], ["ab", ""], [], [""], ["\ud800"]]
    assert len({texts_digest(texts) for texts in kinds}) == len(kinds)
    assert texts_digest(["ä"]) == texts_digest(iter(["ä"]))
