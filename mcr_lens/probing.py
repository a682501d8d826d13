"""What does one short forward pass show of a model: shapes, masks, and whether the parts add up?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mcr_lens.hookpoints import READS, HookedModel, context_length, trying
from mcr_lens.visibility import Visibility, attention_chunk, attention_window, is_causal

SHORTEST, LONGEST = 16, 1032
"""Tokens of the probe: enough to reach beyond the shortest window, within reason."""


@dataclass(frozen=True)
class LayerFacts:
    """One attention layer in this model."""

    layer: int
    window: int | None  # keys that a query sees at most
    mask_problem: str  # "" where the pattern is zero exactly outside the keys that mcr_lens takes for visible
    row_sum: tuple[float, float]  # smallest and largest sum of an attention row
    adds_up: bool  # stream + attention + MLP = next stream
    mid_adds_up: bool  # stream + attention = the stream between attention and MLP, where there is one
    heads_add_up: bool  # pattern times values = head outputs


class Probe:
    """A forward pass on random tokens; of every tensor, what the facts need and no more."""

    def __init__(self, model: HookedModel, names: Mapping[str, Sequence[str]]) -> None:
        self._model, self._names = model, names
        windows = [attention_window(model, layer) for layer in range(model.cfg.n_layers)]
        reach = min((w for w in windows if w), default=0) + 8
        self.length: int = max(SHORTEST, reach if reach <= LONGEST else 0)
        self.length = min(self.length, context_length(model) or self.length)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtype: torch.dtype | None = None
        self.last: dict[tuple[str, int], Tensor] = {}  # the last row, or for values all rows
        self.seen: dict[int, Tensor] = {}  # [query, key]: attended to by some head
        self.sums: dict[int, tuple[float, float]] = {}

    def run(self) -> str:
        """Run it; what went wrong, if anything did."""
        g = torch.Generator().manual_seed(0)
        vocabulary = min(getattr(self._model.cfg, "d_vocab", None) or 100, 1000)
        tokens = torch.randint(vocabulary // 10, vocabulary, (1, self.length), generator=g)
        hooks = [
            (name, partial(self._receive, read=read, index=index))
            for read, found in self._names.items()
            for index, name in enumerate(found)
        ]
        try:
            with trying(self._model, hooks):
                self._model(tokens.to(self._model.cfg.device), return_type=None)
        except Exception as error:  # whatever it is, it is what the user would meet in `measure`
            return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
        return ""

    def _receive(self, tensor: Any, hook: Any = None, *, read: str, index: int) -> None:
        self.shapes.setdefault(read, tuple(tensor.shape))
        if read == "resid":
            self.dtype = tensor.dtype
        if read == "attention":  # of a model as it is served: for a few tokens, the pattern may be built
            read, tensor = "pattern", tensor.pattern()
            self.last["attention", index] = tensor[0, :, -1]
        if tensor.ndim != len(READS[read].dims.split()):
            return
        tensor = tensor.detach()[0]
        if read == "pattern":
            sums = tensor.float().sum(-1)
            self.sums[index] = (float(sums.min()), float(sums.max()))
            self.seen[index] = (tensor != 0).any(0).cpu()
            self.last[read, index] = tensor[:, -1].float().cpu()
        else:
            self.last[read, index] = (tensor if read == "value" else tensor[-1]).float().cpu()


def layer_facts(model: HookedModel, probe: Probe, layer: int) -> LayerFacts:
    """What a probe showed of one layer."""
    window = attention_window(model, layer)
    last = {read: probe.last.get((read, layer)) for read in READS}
    after, middle = probe.last.get(("resid", layer + 1)), last["resid_mid"]
    parts = [last["resid"], last["attn_out"], last["mlp_out"]]
    return LayerFacts(
        layer=layer,
        window=window,
        mask_problem=_mask_problem(
            probe.seen.get(layer), is_causal(model), window, attention_chunk(model, layer)
        ),
        row_sum=probe.sums.get(layer, (float("nan"), float("nan"))),
        adds_up=_close(parts, after, probe.dtype),
        mid_adds_up=middle is None or _close(parts[:2], middle, probe.dtype),
        heads_add_up=_close([_mixed(last["pattern"], last["value"])], last["z"], probe.dtype),
    )


def _mask_problem(seen: Tensor | None, causal: bool, window: int | None, chunk: int | None) -> str:
    """Where the pattern disagrees with the keys that mcr_lens takes for visible, in words; "" if nowhere."""
    if seen is None:
        return ""
    length = seen.shape[0]
    claimed = Visibility(length, causal, window, chunk).mask()
    offset = torch.arange(length)[:, None] - torch.arange(length)
    outside = (seen & ~claimed).nonzero().tolist()
    if outside:
        return f"query {outside[0][0]} attends to key {outside[0][1]}, which it should not see"
    # Single weights may round to zero, a whole diagonal of all heads does not.
    unseen = [int(o) for o in offset[claimed].unique() if not seen[claimed & (offset == o)].any()]
    return f"no query attends to the key {unseen[0]} places back, which it should see" if unseen else ""


def _mixed(weights: Tensor | None, values: Tensor | None) -> Tensor | None:
    """Head outputs of the last query, from its attention [head, key] and the values [key, head, d_head]."""
    if weights is None or values is None or weights.shape[0] % values.shape[1]:
        return None
    values = values.repeat_interleave(weights.shape[0] // values.shape[1], dim=1)
    return torch.einsum("hk,khd->hd", weights, values)


def _close(parts: Sequence[Tensor | None], whole: Tensor | None, dtype: torch.dtype | None) -> bool:
    """Whether parts add up to a whole, within the rounding of the model's own arithmetic."""
    if whole is None or any(part is None or part.shape != whole.shape for part in parts):
        return False
    present = [part for part in parts if part is not None]
    size = max(float(part.norm()) for part in [*present, whole])
    return float((sum(present) - whole).norm()) <= 16 * torch.finfo(dtype or torch.float32).eps * size
