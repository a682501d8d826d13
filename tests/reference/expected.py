"""The reference values of one prompt for every metric, by name: [depth or layer, ...] arrays."""

import numpy as np

from reference.capture import Trace
from reference.formulas import DEPTH, LAYER, OUTPUT, Depth, Layer, Output


def visible(length: int, *, causal: bool, window: int | None) -> np.ndarray:
    """Which keys each query sees, [query, key]."""
    seen = np.ones((length, length), dtype=bool)
    for i in range(length):
        for j in range(length):
            too_late = causal and j > i
            too_far = window is not None and i - j >= window
            seen[i, j] = not (too_late or too_far)
    return seen


def expected(trace: Trace, *, windows, causal: bool = True, position: int = 0) -> dict[str, np.ndarray]:
    """Every metric of one prompt; `windows` has one entry per layer, None for no window."""
    length = len(trace.tokens)
    depths = [Depth(x, position) for x in trace.stream]
    layers = [
        Layer(
            a=trace.pattern[layer],
            seen=visible(length, causal=causal, window=window),
            attention=trace.attention[layer],
            mlp=trace.mlp[layer],
            value=trace.value[layer],
            z=trace.z[layer],
            output=trace.output[layer],
            p=position,
        )
        for layer, window in enumerate(windows)
    ]
    found = {name: np.stack([formula(at) for at in depths]) for name, formula in DEPTH.items()}
    found |= {name: np.stack([formula(at) for at in layers]) for name, formula in LAYER.items()}
    output = Output(trace.logits, trace.tokens)
    return found | {name: np.array(formula(output)) for name, formula in OUTPUT.items()}
