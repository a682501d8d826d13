"""What does measuring cost on top of a forward pass, in time and in memory, for a model as it is served?

    python benchmarks/bench_served.py [--lengths 4096 16384] [--repeats 5] [--vocabulary 32000]

Times are medians of alternating runs in one process: `measure` with all default metrics, the model's own
forward pass with sdpa, and with eager attention (all without the unembedding, which `measure` skips). Peaks
are of a fresh process each, everything included: interpreter, torch, model.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench_measure import alternating, peak_so_far

EAGER = 8192
"""The longest prompt that eager attention is run on: it holds H · T² numbers several times over."""


def llama(attention: str, vocabulary: int) -> Any:
    """Four layers, width 256, eight query and four key-value heads, random weights."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=688, max_position_embeddings=2**17, vocab_size=vocabulary,
    )  # fmt: skip
    return hf.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def prompt(length: int, vocabulary: int) -> Any:
    """Random token ids, always the same."""
    import torch

    return torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(1))


def forward(model: Any, tokens: Any) -> None:
    """The model's own forward pass, without the unembedding of every position."""
    import torch

    with torch.no_grad():
        model(tokens, logits_to_keep=1, use_cache=False)


def measured(model: Any, tokens: Any) -> None:
    """Everything that `measure` gives by default, serving the model included."""
    import mcr_lens

    mcr_lens.measure(model, tokens, progress=False)


def times(length: int, repeats: int = 5, vocabulary: int = 32000) -> dict[str, float]:
    """Seconds of each, and the two ratios, at one prompt length."""
    tokens = prompt(length, vocabulary)
    model = llama("sdpa", vocabulary)
    runs = {"measure": lambda: measured(model, tokens), "sdpa": lambda: forward(model, tokens)}
    if length <= EAGER:
        eager = llama("eager", vocabulary)
        runs["eager"] = lambda: forward(eager, tokens)
    seconds = alternating(runs, repeats)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return found | {f"measure/{name}": found["measure"] / found[name] for name in found if name != "measure"}


def peak(what: str, length: int, vocabulary: int = 32000) -> float:
    """Peak memory, in GiB, of a fresh process that does one thing."""
    command = [sys.executable, __file__, "--alone", what, "--lengths", str(length)]
    done = subprocess.run(
        [*command, "--vocabulary", str(vocabulary)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.strip().splitlines()[-1])


def alone(what: str, length: int, vocabulary: int) -> None:
    """The child process: do it, and print the peak."""
    model, tokens = llama("sdpa", vocabulary), prompt(length, vocabulary)
    {"measure": measured, "sdpa": forward}[what](model, tokens)
    print(peak_so_far() / 2**20)


def main(
    lengths: tuple[int, ...] = (4096, 16384), repeats: int = 5, vocabulary: int = 32000
) -> dict[str, dict[str, float]]:
    """Every figure, by prompt length."""
    found = {}
    for length in lengths:
        about = times(length, repeats if length <= EAGER else 1, vocabulary)
        about |= {f"peak GiB, {what}": peak(what, length, vocabulary) for what in ("measure", "sdpa")}
        found[f"T = {length}"] = {name: round(value, 3) for name, value in about.items()}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", choices=["measure", "sdpa"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        alone(given.alone, given.lengths[0], given.vocabulary)
    else:
        text = json.dumps(main(tuple(given.lengths), given.repeats, given.vocabulary), indent=2)
        print(text)
        if given.out:
            given.out.write_text(text + "\n")
