"""Which commands are refused, with which words on standard error?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from world import World


@dataclass(frozen=True)
class Command:
    """A command line, its exit code, and a part of what it says on standard error."""

    what: str
    arguments: Callable[[World], list[Any]]
    says: str
    code: int = 1


def prompts(w: World, content: str | bytes = "a text\nanother one\n") -> Any:
    """A file of prompts."""
    return w.file("prompts.txt", content)


MEASURE, LENS = ("measure", "acme/tiny", "--prompts"), ("lens", "acme/tiny", "--text")


# fmt: off
CASES = [
    Command("measure without prompts",
            lambda w: ["measure", "acme/tiny", "--out", "out"], "Missing option", 2),
    Command("measure without a model", lambda w: ["measure"], "Missing argument", 2),
    Command("measure a model without a name",
            lambda w: ["measure", "", "--prompts", prompts(w), "--out", "out"], "'' is no name of a model"),
    Command("measure a folder without a model",
            lambda w: ["measure", w.folder, "--prompts", prompts(w), "--out", "out"], "holds no config.json"),
    Command("measure a name far too long",
            lambda w: ["measure", "a" * 5000, "--prompts", prompts(w), "--out", "out"],
            "is no name of a model"),
    Command("measure prompts that are a folder",
            lambda w: [*MEASURE, w.folder, "--out", "out"], "is not a file"),
    Command("measure prompts that are not UTF-8",
            lambda w: [*MEASURE, prompts(w, b"\xff"), "--out", "out"],
            "is not UTF-8 text (byte 0)"),
    Command("measure an empty file",
            lambda w: [*MEASURE, prompts(w, ""), "--out", "out"], "holds no prompts"),
    Command("measure a file of blank lines",
            lambda w: [*MEASURE, prompts(w, " \n\t\n"), "--out", "out"],
            "holds no prompts"),
    Command("measure JSON that is cut off",
            lambda w: [*MEASURE, w.file("p.jsonl", '{"text": "a'), "--out", "out"],
            "line 1 is not JSON"),
    Command("measure JSON far too deep",
            lambda w: [*MEASURE, w.file("p.jsonl", "[" * 10**5), "--out", "out"],
            "line 1 is not JSON (nested too deep)"),
    Command("measure JSON of another field",
            lambda w: [*MEASURE, w.lines("p.jsonl", {"a": 1}), "--out", "out"],
            "line 1 has no field 'text'"),
    Command("measure into a file",
            lambda w: [*MEASURE, prompts(w), "--out", w.file("taken", "x")],
            "is a file; name a folder with --out"),
    Command("measure a metric misspelt",
            lambda w: [*MEASURE, prompts(w), "--out", "out", "--metrics", "bos_nrm"],
            "did you mean 'bos_norm'"),
    Command("measure no metrics",
            lambda w: [*MEASURE, prompts(w), "--out", "out", "--metrics", ","],
            "no metrics were asked for"),
    Command("measure a batch of zero",
            lambda w: [*MEASURE, prompts(w), "--out", "out", "--batch-size", "0"],
            "--batch-size 0: pass a positive number or auto"),
    Command("measure a batch of a half",
            lambda w: [*MEASURE, prompts(w), "--out", "out", "--batch-size", "0.5"],
            "--batch-size 0.5: pass a positive number or auto"),
    Command("measure a negative position",
            lambda w: [*MEASURE, prompts(w), "--out", "out", "--position", "-1"],
            "Invalid value for '--position'", 2),
    Command("measure a limit of zero",
            lambda w: [*MEASURE, prompts(w), "--out", "out", "--limit", "0"],
            "Invalid value for '--limit'", 2),
    Command("measure an emoji of tokens",
            lambda w: [*MEASURE, prompts(w), "--out", "out", "--max-length", "\U0001f600"],
            "Invalid value for '--max-length'", 2),
    Command("measure with another dtype",
            lambda w: ["measure", "demo", "--prompts", prompts(w), "--out", "out", "--dtype", "int8"],
            "dtype='int8': pass one of float32, bfloat16, float16"),
    Command("measure with BOS perhaps",
            lambda w: [*MEASURE, prompts(w), "--out", "out", "--prepend-bos", "perhaps"],
            "Invalid value for '--prepend-bos'", 2),
    Command("diagnose with a ratio of NaN",
            lambda w: ["diagnose", "acme/tiny", "--ratio", "nan", "--limit", "2"],
            "ratio=nan: a massive row is longer than the others"),
    Command("diagnose with a threshold above 1",
            lambda w: ["diagnose", "acme/tiny", "--threshold", "2", "--limit", "2"],
            "threshold=2.0: mean attention lies between 0 and 1"),
    Command("diagnose with a negative seed",
            lambda w: ["diagnose", "acme/tiny", "--seed", "-1", "--limit", "2"],
            "seed=-1: pass a whole number from 0 on"),
    Command("diagnose into JSON where no folder is",
            lambda w: ["diagnose", "acme/tiny", "--json", w.folder / "none" / "v.json"], "is not a folder"),
    Command("report of nothing", lambda w: ["report", w.folder / "none.nc", "--out", "out"], "is not a file"),
    Command("report of a folder", lambda w: ["report", w.folder, "--out", "out"], "is not a file"),
    Command("report of rubbish",
            lambda w: ["report", w.file("rubbish.nc", b"\0" * 99), "--out", "out"],
            "cannot be read as netCDF"),
    Command("report beside verdicts that are none",
            lambda w: ["report", beside(w, "verdicts.json", b"{"), "--out", "out"], "holds no verdicts"),
    Command("report beside verdicts that are a list",
            lambda w: ["report", beside(w, "verdicts.json", b"[]"), "--out", "out"], "holds no verdicts"),
    Command("report beside conditions that are none",
            lambda w: ["report", beside(w, "conditions.nc", b"x"), "--out", "out"],
            "cannot be read as netCDF"),
    Command("report beside a close-up that is none",
            lambda w: ["report", beside(w, "close_up.nc", b""), "--out", "out"], "cannot be read as netCDF"),
    Command("lens of a text that is not there",
            lambda w: [*LENS, w.folder / "none"], "is not a file"),
    Command("lens of an empty text",
            lambda w: [*LENS, w.file("e.txt", ""), "--out", "out"], "prompt 0 is empty"),
    Command("lens with translators that are none",
            lambda w: [*LENS, prompts(w), "--translators", prompts(w), "--out", "out"],
            "cannot be read as safetensors"),
    Command("lens with a stride beyond the window",
            lambda w: [*LENS, prompts(w), "--window", "8", "--stride", "9", "--out", "out"],
            "stride=9: pass a number of tokens in 1..7"),
    Command("sweep of a plan that is not there",
            lambda w: ["sweep", w.folder / "none.toml"], "is not a file"),
    Command("sweep of a plan that is cut off",
            lambda w: ["sweep", w.file("cut.toml", 'out = "o')], "is not TOML"),
    Command("sweep of a plan nested too deep",
            lambda w: ["sweep", w.file("deep.toml", "a = " + "[" * 10**4)], "is not TOML: nested too deep"),
    Command("sweep with an engine unknown",
            lambda w: ["sweep", w.file("p.toml", ""), "--engine", "dask"], "Invalid value for '--engine'", 2),
    Command("emergence of a folder without checkpoints",
            lambda w: ["emergence", folder(w, "no_steps"), "--out", "out"], "holds no checkpoints"),
    Command("emergence of nothing", lambda w: ["emergence", "", "--out", "out"], "checkpoints"),
    Command("inspect a file", lambda w: ["inspect", w.file("model", "x")], "it is a file"),
    Command("inspect on a device that is none", lambda w: ["inspect", "demo", "--device", "gpu"],
            "device='gpu': pass 'cpu', 'cuda', 'cuda:1' or a torch device"),
    Command("a command that is none", lambda w: ["meassure"], "No such command", 2),
]
# fmt: on


def folder(w: World, name: str) -> Any:
    """An empty folder."""
    (w.folder / name).mkdir(exist_ok=True)
    return w.folder / name


def beside(w: World, name: str, content: bytes) -> Any:
    """A result in a folder of its own, and a damaged file beside it."""
    place = folder(w, f"beside_{name}_{len(content)}")
    (place / "result.nc").write_bytes(w.result_file.read_bytes())
    (place / name).write_bytes(content)
    return place / "result.nc"
