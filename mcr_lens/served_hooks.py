"""How do callbacks at a hook point become hooks of torch, and what they return the tensor there?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcr_lens.served_attention import Attention
from mcr_lens.served_parts import Block
from mcr_lens.served_writes import first_stream, first_tensor
from mcr_lens.visibility import Visibility

Callback = Callable[..., Any]


@dataclass(frozen=True)
class ServedPoint:
    """One place where a served model can be read, under its canonical name."""

    name: str


@dataclass
class LayerReader:
    """Shows one layer's values, queries and keys, and head outputs to callbacks, in that order."""

    title: str  # how to speak of the layer in a message
    visibility: Visibility
    callbacks: Mapping[str, Callback]  # "v", "attention", "z": those that somebody asked for
    checked: set[Any] = field(default_factory=set)

    def values(self, value: Tensor) -> Tensor:
        """Values [batch, kv, pos, d_head], shown as [batch, pos, kv, d_head]."""
        if "v" not in self.callbacks:
            return value
        shown = value.transpose(1, 2)
        changed = self.callbacks["v"](shown)
        return value if changed is shown else changed.transpose(1, 2)

    def attention(self, seen: Attention, output: Any) -> Any:
        """What the attention function was asked, and what it returned: head outputs and something else."""
        if "attention" in self.callbacks:
            visibility = replace(self.visibility, length=seen.shape[-1])
            about = {"visibility": visibility, "name": self.title, "checked": self.checked}
            self.callbacks["attention"](replace(seen, **about))
        if "z" not in self.callbacks:
            return output
        changed = self.callbacks["z"](output[0])
        return output if changed is output[0] else (changed, *output[1:])


def through(functions: Sequence[Callback], point: ServedPoint, tensor: Any) -> Any:
    """What callbacks make of a tensor, one after the other; the same object if none changed it."""
    for function in functions:
        changed = function(tensor, hook=point)
        tensor = tensor if changed is None else changed
    return tensor


def watch_ids(embedding: nn.Module, function: Callback) -> list[Any]:
    """Show the token ids [batch, pos] that enter the embedding."""

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = next((a for a in (*args, *kwargs.values()) if torch.is_tensor(a)), None)
        if ids is not None:
            function(ids)

    return [embedding.register_forward_pre_hook(see, with_kwargs=True)]


def install(block: Block, kind: str, function: Callback) -> list[Any]:
    """The torch hooks of one hook point of a block; those of its attention are readers and not hooks."""
    if kind == "hook_resid_pre":
        return [block.module.register_forward_pre_hook(partial(_change_input, function), with_kwargs=True)]
    places = {"hook_resid_post": block.module}
    places |= {f"hook_{read}": module for read, module in block.writes.items()}
    if kind not in places:
        return []
    stream: list[torch.Size] = []  # its shape in this pass: OPT's MLP works on [batch · pos, d_model]
    return [
        block.module.register_forward_pre_hook(partial(_see_shape, stream), with_kwargs=True),
        places[kind].register_forward_hook(partial(_change_output, function, stream)),
    ]


def _see_shape(stream: list[torch.Size], module: nn.Module, args: Any, kwargs: Any) -> None:
    stream[:] = [first_stream(args, kwargs).shape]


def _change_input(function: Callback, module: nn.Module, args: Any, kwargs: Any) -> Any:
    stream = first_stream(args, kwargs)
    changed = function(stream)
    if changed is stream:
        return None
    if "hidden_states" in kwargs:
        return args, {**kwargs, "hidden_states": changed}
    return (changed, *args[1:]), kwargs


def _change_output(
    function: Callback, stream: Sequence[torch.Size], module: nn.Module, args: Any, output: Any
) -> Any:
    tensor = first_tensor(output)
    assert tensor is not None
    shown = tensor if tensor.shape == stream[0] else tensor.view(stream[0])
    changed = function(shown)
    if changed is shown:
        return None
    changed = changed.reshape(tensor.shape)
    return changed if output is tensor else type(output)((changed, *output[1:]))
