"""Another project uses mcr_lens: interventions as plain TransformerLens hooks, and a verdict, in five lines.

python examples/use_in_your_project.py
"""

from typing import Any

import mcr_lens as mcr

PROMPTS = [
    "The river had frozen in the night, and nobody wanted to be the first to cross it.",
    "A function that returns a list of names should say in what order they come back.",
    "She counted the coins twice, put them in the drawer, and went to open the shop.",
    "If the value is missing, the default is used, and no error is raised.",
]


def main(model: Any = None) -> tuple[float, float, mcr.Diagnosis]:
    """Loss without and with the write that makes BOS massive, and what a diagnosis says."""
    model = model or mcr.load_model("demo")  # or a TransformerBridge or HookedTransformer of your own
    tokens = model.to_tokens(PROMPTS[0])

    culprit = mcr.massive_layer(mcr.measure(model, PROMPTS, ["massive_activation_ratio"]))
    hooks = mcr.zero_bos_mlp(culprit).fwd_hooks(model)  # (hook name, function) pairs
    clean = model(tokens, return_type="loss").item()
    cut = model.run_with_hooks(tokens, fwd_hooks=hooks, return_type="loss").item()
    diagnosis = mcr.diagnose(model, PROMPTS, progress=False)

    print(f"loss {clean:.2f}, and {cut:.2f} without the write of MLP {culprit} at BOS")
    print(diagnosis.summary)
    return clean, cut, diagnosis


if __name__ == "__main__":
    main()
