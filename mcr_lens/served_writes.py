"""Which modules of a block write to the residual stream, and which one reads the head outputs?

Whatever adds up is what it is: the two modules with `stream behind = stream before + attention + MLP`, or,
where a norm stands behind each addition, the two that make the sums its norms read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

DEEP = 3
"""How far below a block its writes are looked for."""

CLOSE = 16
"""Roundings of the model's arithmetic by which a sum may be off."""


@dataclass
class Tape:
    """Inputs and outputs of the modules of one block, in the order in which they finished."""

    block: nn.Module
    before: Tensor
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)


@contextmanager
def taping(blocks: Sequence[nn.Module], done: Callable[[Tape, Tensor], None]) -> Iterator[None]:
    """Record a block's modules while it runs; when it has run, `done` is called and the record let go."""
    running: dict[nn.Module, Tape] = {}

    def begin(block: nn.Module, args: Any, kwargs: Any) -> None:
        running[block] = Tape(block, _copy(first_stream(args, kwargs)))

    def end(block: nn.Module, args: Any, output: Any) -> None:
        after = first_tensor(output)
        tape = running.pop(block)
        if after is not None:
            done(tape, _copy(after))

    def enter(module: nn.Module, args: Any, kwargs: Any, *, block: nn.Module) -> None:
        given = next((a for a in (*args, *kwargs.values()) if _is_float(a)), None)
        if block in running and given is not None:
            running[block].inputs.setdefault(module, _copy(given))

    def leave(module: nn.Module, args: Any, output: Any, *, block: nn.Module) -> None:
        made = first_tensor(output)
        if block in running and made is not None and module not in running[block].outputs:
            running[block].outputs[module] = _copy(made)

    with ExitStack() as stack:
        for block in blocks:
            # The block's own hooks last, so that they are called after those of what lies inside.
            for module in _below(block):
                before, after = partial(enter, block=block), partial(leave, block=block)
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after).remove)
            stack.callback(block.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(end).remove)
        yield


def find_writes(tape: Tape, after: Tensor, caller: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are what attention and MLP write to the stream; none where nothing adds up.

    Args:
        tape: what the block's modules read and made.
        after: the stream behind the block.
        caller: the module that called the attention function.
    """
    x, y = tape.before.cpu().double(), after.cpu().double()
    close = CLOSE * torch.finfo(tape.before.dtype).eps
    made = {m: t.reshape(x.shape).cpu().double() for m, t in tape.outputs.items() if t.numel() == x.numel()}
    sums = [
        (error, one, other)
        for one, other in combinations(made, 2)
        if one not in set(other.modules())
        and other not in set(one.modules())
        and (error := _error(y, x, made[one], made[other])) <= close
    ]
    sums = sums or list(_behind_norms(tape, made, x, y, close))
    if not sums:
        return {}
    # Several modules may return the same tensor (a projection, the attention around it): the outermost.
    least = min(error for error, _, _ in sums)
    depth = {module: name.count(".") for name, module in tape.block.named_modules()}
    _, one, other = min(
        (found for found in sums if found[0] <= 4 * least + close / CLOSE),
        key=lambda found: depth[found[1]] + depth[found[2]],
    )
    # The one around the attention is the attention's; otherwise (a norm behind each) the one that ran first.
    if caller in set(other.modules()):
        one, other = other, one
    return {"attn_out": one, "mlp_out": other}


def _behind_norms(
    tape: Tape, made: dict[nn.Module, Tensor], x: Tensor, y: Tensor, close: float
) -> Iterator[tuple[float, nn.Module, nn.Module]]:
    """Post-norm blocks: one norm reads stream + attention, the last one what that made + MLP."""
    read = {
        module: tape.inputs[module].reshape(x.shape).cpu().double()
        for module in made
        if module in tape.inputs and tape.inputs[module].numel() == x.numel()
    }
    for last in (module for module in read if torch.equal(made[module], y)):
        for middle in (module for module in read if module is not last):
            mlps = [m for m in made if _error(read[last], made[middle], made[m]) <= close]
            attentions = [m for m in made if _error(read[middle], x, made[m]) <= close]
            for attention in attentions if mlps else []:
                for mlp in mlps:
                    if attention is not mlp:
                        yield _error(read[middle], x, made[attention]), attention, mlp


def _error(whole: Tensor, *parts: Tensor) -> float:
    """The largest difference of a row from the sum of its parts, as a share of what is added."""
    size = torch.stack([part.norm(dim=-1) for part in (whole, *parts)]).sum(0)
    off = (whole - torch.stack(parts).sum(0)).norm(dim=-1)
    return float((off / size.clamp_min(1e-300)).max())


def find_projection(tape: Tape, z: Tensor) -> tuple[nn.Module | None, str]:
    """The module that reads the head outputs as the attention returned them, and how its weight lies.

    "out in" or "in out" where it is that matrix and a bias; "" for packed or offloaded weights.
    """
    flat = z.reshape(*z.shape[:2], -1)
    for module, given in tape.inputs.items():
        made = tape.outputs.get(module)
        leaf = next(module.children(), None) is None and not isinstance(module, nn.Dropout)
        if not leaf or made is None or given.numel() != flat.numel():
            continue
        if torch.equal(given.reshape(flat.shape), flat.to(given.device)):
            return module, _layout(module, flat, made.reshape(*flat.shape[:2], -1))
    return None, ""


def _layout(module: nn.Module, given: Tensor, made: Tensor) -> str:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.is_meta or weight.ndim != 2 or not weight.is_floating_point():
        return ""
    try:
        matrix = weight.detach().cpu().double()
        offset = bias.detach().cpu().double() if isinstance(bias, Tensor) else 0.0
    except (RuntimeError, NotImplementedError):  # tensors that hold packed numbers
        return ""
    rows, wanted = given.cpu().double(), made.cpu().double()
    for layout, turned in (("out in", matrix.T), ("in out", matrix)):
        if turned.shape == (rows.shape[-1], wanted.shape[-1]):
            off = (rows @ turned + offset - wanted).norm()
            if float(off) <= 4 * CLOSE * torch.finfo(made.dtype).eps * max(1.0, float(wanted.norm())):
                return layout
    return ""


def first_tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output that comes first: weights or caches may stand behind it."""
    first = output[0] if isinstance(output, Sequence) and len(output) else output
    return first if torch.is_tensor(first) else None


def first_stream(args: Any, kwargs: Any) -> Tensor:
    """The residual stream among the arguments of a block."""
    found = kwargs.get("hidden_states")
    return found if torch.is_tensor(found) else args[0]


def _is_float(argument: Any) -> bool:
    return torch.is_tensor(argument) and argument.is_floating_point()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()  # later modules may add in place


def _below(block: nn.Module, deep: int = DEEP) -> Iterator[nn.Module]:
    for child in block.children():
        yield child
        if deep > 1:
            yield from _below(child, deep - 1)
