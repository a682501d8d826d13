"""What share of a training does watching it take? `training_callback` in a real run of transformers' Trainer.

    python benchmarks/bench_watch.py [--steps 1000] [--every 500]

A GPT-2 of 4 layers and width 128, batches of 8 x 128 random tokens, eight prompts of 128 tokens.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 128, "vocab_size": 5000}
BATCH, LENGTH, PROMPTS = 8, 128, 8


def watched(steps: int, every: int | None) -> dict[str, float]:
    """Train for some steps; seconds of a step and of a measurement, and the share that measuring took."""
    import torch
    import transformers as hf

    import mcr_lens

    torch.manual_seed(0)
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**SHAPE))
    ids = torch.randint(0, SHAPE["vocab_size"], (BATCH * steps, LENGTH))
    data = [{"input_ids": row, "labels": row} for row in ids]
    options = {} if every is None else {"every": every}
    watch: Any = mcr_lens.training_callback(list(ids[:PROMPTS]), **options)
    with tempfile.TemporaryDirectory() as folder:
        settings = hf.TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = hf.Trainer(model, settings, train_dataset=data, callbacks=[watch])
        began = time.perf_counter()
        trainer.train()
        whole = time.perf_counter() - began
    measured = len([line for line in trainer.state.log_history if "mcr/bos_ratio" in line])
    return {
        "steps": steps,
        "every": watch.every,
        "measurements": measured,
        "seconds of a step": round((whole - watch.seconds) / steps, 4),
        "seconds of a measurement": round(watch.seconds / measured, 4),
        "share of time": round(watch.seconds / whole, 5),
    }


def main() -> None:
    """Read the command line and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, help="by default the callback's own")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from bench_measure import machine

    found = {"machine": machine(), "watch": watched(given.steps, given.every)}
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
