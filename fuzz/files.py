"""What do the readers of files make of damaged ones? Bytes are cut, flipped, doubled and replaced."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from world import RECORDS, World

import mcr_lens as mcr
from fuzz.targets import Call
from mcr_lens.prompt_files import read_prompt_file
from mcr_lens.sweep_plan import read_plan

TOML = b"""
out = "out"
metrics = ["bos_norm"]
chunk = 4
[[models]]
name = "demo"
dtype = "float32"
[[prompts]]
name = "p"
texts = ["a text", "another"]
[conditions]
clean = []
cut = [{kind = "zero_ablation", site = "mlp_out", layers = [1], positions = "0:2"}]
"""
QUESTIONS = "\n".join(map(json.dumps, RECORDS)).encode()
ROWS = [{"text": "a text", "label": "x"}, {"text": "ünïcode \U0001f600", "label": "y"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
SENTENCES = (
    b'{"sentence1": "a", "sentence2": "b", "score": 0.5}\n{"sentence1": "c", "sentence2": "d", "score": 2}'
)

READERS: dict[str, tuple[Callable[[Path], Any], str, Callable[[World], bytes]]] = {
    "load (damaged)": (mcr.load, "nc", lambda w: w.result_file.read_bytes()),
    "load_moments (damaged)": (mcr.load_moments, "nc", lambda w: w.result_file.read_bytes()),
    "TunedLens.load": (mcr.TunedLens.load, "safetensors", lambda w: w.lens_file.read_bytes()),
    "read_plan (TOML)": (read_plan, "toml", lambda w: TOML),
    "read_prompt_file (text)": (read_prompt_file, "txt", lambda w: b"one\n\ntwo \xf0\x9f\x98\x80\r\nthree"),
    "read_prompt_file (JSON)": (read_prompt_file, "jsonl", lambda w: LINES),
    "read_choices (lines)": (mcr.read_choices, "jsonl", lambda w: QUESTIONS),
    "read_choices (list)": (mcr.read_choices, "json", lambda w: json.dumps(RECORDS).encode()),
    "read_labelled (JSON)": (mcr.read_labelled, "jsonl", lambda w: LINES),
    "read_labelled (tabs)": (mcr.read_labelled, "tsv", lambda w: b"text\tlabel\na text\t1\nmore\t0\n"),
    "read_pairs (JSON)": (mcr.read_pairs, "jsonl", lambda w: SENTENCES),
    "read_pairs (tabs)": (mcr.read_pairs, "tsv", lambda w: b"a\tb\t0.5\nc\td\t1\n"),
}
"""By name: the reader, the ending of its files, a good file."""

TOKENS = (
    b"\xff",
    b"\0",
    b"{",
    b"[",
    b'"',
    b"\n",
    b"\t",
    b"nan",
    b"-1",
    b"1e999",
    b"null",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"[" * 5000,
    b"9" * 5000,
    b"true",
    b"''",
    b"=",
    b"\\ud800",
    b"{}",
    b",",
)
"""What is put in between."""


def draw(name: str, rng: Random, world: World) -> Call:
    """A reader, and a file that was good once."""
    read, ending, good = READERS[name]
    raw, what = bytearray(good(world)), []
    for _ in range(rng.randint(1, 4)):
        what.append(_damage(raw, rng))
    path = world.file(f"damaged.{ending}", bytes(raw))
    shown = f"{name}: {', '.join(what)}"
    return Call(name, partial(read, path), shown, apart=ending in ("nc", "safetensors"))


def _damage(raw: bytearray, rng: Random) -> str:
    """Damage bytes in place, and say how."""
    at = rng.randrange(len(raw) + 1)
    kind = rng.choice(["cut", "flip", "zero", "put", "put", "twice", "random"])
    if kind == "cut":
        del raw[at:]
    elif kind == "flip" and at < len(raw):
        raw[at] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        size = rng.choice([1, 8, 200])
        raw[at : at + size] = bytes(len(raw[at : at + size]))
    elif kind == "put":
        token = rng.choice(TOKENS)
        raw[at:at] = token
        return f"{token[:12]!r} at {at}"
    elif kind == "twice":
        raw[at:at] = raw[: rng.randrange(len(raw) + 1)]
    else:
        raw[at : at + 8] = rng.randbytes(8)
    return f"{kind} at {at}"
