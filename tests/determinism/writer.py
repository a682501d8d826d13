"""Writes everything that the library writes into the working folder; run by test_same_files, several times.

Names are relative, so that the working folder is not in any of them.
"""

from pathlib import Path

import torch

import mcr_lens
from mcr_lens.delivery import deliver, look_closely

TEXTS = ["The river runs to the sea.", "A cat sat down on the mat, and slept until the evening came."]


def main() -> None:
    torch.set_num_threads(1)
    model = mcr_lens.load_model("demo", verbose=False)
    found = mcr_lens.diagnose(model, TEXTS, progress=False)
    ds = found.findings.clean
    Path("out").mkdir()
    seen = look_closely(model, TEXTS[0], ds, prepend_bos="auto")
    deliver(ds, Path("out"), close_up=seen, found=found)
    lens = mcr_lens.logit_lens(model, TEXTS, window=8, progress=False)
    mcr_lens.save(lens, "out/lens.nc")
    text = " ".join(TEXTS * 20)
    mcr_lens.fit_tuned_lens(model, [text], steps=2, progress=False).save("out/lens.safetensors")
    plan = {
        "out": "sweep", "models": [{"name": "demo", "model": model}], "chunk": 1,
        "prompts": [{"name": "p", "texts": TEXTS}], "metrics": ["norms", "sink_score"],
        "conditions": {"clean": [], "cut": [mcr_lens.zero_bos_mlp(0)]},
    }  # fmt: skip
    mcr_lens.sweep(plan, progress=False)


if __name__ == "__main__":
    main()
