"""Which prompts run together, as which tensor, and with which arguments?"""

import inspect
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mcr_lens.hookpoints import HookedModel
from mcr_lens.memory import OutOfMemoryWarning, in_short, is_out_of_memory, release, told, too_large_for_one
from mcr_lens.prompts import Prompt, make_batches, stack

Ran = TypeVar("Ran")

_LARGEST: "WeakKeyDictionary[Any, int]" = WeakKeyDictionary()

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
    model: HookedModel,
    rows: Sequence[Prompt],
    batch_size: int | Literal["auto"],
    run: Callable[[Batch], Ran],
    *,
    progress: bool,
) -> Iterator[tuple[Batch, Ran]]:
    """All prompts, those of similar length together, and what `run` makes of each batch.

    A batch that does not fit in memory is run again in halves, and no later one is larger than those; `run`
    must leave nothing of a batch behind that it did not finish.

    Warns:
        OutOfMemoryWarning: which batch did not fit, and how large they are from now on.

    Raises:
        ValueError: a batch size that is not a positive integer or "auto".
        MemoryError: a single prompt does not fit.
    """
    waiting = deque(make_batches([len(row.ids) for row in rows], model, batch_size))
    _LARGEST[model] = 0
    with tqdm(total=len(rows), unit="prompt", disable=not progress, delay=1, leave=False) as bar:
        while waiting:
            numbers = waiting.popleft()
            tried = _tried(model, rows, numbers, run)
            if not isinstance(tried, str):
                _LARGEST[model] = max(_LARGEST[model], len(numbers))
                yield tried
                del tried  # or the next batch would run beside what came of this one
                bar.update(len(numbers))
                continue
            release()  # here, where no traceback holds what the batch needed
            if len(numbers) == 1:
                raise too_large_for_one(len(rows[numbers[0]].ids), tried, served=hasattr(model, "lacks"))
            most = len(numbers) // 2
            warnings.warn(told(tried, len(numbers), most), OutOfMemoryWarning, stacklevel=2)
            waiting = deque(part for each in (numbers, *waiting) for part in _cut(each, most))


def _tried(
    model: HookedModel, rows: Sequence[Prompt], numbers: Sequence[int], run: Callable[[Batch], Ran]
) -> tuple[Batch, Ran] | str:
    """A batch and what came of it; or why there was too little memory, and nothing of it is held then."""
    filler = getattr(getattr(model, "tokenizer", None), "pad_token_id", None)
    device = torch.device(getattr(model.cfg, "device", None) or "cpu")
    prompts = tuple(rows[i] for i in numbers)
    try:
        tokens = stack(prompts, filler if filler is not None else int(prompts[0].ids[0]))
        batch = Batch(tuple(numbers), prompts, tokens.to(device))
        return batch, run(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return in_short(error)


def _cut(numbers: Sequence[int], most: int) -> list[list[int]]:
    """A batch in parts, none larger than `most`."""
    return [list(numbers[i : i + most]) for i in range(0, len(numbers), most)]


def largest_batch(model: HookedModel) -> int:
    """How many prompts ran together at most when batches last ran through this model; 0 if none did."""
    return _LARGEST.get(model, 0)


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
