"""Which files of labelled texts, and of pairs, are refused?"""

from world import Case

import mcr_lens as mcr

# fmt: off
CASES = [
    Case("read_labelled of a number", lambda w: mcr.read_labelled(5), TypeError, "the source came as int"),
    Case("read_labelled of empty text", lambda w: mcr.read_labelled(""),
         ValueError, "the name of a dataset is empty"),
    Case("read_labelled of a file that is not there", lambda w: mcr.read_labelled("none.tsv"),
         FileNotFoundError, "none.tsv is not a file"),
    Case("read_labelled of an empty file", lambda w: mcr.read_labelled(w.file("empty.tsv", "")),
         ValueError, "holds no rows with a text"),
    Case("read_labelled of one column", lambda w: mcr.read_labelled(w.file("one.tsv", "a\nb\n")),
         ValueError, "line 1 has 1 columns and not 2 (text, label)"),
    Case("read_labelled of three columns", lambda w: mcr.read_labelled(w.file("three.tsv", "a\tb\tc\n")),
         ValueError, "line 1 has 3 columns and not 2 (text, label)"),
    Case("read_labelled of another column",
         lambda w: mcr.read_labelled(w.file("named.tsv", "text\tlabel\na\t1\n"), text="body"),
         ValueError, "has no column 'body'"),
    Case("read_labelled without labels", lambda w: mcr.read_labelled(w.file("unlabelled.tsv", "a\t\n")),
         ValueError, "line 1 holds nothing for a label"),
    Case("read_labelled of lists",
         lambda w: mcr.read_labelled(w.lines("lists.jsonl", {"text": ["a"], "label": 1})),
         ValueError, "line 1 holds a list where a text should be"),
    Case("read_labelled of a list on a line", lambda w: mcr.read_labelled(w.lines("rows.jsonl", ["a", 1])),
         ValueError, "line 1 holds a list"),
    Case("read_labelled of bytes that are no text",
         lambda w: mcr.read_labelled(w.file("bytes.tsv", b"\xff\t1\n")),
         ValueError, "line 1 is not UTF-8 text (byte 0)"),
    Case("read_labelled of JSON far too deep",
         lambda w: mcr.read_labelled(w.file("deep2.jsonl", "[" * 100_000)),
         ValueError, "line 1 is not JSON (nested too deep)"),
    Case("read_labelled of a limit below 1",
         lambda w: mcr.read_labelled(w.file("limit.tsv", "a\t1\n"), limit=-1),
         ValueError, "limit=-1: pass how many rows to read at most, or None for all"),
    Case("read_pairs of text for a score", lambda w: mcr.read_pairs(w.file("scores.tsv", "a\tb\thigh\n")),
         ValueError, "line 1 holds 'high' for a score"),
    Case("read_pairs of a score of NaN", lambda w: mcr.read_pairs(w.file("nan.tsv", "a\tb\tnan\n")),
         ValueError, "line 1 holds 'nan' for a score"),
    Case("read_pairs of a score of infinity", lambda w: mcr.read_pairs(w.file("inf.tsv", "a\tb\t-inf\n")),
         ValueError, "line 1 holds '-inf' for a score"),
    Case("read_pairs of two columns", lambda w: mcr.read_pairs(w.file("two.tsv", "a\tb\n")),
         ValueError, "line 1 has 2 columns and not 3 (sentence1, sentence2, score)"),
    Case("read_pairs of a huge score",
         lambda w: mcr.read_pairs(w.lines("h.jsonl", {"sentence1": "a", "sentence2": "b", "score": 10**400})),
         ValueError, "line 1 holds"),
]
# fmt: on
