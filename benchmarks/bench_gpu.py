"""What does measuring cost on a GPU, on top of the forward pass, for a model of eight billion parameters?

    python benchmarks/bench_gpu.py [--layers 32] [--tokens 1024] [--batch 8] [--out NAME.json]

Random weights in bfloat16 in the shape of Llama 3 8B. Alternating, in one process: the bare forward pass,
without the unembedding, `measure` with all default metrics and with each group alone; for the bridge with
eager attention, and for the model as it is served with sdpa. The usual way keeps every residual stream and
pattern (`run_with_cache`) and takes singular values: once, on four layers. Peaks are torch's own.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_measure import GROUPS, machine, ratios

WARM_UP = 1
"""Rounds that are not counted: kernels are compiled in the first."""


def llama(layers: int, attention: str) -> Any:
    """The shape of Llama 3 8B with so many layers, random weights, on the GPU."""
    import torch
    import transformers as hf

    config = hf.LlamaConfig(
        hidden_size=4096, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=128256, max_position_embeddings=8192,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return hf.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def alternating(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds and peak memory above what was there, of each, one after the other."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in functions}
    peaks: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + WARM_UP):
        for name, function in functions.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, began = torch.cuda.memory_allocated(), time.perf_counter()
            function()
            torch.cuda.synchronize()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
                peaks[name].append((torch.cuda.max_memory_allocated() - before) / 2**20)
    return {"seconds": seconds, "peaks": peaks}


def compared(model: Any, tokens: Any, rounds: int, groups: bool, forward: dict[str, Any]) -> dict[str, Any]:
    """Everything for one door to the model."""
    import torch

    import mcr_lens

    def bare(**options: Any) -> None:
        with torch.no_grad():
            model(tokens, **forward, **options)

    def measure(metrics: Any = None) -> None:
        mcr_lens.measure(model, tokens, metrics, batch_size=len(tokens), progress=False)

    short = {"logits_to_keep": 1}
    if not forward:
        short["return_type"] = None
    ways: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "no unembedding": lambda: bare(**short),
        "all": measure,
    }
    if groups:
        ways |= {group: (lambda group=group: measure(group)) for group in GROUPS}
    found = alternating(ways, rounds)
    peaks = {name: round(statistics.median(values)) for name, values in found["peaks"].items()}
    return ratios(found["seconds"]) | {"peak MiB above the weights": peaks}


def usual(model: Any, tokens: Any) -> dict[str, Any]:
    """`run_with_cache`, then singular values and mean patterns of every layer: seconds of one run."""
    import torch

    def run() -> None:
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, return_type=None)
            for layer in range(model.cfg.n_layers):
                torch.linalg.svdvals(cache[f"blocks.{layer}.hook_resid_post"].float())
                cache[f"blocks.{layer}.attn.hook_pattern"].float().mean(2)

    found = alternating({"usual": run}, 1)
    return {
        "seconds": round(found["seconds"]["usual"][0], 3), "peak MiB": round(found["peaks"]["usual"][0])
    }  # fmt: skip


def accuracy(tokens: Any) -> dict[str, float]:
    """The largest difference of an entropy from singular values in float64, over depths of a small run."""
    import torch

    import mcr_lens
    from mcr_lens.metrics import matrix_entropy, matrix_entropy_without_bos, spectrum, spectrum_without_bos

    model = mcr_lens.load_model(llama(2, "eager"), verbose=False)
    kept: list[Any] = []
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(2))]
    with torch.no_grad(), model.hooks([(name, lambda x, hook: kept.append(x.clone())) for name in names]):
        model(tokens, return_type=None)
    ds = mcr_lens.measure(model, tokens, "spectral", progress=False, batch_size=len(tokens))
    found = {}
    for name, metric, of in (
        ("matrix_entropy", matrix_entropy, spectrum),
        ("matrix_entropy_without_bos", matrix_entropy_without_bos, spectrum_without_bos),
    ):
        wanted = torch.stack([metric(of(x.cpu())) for x in kept], 1).numpy()
        found[name] = float(abs(ds[name].values - wanted).max())
    return found


def main() -> None:
    """Run, print, write JSON."""
    import torch

    import mcr_lens

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    tokens = torch.randint(
        0, 128256, (given.batch, given.tokens), generator=torch.Generator().manual_seed(1)
    ).cuda()  # fmt: skip
    found: dict[str, Any] = {
        "machine": machine() | {"gpu": torch.cuda.get_device_name()},
        "layers": given.layers, "tokens": given.tokens, "batch": given.batch,
    }  # fmt: skip

    def keep(name: str, value: Any) -> None:
        found[name] = value
        print(name, json.dumps(value), flush=True)
        if given.out:
            given.out.write_text(json.dumps(found, indent=2) + "\n")

    keep("entropy error, nats", accuracy(tokens))
    model = llama(given.layers, "sdpa")
    keep("served, sdpa", compared(model, tokens, given.rounds, False, {"use_cache": False}))
    del model
    bridged = mcr_lens.load_model(llama(given.layers, "eager"), verbose=False)
    keep("bridge, eager", compared(bridged, tokens, given.rounds, True, {}))
    del bridged
    torch.cuda.empty_cache()
    few = mcr_lens.load_model(llama(4, "eager"), verbose=False)
    keep("usual way, 4 layers", usual(few, tokens))


if __name__ == "__main__":
    main()
