"""What does measuring cost on top of the forward pass, and against the usual way, in time and in memory?

    python benchmarks/bench_measure.py [--quick] [--out benchmarks/results/NAME.json]

Alternating, in a process for each case: the bare forward pass (eager attention), without the unembedding,
`measure` with all default metrics and with each group alone, and the usual way, `run_with_cache` with the
singular values of every depth and the mean of every pattern. Ratios are medians over rounds. Peaks are of a
fresh process each.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROUPS = ("spectral", "norms", "attention", "sinks", "theory")
FULL = [(m, t, b) for m in ("gpt2", "llama") for t in (128, 512, 1024) for b in (1, 8)] + [("gpt2", 256, 8)]
QUICK = [("gpt2", 128, 8), ("gpt2", 256, 8), ("gpt2", 512, 8)]
SIZES = {"gpt2": (12, 12, 768), "llama": (16, 16, 1024)}
"""Layers, heads and width."""

QUESTIONS = [26, 31, 38, 41, 45, 49, 52, 55, 58, 61, 64, 68, 72, 76, 81, 87, 94, 103, 118, 151]
"""Lengths of questions as GSM8K has them, in tokens: twenty quantiles; five prompts of each."""


def bridge(name: str) -> Any:
    """A random model of GPT-2 small's size, or a Llama of 16 layers, width 1024, grouped heads."""
    import torch
    import transformers as hf

    import mcr_lens

    torch.manual_seed(0)
    layers, heads, width = SIZES[name]
    if name == "gpt2":
        model: Any = hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=layers, n_head=heads, n_embd=width))
    else:
        model = hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=4,
                intermediate_size=2816, vocab_size=32000, max_position_embeddings=4096,
            )
        )  # fmt: skip
    return mcr_lens.load_model(model.eval(), verbose=False)


def ways(model: Any, tokens: Any, batch: int) -> dict[str, Callable[[], Any]]:
    """Everything that is compared, by name."""
    import torch

    import mcr_lens

    def forward(**options: Any) -> None:
        with torch.no_grad():
            model(tokens, **options)

    def measure(metrics: Any = None) -> None:
        mcr_lens.measure(model, tokens, metrics, batch_size=batch, progress=False)

    def usual() -> None:
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens)
            for layer in range(model.cfg.n_layers):
                values = torch.linalg.svdvals(cache[f"blocks.{layer}.hook_resid_post"].float())
                share = values.square() / values.square().sum(-1, keepdim=True)
                torch.special.entr(share).sum(-1)
                cache[f"blocks.{layer}.attn.hook_pattern"].mean(2)

    return {
        "bare": lambda: forward(),
        "no unembedding": lambda: forward(return_type=None, logits_to_keep=1),
        "all": measure,
        **{group: (lambda group=group: measure(group)) for group in GROUPS},
        "usual": usual,
    }


