"""How is the fuzzer run? `python -m fuzz --minutes 30`, `--seed 1 --case 17` to see one again, `count`."""

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from random import Random

import torch
from world import World

from fuzz import commands, each, files, targets, tensors
from fuzz.judge import Verdict, judge, judge_apart

SLOW = {
    "diagnose",
    "explore",
    "load_model",
    "serve",
    "sweep",
    "emergence",
    "random_weights",
    "linear_probe",
    "write_report",
}
"""Called a tenth as often as the others."""


def names() -> list[str]:
    """Everything that is called."""
    return [*targets.public(), *tensors.functions(), *files.READERS, *commands.COMMANDS]


def case(number: int, seed: int, world: World) -> tuple[targets.Call, Verdict] | None:
    """The call of this number, and what came of it; always the same for one seed."""
    rng = Random(f"{seed} {number}")
    every = names()
    name = every[number % len(every)]
    if name in SLOW and number // len(every) % 10:
        return None
    torch.manual_seed(number)
    if name in files.READERS:
        call: targets.Call | None = files.draw(name, rng, world)
    elif name in commands.COMMANDS:
        call = commands.draw(name, rng, world)
    elif name.startswith("metrics."):
        call = tensors.draw(name, tensors.functions()[name], rng)
    else:
        call = targets.draw_if_possible(name, targets.public()[name], rng, world)
    if call is None:
        return None
    if call.apart:
        return call, judge_apart(call.made, world.folder)
    return call, judge(call.made, list(call.models), world.folder, call.finite)


def run(
    seed: int, minutes: float, first: int = 0, most: int | None = None
) -> tuple[Counter[str], dict[str, str]]:
    """Make calls for so long; returns how many of each name, and the findings by what they are."""
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    findings: dict[str, str] = {}
    end = time.monotonic() + 60 * minutes
    with _elsewhere() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        world = World(folder)
        number = first
        while time.monotonic() < end and (most is None or number < first + most):
            found = case(number, seed, world)
            if found is not None:
                _note(*found, counts, findings, f"--seed {seed} --case {number}")
            number += 1
    return counts, findings


def run_each(seed: int) -> tuple[Counter[str], dict[str, str]]:
    """Every parameter of every public function with every odd value, as `run`."""
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    findings: dict[str, str] = {}
    with _elsewhere() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        world = World(folder)
        for call in each.calls(world, SLOW, seed):
            torch.manual_seed(0)
            _note(call, judge(call.made, list(call.models), world.folder, call.finite), counts, findings)
    return counts, findings


@contextmanager
def _elsewhere() -> Iterator[Path]:
    """A folder that is gone afterwards: paths are drawn too, and files come where they say."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        yield Path(folder)


def _note(
    call: targets.Call, verdict: Verdict, counts: Counter[str], findings: dict[str, str], again: str = ""
) -> None:
    """Count a call, and say what was found the first time that it is."""
    counts[call.name] += 1
    if verdict.outcome == "hang outside of Python":
        print(f"NOTE {call.name} was stopped: {again}", flush=True)
    what = f"{call.name}: {verdict.finding.split(': ')[0]}"  # each kind, and where it comes from, once
    if verdict.finding and what not in findings:
        findings[what] = f"{again}: {call.shown}"
        print(f"FOUND {call.name}: {verdict.finding}\n      {findings[what]}", flush=True)


def main() -> int:
    """Run, and say what was found; 1 where there is a finding, or something was never called."""
    reader = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    reader.add_argument("what", nargs="?", choices=["run", "each", "count"], default="run")
    reader.add_argument("--minutes", type=float, default=30.0)
    reader.add_argument("--seed", type=int, default=None, help="default: drawn from the clock, and printed")
    reader.add_argument("--case", type=int, default=None, help="this call alone")
    given = reader.parse_args()
    if given.what == "count":
        from bad_commands import CASES as COMMANDS
        from test_hostile_input import CASES

        print(
            f"{len(CASES) + len(COMMANDS)} bad inputs in tables, {len(names())} functions, readers and "
            "commands under fuzzing"
        )
        return 0
    seed = int(time.time()) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    alone = given.case is not None
    if given.what == "each":
        counts, findings = run_each(seed)
    else:
        counts, findings = run(seed, given.minutes, given.case or 0, 1 if alone else None)
    every = [*each.names()] if given.what == "each" else names()
    never = [] if alone else [name for name in every if not counts[name]]
    for name in sorted(counts):
        print(f"{counts[name]:7,}  {name}")
    print(f"{sum(counts.values()):,} calls of {len(counts)} names, {len(findings)} findings (seed {seed})")
    if never:
        print(f"never called: {', '.join(never)}")
    return 1 if findings or never else 0


if __name__ == "__main__":
    sys.exit(main())
