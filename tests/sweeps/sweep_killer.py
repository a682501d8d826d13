"""Kills sweeps at random moments; run by test_sweep_kills in a process of its own, which forks warm children.

Every round takes a folder of its own, kills the sweep in it again and again, and lets it finish. What was
seen is printed as JSON; what it means is for the test to say.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import mcr_lens as mcr
from mcr_lens.sweep_store import read

KILLS, A_ROUND = 20, 5
TEXTS = [f"Sentence number {i} has its own {'very ' * (i % 5)}end." for i in range(30)]


def plan(out: Path, model) -> dict:
    return {
        "out": out, "metrics": ["bos_norm", "massive_activation_ratio", "sink_score", "strongest_token"],
        "chunk": 3, "models": [{"name": "demo", "model": model}], "prompts": [{"name": "s", "texts": TEXTS}],
        "conditions": {"clean": [], "cut": [mcr.zero_bos_mlp(0)]},
    }  # fmt: skip


def files(out: Path) -> dict[str, tuple[int, int, str]]:
    """What lies there but temporary files and the lock: inode, time of change, and what is wrong with it."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".")):
        wrong = ""
        try:
            read(path)
        except ValueError as error:
            wrong = str(error)
        about = path.stat()
        found[str(path.relative_to(out))] = (about.st_ino, about.st_mtime_ns, wrong)
    return found


def leftovers(out: Path) -> int:
    return len(list(out.rglob(".*.part")))


def child(out: Path, model) -> int:
    """Begin a sweep in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            mcr.sweep(plan(out, model), progress=False)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return pid


def kill(pid: int, out: Path, *, after: float, while_writing: bool) -> bool:
    """Kill it after a while, or then as soon as a file is being written; whether it was still running."""
    until = time.monotonic() + after
    while time.monotonic() < until or (while_writing and not leftovers(out)):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # a child forked beside a pool of threads would wait for them for ever
    model = mcr.load_model("demo", verbose=False)
    draw = random.Random(20)
    begin = time.monotonic()
    assert os.waitpid(child(folder / "whole", model), 0)[1] == 0
    whole = time.monotonic() - begin
    rounds, left = [], KILLS
    while left:
        out, kills = folder / f"round{len(rounds)}", []
        for turn in range(min(A_ROUND, left)):
            pid = child(out, model)
            if not kill(pid, out, after=draw.uniform(0.02, whole / 3), while_writing=turn % 2 == 1):
                break  # it was done before: the next round begins a sweep anew
            kills.append({"writing": leftovers(out), "files": files(out)})
        left -= len(kills)
        code = os.waitstatus_to_exitcode(os.waitpid(child(out, model), 0)[1])
        rounds.append({"kills": kills, "code": code, "end": files(out), "leftovers": leftovers(out)})
    print(json.dumps({"rounds": rounds, "whole": files(folder / "whole")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
