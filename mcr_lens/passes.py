"""What happens to one forward pass on its way through the model?"""

from collections.abc import Iterable
from typing import Any

import einops
import torch
from torch import Tensor

from mcr_lens.hookpoints import READS, HookedModel, output_projection
from mcr_lens.plan import Plan
from mcr_lens.rows import Group, Rows, group_rows
from mcr_lens.sites import Site
from mcr_lens.visibility import Visibility, layer_visibility
from mcr_lens.workers import HELD

MASKS = 8
"""How many attention masks are kept: prompts of one length follow each other, layers alternate windows."""


class Statics:
    """What steps need besides activations: what queries see, and output projections, by layer."""

    def __init__(self, model: HookedModel, wanted: frozenset[str], position: int = 0) -> None:
        self._model, self._wanted, self._position = model, wanted, position
        self._grams: dict[int, Tensor] = {}
        self._seen: dict[Any, dict[str, Any]] = {}  # of the last few lengths

    def at(self, axis: str, layer: int, length: int, device: torch.device) -> dict[str, Any]:
        if axis != "layer":
            return {}
        known: dict[str, Any] = {}
        if self._wanted - {"output_gram"}:
            known |= self._visible(layer_visibility(self._model, layer, length), device)
        if "output_gram" in self._wanted:
            if layer not in self._grams:
                weight = output_projection(self._model, layer).detach().float()
                self._grams[layer] = einops.einsum(weight, weight, "h d m, h e m -> h d e")
            known["output_gram"] = self._grams[layer]
        return known

    def _visible(self, seen: Visibility, device: torch.device) -> dict[str, Any]:
        if (seen, device) not in self._seen:
            if len(self._seen) >= MASKS:
                self._seen.clear()
            known: dict[str, Any] = {
                "(visible_keys)": seen.keys().to(device),
                "(visible_queries)": seen.queries().to(device),
                "(seeing_queries)": seen.seeing(self._position).to(device),
                "visibility": seen,
            }
            if "visible" in self._wanted:
                known["visible"] = seen.mask(device)
            self._seen[seen, device] = known
        return self._seen[seen, device]


class Pass:
    """One forward pass on its way through the model."""

    def __init__(self, rows: Rows, plan: Plan, statics: Statics) -> None:
        self.rows = rows
        self.groups: list[Group] = group_rows(rows.spans)
        self.fired: set[tuple[str, int]] = set()
        self.problem: str | None = None
        self._plan, self._statics = plan, statics
        self._sites: dict[tuple[str, int, int], Site] = {}
        self._held: dict[tuple[str, int, int], int] = {}

    def receive(self, read: str, index: int, tensor: Any) -> None:
        axis = READS[read].axis
        for number, group in enumerate(self.groups):
            key = (axis, index, number)
            if key not in self._sites:
                known = self._statics.at(axis, index, group.length, tensor.device)
                self._sites[key] = Site(self._plan.steps[axis], known)
            cut = tensor.cut(group) if read == "attention" else group.cut(tensor, pattern=read == "pattern")
            site = self._sites[key]
            site.receive(read, cut)
            if axis == "layer":
                self._held[key] = site.held
        if sum(self._held.values()) > HELD:
            self._settle(key for key, held in self._held.items() if held)
            self._held.clear()

    def receive_logits(self, logits: Tensor | None, clean_logits: Tensor | None) -> None:
        for number, group in enumerate(self.groups):
            site = Site(self._plan.steps["pass"], {})
            self._sites["pass", 0, number] = site
            if self.rows.batch is not None and logits is not None:
                site.receive("tokens", group.cut(self.rows.batch).to(logits.device))
                site.receive("logits", group.cut(logits))
                if clean_logits is not None:
                    site.receive("clean_logits", group.cut(clean_logits))

    def _settle(self, keys: Iterable[tuple[str, int, int]]) -> None:
        """Run what waits at these places, for all places together that have a length and a mask in common."""
        alike: dict[Any, list[Site]] = {}
        for key in keys:
            site = self._sites[key]
            if site.waits:
                alike.setdefault((key[0], key[2], site.alike), []).append(site)
        for sites in alike.values():
            Site.settle_together(sites)

    def values(self, name: str, axis: str, count: int) -> Tensor:
        """One variable for all prompts of the pass: [prompt, depth or layer, ...]."""
        stacked = []
        self._settle(self._sites)
        for number, group in enumerate(self.groups):
            sites = [self._sites[axis, index, number] for index in range(count)]
            found: list[Any] = [site.results.get(name) for site in sites]
            if any(not torch.is_tensor(v) or v.shape[:1] != (len(group.rows),) for v in found):
                raise ValueError(_wrong_shape(name, axis, len(group.rows), found[0]))
            found = [v.to(found[0].device) for v in found]
            stacked.append(torch.stack(found, 1) if axis != "pass" else found[0])
        # Groups gather rows of one length; put them back in the order of the batch.
        order = torch.tensor([row for group in self.groups for row in group.rows]).argsort()
        return torch.cat(stacked)[order.to(stacked[0].device)]


def _wrong_shape(name: str, axis: str, rows: int, value: Any) -> str:
    if axis == "pass" and value is None:
        return f"metric {name!r} reads logits, which only `measure` hands over; leave it out here"
    got = list(value.shape) if torch.is_tensor(value) else type(value).__name__
    return f"metric {name!r} must return one row per prompt, [{rows}, ...], and returned {got}"
