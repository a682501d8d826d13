"""Which keys of a block of scores must be hidden from its queries?"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mcr_lens.visibility import Visibility

HIDDEN = -1e30
"""The score of a key that a query does not see: finite, because 0 · ∞ is not 0."""

MASKS = 4
"""How many masks are kept: blocks at the diagonal share one, those at the far end of a window another."""


@dataclass(frozen=True)
class SeenKeys(Visibility):
    """What queries see, block by block of scores."""

    _masks: dict[Any, Tensor] = field(default_factory=dict, compare=False)

    def keys_of(self, first: int, stop: int) -> tuple[int, int]:
        """The range of keys that some query of first … stop − 1 sees."""
        low, high = 0, stop if self.causal else self.length
        if self.window:
            low = max(low, first - self.window + 1)
        if self.chunk:
            low = max(low, first // self.chunk * self.chunk)
            high = min(high, -(-stop // self.chunk) * self.chunk)
        return low, high

    def hide(self, scores: Tensor, first: int, low: int) -> None:
        """Lower the scores of keys that a query does not see; first query and key of the block are given."""
        rows, width = scores.shape[-2:]
        if self._sees_all(first, first + rows - 1, low, low + width - 1):
            return
        # Without a limit to the left, hidden keys begin behind the first query.
        start = low if self.window or self.chunk else max(low, first)
        scores[..., start - low :] += self._hidden(first, rows, start, low + width - start, scores)

    def _sees_all(self, first: int, last: int, low: int, high: int) -> bool:
        """Whether each of these queries sees each of these keys."""
        apart = self.chunk is not None and len({at // self.chunk for at in (first, last, low, high)}) > 1
        behind = self.causal and high > first
        return not (apart or behind or (self.window is not None and low <= last - self.window))

    def _hidden(self, first: int, rows: int, low: int, width: int, like: Tensor) -> Tensor:
        """What must be added to the scores: 0 where a key is seen."""
        offset = 0 if self.chunk is None else first % self.chunk
        shape = (rows, width, low - first, offset)
        if shape not in self._masks:
            query = torch.arange(first, first + rows, device=like.device)[:, None]
            key = torch.arange(low, low + width, device=like.device)
            if len(self._masks) >= MASKS:
                self._masks.clear()
            self._masks[shape] = torch.where(self.sees(query, key), 0.0, HIDDEN).to(like.dtype)
        return self._masks[shape]