def times(name: str, length: int, batch: int, rounds: int, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Median seconds of each way, and median ratios to the two forward passes."""
    import torch

    model = bridge(name)
    tokens = torch.randint(0, model.cfg.d_vocab, (batch, length), generator=torch.Generator().manual_seed(1))
    seconds = alternating({k: v for k, v in ways(model, tokens, batch).items() if k in wanted}, rounds)
    return {"model": name, "tokens": length, "batch": batch, **ratios(seconds)}


def times_apart(*case: Any) -> dict[str, Any]:
    """The same in a process of its own: how the allocator has grown by then depends on what ran before."""
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def mixed(rounds: int) -> dict[str, Any]:
    """One hundred prompts of mixed length: `measure`, and the bare forward pass on the same batches."""
    import torch

    import mcr_lens
    from mcr_lens.batches import in_batches
    from mcr_lens.prompts import read_prompts

    model = bridge("gpt2")
    g = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, model.cfg.d_vocab, (n,), generator=g) for n in QUESTIONS * 5]
    rows = read_prompts(model, prompts)

    def bare() -> None:
        with torch.no_grad():
            for _ in in_batches(model, rows, "auto", lambda batch: model(batch.tokens), progress=False):
                pass

    def measured() -> None:
        mcr_lens.measure(model, prompts, progress=False)

    return {
        "model": "gpt2",
        "prompts": len(prompts),
        **ratios(alternating({"bare": bare, "all": measured}, rounds)),
    }


def alternating(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, one after the other, after one round that is not counted.

    Every round begins with another: what ran before, such as an eager pattern of a gigabyte that was given
    back to the system, is felt by whoever comes next.
    """
    names = [*functions]
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            began = time.perf_counter()
            functions[name]()
            if number:
                found[name].append(time.perf_counter() - began)
    return found


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and medians of the ratios within each round."""
    found: dict[str, Any] = {"seconds": {n: round(statistics.median(v), 4) for n, v in seconds.items()}}
    for base in ("bare", "no unembedding"):
        if base in seconds:
            found[f"over {base}"] = {
                n: round(statistics.median([a / b for a, b in zip(v, seconds[base], strict=True)]), 3)
                for n, v in seconds.items()
            }
    return found


def fits(name: str, length: int, batch: int) -> bool:
    """Whether what the usual way keeps, two square tensors and some twenty states a layer, fits in memory."""
    layers, heads, width = SIZES[name]
    kept = 4 * layers * batch * (2 * heads * length**2 + 20 * length * width)
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    return available is None or kept < 0.9 * 1024 * int(available[1])


def peak(name: str, length: int, batch: int, way: str) -> float:
    """Peak memory of a fresh process while it does this once, in MiB: all of it, model and libraries too."""
    command = [sys.executable, __file__, "--peak", name, str(length), str(batch), way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_so_far() -> int:
    """Peak memory of this process in KiB.

    Not from `getrusage`: a child process begins with the peak of the one that started it.
    """
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    from importlib.metadata import version

    import torch
    import transformers

    return {
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "transformer-lens": version("transformer-lens"),
        "mcr-lens": version("mcr-lens"),
    }  # fmt: skip


def main() -> None:
    """Run what is asked for, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="GPT-2's size, batch 8, no groups")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", default="", help="only those that match, such as 'gpt2:512:8|llama:128'")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--peak", nargs=4, metavar=("MODEL", "TOKENS", "BATCH", "WAY"), help=argparse.SUPPRESS
    )
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.peak:
        import torch

        name, length, batch, way = given.peak
        model = bridge(name)
        tokens = torch.randint(0, model.cfg.d_vocab, (int(batch), int(length)))
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is of the model's loading
        ways(model, tokens, int(batch))[way]()
        print(peak_so_far() / 1024)
        return
    if given.one:
        print(json.dumps(times(*given.one)))
        return
    found: dict[str, Any] = {"machine": machine(), "times": [], "mixed": None, "peaks": []}

    def keep(said: Any) -> None:
        print(json.dumps(said), flush=True)
        if given.out:  # after every case: an interrupted run keeps what it has
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(found, indent=2) + "\n")

    for name in ("gpt2",) if given.quick else ("gpt2", "llama"):
        peaks = {way: round(peak(name, 512, 8, way)) for way in ("bare", "no unembedding", "all", "usual")}
        found["peaks"].append({"model": name, "tokens": 512, "batch": 8, "MiB": peaks})
        keep(found["peaks"][-1])
    found["mixed"] = mixed(given.rounds)
    keep(found["mixed"])
    for name, length, batch in QUICK if given.quick else FULL:
        if not re.search(given.cases, f"{name}:{length}:{batch}"):
            continue
        groups = GROUPS if length == 512 and batch == 1 and not given.quick else ()
        usual = ("usual",) if fits(name, length, batch) else ()
        wanted = ("bare", "no unembedding", "all", *usual, *groups)
        rounds = given.rounds if length * batch < 4096 else max(1, given.rounds // 3)
        found["times"].append(times_apart(name, length, batch, rounds, wanted))
        keep(found["times"][-1])


if __name__ == "__main__":
    main()
