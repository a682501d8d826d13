"""How are all row norms and some heads' attention patterns read in one forward pass?"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mcr_lens.batches import Batch, forward_arguments, in_batches
from mcr_lens.hookpoints import HookDidNotFireError, HookedModel, check_pattern, hook_names, model_name
from mcr_lens.metrics.norms import token_norms
from mcr_lens.observer import NonFiniteActivationError
from mcr_lens.prompts import Prompt

Head: TypeAlias = tuple[int, int]
"""(layer, head), counted from 0."""


class Reader:
    """Reads row norms and the chosen heads' patterns of one prompt, one forward pass at a time.

    Raises:
        MissingHookPointError, PatternNotComputedError: before any run.
    """

    def __init__(self, model: HookedModel, heads: Sequence[Head]) -> None:
        self._model, self._heads = model, heads
        self._streams = dict(enumerate(hook_names(model, "resid")))
        every = hook_names(model, "pattern") if heads else []
        self._layers = {layer: every[layer] for layer, _ in heads}
        check_pattern(model, list(self._layers.values()))
        self._norms: dict[int, np.ndarray] = {}
        self._patterns: dict[Head, np.ndarray] = {}

    def read(self, row: Prompt, edits: Sequence[Any], condition: str) -> tuple[np.ndarray, np.ndarray]:
        """Norms [depth, position] and patterns [shown, query, key] (float32) under these edits.

        Args:
            row: the prompt.
            edits: hooks that change something, as pairs (hook name, callback).
            condition: what to call it in a message.

        Raises:
            HookDidNotFireError: a hook point was never reached.
            NonFiniteActivationError: NaN or infinity in the residual stream.
        """
        self._norms, self._patterns = {}, {}
        hooks = [(name, partial(self._keep_norms, depth=depth)) for depth, name in self._streams.items()]
        hooks += [(name, partial(self._keep_patterns, layer=layer)) for layer, name in self._layers.items()]
        arguments = forward_arguments(self._model, needs_logits=False)

        def run(batch: Batch) -> None:
            # Readers behind the edits, so that what is shown is what the rest of the model sees.
            with torch.no_grad(), self._model.hooks(fwd_hooks=[*edits, *hooks]):
                self._model(batch.tokens, **arguments)

        ((_, _),) = in_batches(self._model, [row], 1, run, progress=False)
        silent = [name for depth, name in self._streams.items() if depth not in self._norms]
        silent += [self._layers[layer] for layer, head in self._heads if (layer, head) not in self._patterns]
        if silent:
            name = model_name(self._model)
            raise HookDidNotFireError(f"{name} never reaches {silent[0]!r} in a plain forward pass")
        norms = np.stack([self._norms[depth] for depth in self._streams])
        if not np.isfinite(norms).all():
            depth = int(np.flatnonzero(~np.isfinite(norms).all(1))[0])
            raise NonFiniteActivationError(
                f"the residual stream is NaN or infinite from depth {depth} on in condition {condition!r}; "
                "run the model in float32 or bfloat16, or leave that condition out"
            )
        length = len(row.ids)
        patterns = np.empty((len(self._heads), length, length), np.float32)
        for place, pair in enumerate(self._heads):
            patterns[place] = self._patterns[pair]
        return norms, patterns

    def _keep_norms(self, stream: Tensor, hook: Any = None, *, depth: int) -> None:
        self._norms[depth] = token_norms(stream.detach())[0].cpu().numpy()

    def _keep_patterns(self, pattern: Tensor, hook: Any = None, *, layer: int) -> None:
        for pair in self._heads:
            if pair[0] == layer:
                self._patterns[pair] = pattern.detach()[0, pair[1]].float().cpu().numpy()
