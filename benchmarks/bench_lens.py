"""What does a logit lens cost, beside the products that it cannot do without, and the usual way?

    python benchmarks/bench_lens.py [--length 512] [--batch 2] [--rounds 3]

A random model of GPT-2 small's size with its vocabulary. The floor is one forward pass without the
unembedding, and one unembedding (norm, product, log-softmax) of every position at each of the 13 depths. The
usual way is `run_with_cache`, then log-probabilities of all positions at every depth. Peaks are of a fresh
process each.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_measure import alternating, bridge, machine, peak_so_far


def ways(model: Any, tokens: Any) -> dict[str, Callable[[], Any]]:
    """Everything that is compared, by name."""
    import torch

    import mcr_lens

    def forward() -> None:
        with torch.no_grad():
            model(tokens, return_type=None, logits_to_keep=1)

    def unembedding() -> None:
        """Of one depth, a few tokens at a time, as a processor likes it."""
        stream = torch.randn(tokens.numel(), model.cfg.d_model)
        with torch.no_grad():
            for part in stream.split(83):
                model.unembed(model.ln_final(part[None])).log_softmax(-1)

    def usual() -> None:
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens)
            last = model.cfg.n_layers - 1
            depths = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(last + 1))]
            said = [model.unembed(model.ln_final(cache[name])).log_softmax(-1) for name in depths]
            for one in said:
                one[:, :-1].gather(-1, tokens[:, 1:, None]), -(one.exp() * one).sum(-1)
                (said[-1].exp() * (said[-1] - one)).sum(-1)

    return {
        "forward": forward,
        "unembedding": unembedding,
        "logit lens": lambda: mcr_lens.logit_lens(model, tokens, batch_size=len(tokens), progress=False),
        "usual": usual,
    }


def tokens_of(length: int, batch: int) -> Any:
    """Random token ids, always the same."""
    import torch

    return torch.randint(0, 50257, (batch, length), generator=torch.Generator().manual_seed(1))


def times(length: int, batch: int, rounds: int) -> dict[str, float]:
    """Median seconds, and the lens over its floor and the usual way over the lens."""
    import statistics

    model = bridge("gpt2")
    found = alternating(ways(model, tokens_of(length, batch)), rounds)
    depths = model.cfg.n_layers + 1
    seconds = {name: statistics.median(each) for name, each in found.items()}
    floor = seconds["forward"] + depths * seconds["unembedding"]
    return {
        "tokens": length,
        "batch": batch,
        **{f"{name}, s": round(value, 3) for name, value in seconds.items()},
        "lens/floor": round(seconds["logit lens"] / floor, 3),
        "usual/lens": round(seconds["usual"] / seconds["logit lens"], 3),
    }


def peak(length: int, batch: int, way: str) -> int:
    """MiB of a fresh process that goes this way."""
    command = [sys.executable, __file__, "--peak", way, "--length", str(length), "--batch", str(batch)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(said.splitlines()[-1])


def main() -> None:
    """Read the command line and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak")
    given = parser.parse_args()
    if given.peak:
        ways(bridge("gpt2"), tokens_of(given.length, given.batch))[given.peak]()
        print(round(peak_so_far() / 1024))
        return
    lens = times(given.length, given.batch, given.rounds)
    for way in ("forward", "logit lens", "usual"):
        lens[f"peak MiB, {way}"] = peak(given.length, given.batch, way)
    found = {"machine": machine(), "lens": lens}
    print(text := json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
