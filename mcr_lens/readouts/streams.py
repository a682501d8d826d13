"""How does what is computed at each depth's residual stream come out of a forward pass, batch by batch?"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from mcr_lens.batches import Batch, forward_arguments, in_batches, running
from mcr_lens.hookpoints import HookDidNotFireError, HookedModel, check_eval, hook_names, model_name
from mcr_lens.observer import NonFiniteActivationError
from mcr_lens.prompts import Prompt

Reduced = TypeVar("Reduced")


def by_depth(
    model: HookedModel,
    rows: Sequence[Prompt],
    reduce: Callable[[Float[Tensor, "batch pos d_model"], Batch], Reduced],
    *,
    batch_size: int | Literal["auto"] = "auto",
    edits: Sequence[tuple[str, Any]] = (),
    then: Callable[[Batch, list[Any]], Any] = lambda batch, found: found,
    progress: bool = False,
) -> Iterator[tuple[Batch, Any]]:
    """Run prompts through the model once; for each batch, what `reduce` makes of the stream at depths 0..L.

    `reduce(stream, batch)` is called at the hook, without gradients, with the stream of the whole batch:
    rows are padded on the right, and `batch.lengths` says how many positions of each are real. Keeping the
    stream itself takes `stream.detach()`; it lives as long as it is kept. The unembedding is skipped. `edits`
    are hooks of interventions, which come before what is read.

    `then(batch, found)` makes of a batch what comes out in the place of the list; where it needs memory, it
    belongs here: a batch that does not fit is run again in smaller ones, up to here, with a warning.

    Raises:
        TypeError: not a TransformerLens model.
        ValueError: a model in training mode, or a batch size that is neither positive nor "auto".
        MissingHookPointError: the model lacks a hook point of the stream.
        HookDidNotFireError: a hook point of the stream was never reached.
        NonFiniteActivationError: NaN or infinity in the stream of a real token.
        MemoryError: a single prompt does not fit in memory.

    Source: this library.
    """
    check_eval(model)
    names = hook_names(model, "resid")
    arguments = forward_arguments(model, needs_logits=False)

    def run(batch: Batch) -> Any:
        found: dict[int, Reduced] = {}
        broken: dict[int, Tensor] = {}

        def take(stream: Tensor, hook: Any = None, *, depth: int) -> None:
            found[depth] = reduce(stream, batch)
            broken[depth] = _broken_rows(stream, batch.lengths)

        hooks = [(name, partial(take, depth=depth)) for depth, name in enumerate(names)]
        with torch.no_grad(), running(batch.numbers), model.hooks(fwd_hooks=[*edits, *hooks]):
            model(batch.tokens, **arguments)
        _check(model, names, batch, found, broken)
        return then(batch, [found[depth] for depth in range(len(names))])

    yield from in_batches(model, rows, batch_size, run, progress=progress)


def _broken_rows(stream: Tensor, lengths: Sequence[int]) -> Tensor:
    """Which rows hold NaN or infinity at a real token: [batch]. A sum is finite only if all of it is."""
    total = stream.detach().float().sum(-1)
    real = torch.arange(total.shape[1], device=total.device) < torch.tensor(
        lengths, device=total.device
    ).unsqueeze(1)
    return (~total.isfinite() & real).any(1)


def _check(
    model: HookedModel, names: Sequence[str], batch: Batch, found: dict[int, Any], broken: dict[int, Tensor]
) -> None:
    silent = [name for depth, name in enumerate(names) if depth not in found]
    if silent:
        raise HookDidNotFireError(f"{model_name(model)} never reaches {silent[0]!r} in a plain forward pass")
    for depth in sorted(broken):
        rows = broken[depth].nonzero()[:, 0].tolist()
        if rows:
            raise NonFiniteActivationError(
                f"the residual stream is NaN or infinite at depth {depth} in prompt {batch.numbers[rows[0]]} "
                f"({len(rows)} of {len(batch.numbers)} prompts of a batch); run the model in float32 or "
                "bfloat16, or leave those prompts out"
            )
