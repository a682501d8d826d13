"""Which modules of a Hugging Face model are its blocks, and is their attention what is known of attention?

There is no table of families: a few tokens run through the model. Its blocks are the list of modules each of
which calls for attention once, and a layer's attention is known when softmax(scores) times values, by the
book, is what its attention function returned.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mcr_lens.served_attention import (
    Attention,
    CannotServeError,
    configurations,
    implementation,
    reading,
    uncompiled,
)
from mcr_lens.served_writes import Tape, find_projection, find_writes, first_tensor, taping
from mcr_lens.visibility import Visibility

TOKENS = 9
"""Tokens of the trial: enough for windows of tiny models to show, few enough for the largest."""

ELSEWHERE = "wrap the model with mcr_lens.load_model"

Limits = Callable[[int], tuple[int | None, int | None]]
"""By layer: the window and the chunk that the model's configuration says."""


@dataclass(frozen=True)
class Block:
    """One block of the model and its parts."""

    module: nn.Module
    attention: nn.Module  # that calls the attention function
    writes: dict[str, nn.Module]  # attn_out, mlp_out: where they were found
    projection: nn.Module | None  # that reads the head outputs
    weight: str = ""  # how its weight lies: "out in", "in out", or "" where it cannot be used


@dataclass(frozen=True)
class Parts:
    """What the trial found."""

    blocks: tuple[Block, ...]
    causal: bool
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_model: int
    lacks: dict[str, str]  # read -> why there is none


@dataclass
class _Call:
    """What one attention module was asked, and what it answered."""

    module: nn.Module
    seen: Any = None
    value: Any = None
    output: Any = None
    count: int = 0

    def values(self, value: Tensor) -> Tensor:
        self.value = value
        return value

    def attention(self, seen: Attention, output: Any) -> Any:
        self.seen, self.output, self.count = seen, first_tensor(output), self.count + 1
        return output


def known_parts(model: nn.Module, device: torch.device, limits: Limits) -> Parts:
    """The same as `find_parts`, without running the model again as long as it is made of the same modules.

    A new module, another `forward`, a hook more or less, another configuration or attention implementation:
    each of them is looked at anew.

    Raises:
        CannotServeError: see `find_parts`.

    Source: this library.
    """
    made_of = (
        device,
        str(getattr(model, "config", None)),
        tuple(config._attn_implementation_internal for config in configurations(model)),
        tuple(
            (
                id(module), id(module.__dict__.get("forward")),
                tuple(module._forward_hooks), tuple(module._forward_pre_hooks),
            )
            for module in model.modules()
        ),
    )  # fmt: skip
    before = _FOUND.get(model)
    if before is None or before[0] != made_of:
        # With the modules themselves: as long as they live, no other has their identity.
        _FOUND[model] = before = (made_of, find_parts(model, device, limits), list(model.modules())[1:])
    return before[1]


_FOUND: WeakKeyDictionary[nn.Module, tuple[Any, Parts, list[nn.Module]]] = WeakKeyDictionary()


def find_parts(model: nn.Module, device: torch.device, limits: Limits) -> Parts:
    """Run a few tokens and find the blocks, their attention and what they write.

    Args:
        model: a Hugging Face model in evaluation mode.
        device: where its inputs go.
        limits: the window and the chunk of each layer, as the configuration says.

    Raises:
        CannotServeError: its attention cannot be seen, or is not what is known of attention.

    Source: this library.
    """
    tokens = _tokens(model, device)
    with torch.no_grad(), uncompiled(model):
        calls = _watch(model, tokens)
        owners = _find_blocks(model, calls)
        causal = _check_attention(type(model).__name__, list(owners.values()), limits)
        blocks, lacks, width = _look_inside(model, tokens, owners)
    first = next(iter(owners.values()))
    return Parts(
        blocks=tuple(blocks),
        causal=causal,
        n_heads=first.seen.query.shape[1],
        n_key_value_heads=first.seen.key.shape[1],
        d_head=first.output.shape[-1],
        d_model=width,
        lacks=lacks,
    )


def run(model: nn.Module, tokens: Tensor, **arguments: Any) -> Any:
    """One forward pass without a key-value cache: the model's own output object."""
    return model(input_ids=tokens, **{**without_cache(model), **arguments})


