"""How do time and memory of measuring grow with the prompt, the layers, the heads and the prompts?

    python benchmarks/bench_growth.py [--out benchmarks/results/growth.json]

A Llama of width 256 with random weights, as it is served, one of four things varied at a time: seconds of
the forward pass, of `measure` with all default metrics, and of its eigenvalue problems alone; bytes of the
result.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_measure import alternating

BASE = {"tokens": 512, "layers": 4, "heads": 8, "prompts": 2}
VARIED = {
    "tokens": [64, 128, 256, 512, 1024, 2048, 4096],
    "layers": [2, 4, 8, 16],
    "heads": [2, 4, 8, 16],
    "prompts": [1, 2, 4, 8, 16],
}


def one(tokens: int, layers: int, heads: int, prompts: int, rounds: int) -> dict[str, float]:
    """Median seconds at one point."""
    import torch
    import transformers as hf

    import mcr_lens
    from mcr_lens.metrics import residual_summary, spectral_readings, token_norms, top_rows
    from mcr_lens.workers import Pending

    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=256, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=688, vocab_size=1000, max_position_embeddings=2**14,
    )  # fmt: skip
    served = mcr_lens.serve(hf.LlamaForCausalLM(config).eval())
    ids = torch.randint(0, 1000, (prompts, tokens))
    resid = torch.randn(prompts, tokens, 256)
    rows = top_rows(token_norms(resid))
    wanted = frozenset({"tridiagonal_form"})  # what the default metrics ask for

    def forward() -> None:
        with torch.no_grad():
            for row in ids.split(max(1, 4096 // tokens)):
                served(row, return_type=None, logits_to_keep=1)

    def spectra() -> None:
        work = [residual_summary(resid, rows, wanted=wanted) for _ in range(layers + 1)]
        for each in work:
            spectral_readings((each.result() if isinstance(each, Pending) else each).tridiagonal_form)

    results: list[Any] = []

    def measured() -> None:
        results[:] = [mcr_lens.measure(served, ids, progress=False)]

    ways: dict[str, Callable[[], Any]] = {"forward": forward, "measure": measured, "spectra": spectra}
    seconds = alternating(ways, rounds)
    return {name: round(statistics.median(v), 5) for name, v in seconds.items()} | {
        "result_bytes": float(results[0].nbytes)
    }


def main(rounds: int = 3) -> dict[str, list[dict[str, Any]]]:
    """Every point, by what is varied."""
    return {
        name: [{name: value, **one(**{**BASE, name: value}, rounds=rounds)} for value in values]
        for name, values in VARIED.items()
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    text = json.dumps(main(given.rounds), indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
