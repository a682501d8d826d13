"""Which prompts run together, as which tensor, and with which arguments?"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mcr_lens.hookpoints import HookedModel
from mcr_lens.prompts import Prompt, make_batches, stack

_RUNNING: ContextVar[tuple[int, ...] | None] = ContextVar("mcr_lens_running", default=None)


@dataclass(frozen=True)
class Batch:
    """Prompts that run together: their numbers, what they are, and [batch, pos] on the model's device."""

    numbers: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    tokens: Tensor

    @property
    def lengths(self) -> list[int]:
        """Real tokens of each row; they begin at position 0."""
        return [len(prompt.ids) for prompt in self.prompts]


def in_batches(
    model: HookedModel, rows: Sequence[Prompt], batch_size: int | Literal["auto"], *, progress: bool
) -> Iterator[Batch]:
    """All prompts, those of similar length together, with a progress bar.

    Raises:
        ValueError: a batch size that is not a positive integer or "auto".
    """
    filler = getattr(getattr(model, "tokenizer", None), "pad_token_id", None)
    device = torch.device(getattr(model.cfg, "device", None) or "cpu")
    chosen = make_batches([len(row.ids) for row in rows], model, batch_size)
    with tqdm(total=len(rows), unit="prompt", disable=not progress, delay=1, leave=False) as bar:
        for numbers in chosen:
            prompts = tuple(rows[i] for i in numbers)
            tokens = stack(prompts, filler if filler is not None else int(prompts[0].ids[0]))
            yield Batch(tuple(numbers), prompts, tokens.to(device))
            bar.update(len(numbers))


def forward_arguments(model: Any, *, needs_logits: bool) -> dict[str, Any]:
    """Skip the unembedding where the model can: HookedTransformer by return_type, Hugging Face by one row."""
    if needs_logits:
        return {"return_type": "logits"}
    wrapped = getattr(model, "original_model", None)
    if wrapped is not None and "logits_to_keep" in inspect.signature(wrapped.forward).parameters:
        return {"return_type": None, "logits_to_keep": 1}
    return {"return_type": None}


@contextmanager
def running(numbers: tuple[int, ...]) -> Iterator[None]:
    """Say which prompts stand in the rows of the forward passes inside, for edits that draw by prompt."""
    token = _RUNNING.set(numbers)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def running_numbers(n_rows: int) -> tuple[int, ...]:
    """The prompts in the rows of this forward pass; in somebody's own loop, the rows themselves."""
    known = _RUNNING.get()
    return known if known is not None and len(known) == n_rows else tuple(range(n_rows))