def without_cache(model: nn.Module) -> dict[str, Any]:
    """The argument that keeps a model from filling a key-value cache, where it takes one."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def logits_of(output: Any) -> Tensor:
    """Logits of a model with a head, hidden states of one without.

    Raises:
        CannotServeError: neither.
    """
    for name in ("logits", "last_hidden_state"):
        if torch.is_tensor(getattr(output, name, None)):
            return getattr(output, name)
    raise CannotServeError(
        f"a model that returns {type(output).__name__} without logits is no language model"
    )


def language_config(model: Any) -> Any:
    """The configuration of the language model, which may be a part of a larger one."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _tokens(model: Any, device: torch.device) -> Tensor:
    config = language_config(model)
    vocabulary = int(getattr(config, "vocab_size", None) or 100)
    length = min(TOKENS, int(getattr(config, "max_position_embeddings", None) or TOKENS))
    low = min(vocabulary // 10, 1000)
    g = torch.Generator().manual_seed(0)
    return torch.randint(low, min(vocabulary, low + 1000), (1, length), generator=g).to(device)


def _try(model: Any, tokens: Tensor) -> Any:
    """The first pass: does the model run on token ids alone?"""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise CannotServeError(
            f"{name} is an encoder with a decoder, and layers are counted in one stack only"
        )
    try:
        return run(model, tokens)
    except Exception as error:  # whatever it is, it is what the user would meet in a forward pass
        why = str(error).strip().split("\n")[0]
        raise CannotServeError(
            f"{name} does not run on token ids alone ({why[:200]}); {ELSEWHERE}"
        ) from error


def _watch(model: nn.Module, tokens: Tensor) -> list[_Call]:
    """Every call for attention in one pass, which computes what it does when nobody looks."""
    plain = logits_of(_try(model, tokens))
    calls = {module: _Call(module) for module in model.modules()}
    with reading(model, calls):
        watched = logits_of(run(model, tokens))
    if not torch.equal(plain, watched) and torch.equal(plain, logits_of(run(model, tokens))):
        raise CannotServeError(
            f"{type(model).__name__} computes something else when its {implementation(model)!r} attention is "
            f"looked at, because it asks for it by name; {ELSEWHERE}"
        )
    return [call for call in calls.values() if call.count]


def _find_blocks(model: Any, called: Sequence[_Call]) -> dict[nn.Module, _Call]:
    """The modules of one list, as long as the model is deep, each of which calls for attention once."""
    name = type(model).__name__
    if not called:
        raise CannotServeError(
            f"{name} computes its attention by itself and not through transformers' AttentionInterface, so "
            f"it cannot be measured as it is served; {ELSEWHERE}"
        )
    depth = getattr(language_config(model), "num_hidden_layers", None)
    for candidate in model.modules():
        if isinstance(candidate, nn.ModuleList) and len(candidate) == depth:
            owners = {block: [c for c in called if c.module in set(block.modules())] for block in candidate}
            inside = [call for calls in owners.values() for call in calls]
            if len(inside) < len(called) or any(c.count != 1 for c in called):
                continue
            without = [i for i, calls in enumerate(owners.values()) if not calls]
            if without:
                raise CannotServeError(
                    f"{name} has blocks without attention that transformers' AttentionInterface knows (block "
                    f"{without[0]}), so layers cannot be compared; {ELSEWHERE}"
                )
            if all(len(calls) == 1 for calls in owners.values()):
                return {block: calls[0] for block, calls in owners.items()}
    raise CannotServeError(
        f"{name} calls for attention {sum(c.count for c in called)} times and not once in each of "
        f"{depth} blocks (an encoder with a decoder, or layers that are shared); {ELSEWHERE}"
    )


def _check_attention(name: str, calls: Sequence[_Call], limits: Limits) -> bool:
    """Whether queries see earlier keys only, after every layer's attention was done again by the book."""
    broken = [i for i, call in enumerate(calls) if not _finite(call)]
    if broken:
        raise CannotServeError(
            f"{name} computes NaN or infinity: it is in the attention of layer {broken[0]} already, for "
            "plain tokens; look at the weights up to there, or load the model in float32 or bfloat16"
        )
    for causal in (True, False):
        wrong = [layer for layer, call in enumerate(calls) if not _known(call, causal, *limits(layer))]
        if not wrong:
            return causal
    first = next(i for i, call in enumerate(calls) if not _known(call, True, *limits(i)))
    raise CannotServeError(
        f"{name}: the attention of layer {first} has a part that mcr_lens does not know (a bias on the "
        "scores such as ALiBi, an odd mask, a cap): softmax(scores) times values is not what it returns; "
        f"{ELSEWHERE}"
    )


def _finite(call: _Call) -> bool:
    numbers = (call.output, call.value)
    return all(bool(x.isfinite().all()) for x in numbers if torch.is_tensor(x) and not x.is_meta)


def _known(call: _Call, causal: bool, window: int | None, chunk: int | None) -> bool:
    output = call.output
    if not torch.is_tensor(output) or call.seen.shape[-1] != call.seen.shape[-2]:
        return False
    visible = Visibility(call.seen.shape[-1], causal, window, chunk).mask()
    value = call.value.detach().cpu().double()
    pattern = call.seen.pattern(visible)
    if pattern.shape[1] % value.shape[1]:
        return False
    wanted = (pattern @ value.repeat_interleave(pattern.shape[1] // value.shape[1], 1)).transpose(1, 2)
    if output.shape != wanted.shape:
        return False
    largest = call.seen.largest_score()
    # Rounding a score of 200 to eight bits moves it by a half, and its weight by as much.
    close = min(0.25, max(1e-5, 8 * torch.finfo(output.dtype).eps * (1 + largest)))
    error = (output.detach().cpu().double() - wanted).norm(dim=-1)
    # A share of the largest values that were mixed: head outputs can cancel.
    return bool((error <= close * value.norm(dim=-1).max()).all())


def _look_inside(
    model: nn.Module, tokens: Tensor, owners: dict[nn.Module, _Call]
) -> tuple[list[Block], dict[str, str], int]:
    """The parts of every block, what some block lacks, and the width of the stream."""
    found: list[Block] = []
    lacks: dict[str, str] = {}
    width = 0

    def done(tape: Tape, after: Tensor) -> None:
        nonlocal width
        call, number, width = owners[tape.block], len(found), tape.before.shape[-1]
        writes = find_writes(tape, after, call.module)
        if not writes:
            reason = f"no two modules of block {number} add up to what it does to the residual stream"
            lacks.update(attn_out=reason, mlp_out=reason)
        projection, weight = find_projection(tape, call.output)
        if projection is None:
            lacks["z"] = f"nothing in block {number} reads the head outputs as the attention returns them"
        found.append(Block(tape.block, call.module, writes, projection, weight))

    with taping(list(owners), done):
        run(model, tokens)
    if [block.module for block in found] != list(owners):
        raise CannotServeError(
            f"{type(model).__name__} does not run its blocks one after the other; {ELSEWHERE}"
        )
    return found, lacks, width
