"""Does an edit at a hook point reach the residual stream?

A hook point can exist, fire, and still throw away what a callback returns. An ablation there would read as
"no effect", so every hook point is tried out, on two tokens, before the first edit.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mcr_lens._checks import as_shown, as_tuple
from mcr_lens.hookpoints import (
    HookDidNotFireError,
    HookedModel,
    check_model,
    hook_names,
    model_name,
    trying,
)

SITES = ("mlp_out", "attn_out", "z", "resid")
"""Where rows can be recorded and edited; "resid" at layer l is the stream behind block l (depth l + 1)."""

Liveness = Literal["exact", "through a norm"]

_TRIED: WeakKeyDictionary[Any, dict[tuple[str, str], Liveness]] = WeakKeyDictionary()


class SwallowedEditError(RuntimeError):
    """An edit at this hook point does not reach the residual stream."""


class IndirectEditWarning(UserWarning):
    """An edit reaches the stream through a norm, so the stream does not change by the edited vector."""


def check_edit(model: HookedModel, site: str, layers: int | Sequence[int]) -> Liveness:
    """Try out whether an edit of what a block writes reaches the residual stream, and how.

    A random vector v is added at position 0, on two tokens. "exact": the stream behind the block changes by
    v, x ← x + v (and by what the block's MLP answers to it, for an edit before the MLP; for head outputs "z",
    by what the attention writes then). "through a norm": it changes by something else (post-norm encoders
    such as BERT). For the stream itself ("resid" at layer l: behind block l), what comes next must change.
    Each hook point of a model is tried once.

    Raises:
        TypeError: not a TransformerLens model.
        ValueError: an unknown site, or a layer that the model does not have.
        SwallowedEditError: the stream does not change: this version of TransformerLens drops the edit.
        HookDidNotFireError: the forward pass never reaches the hook points that would show it.
        MissingHookPointError: the model lacks the hook point.

    Source: this library.
    """
    check_model(model)
    if not isinstance(site, str) or site not in SITES:
        raise ValueError(f"site {as_shown(site)} cannot be edited; pass one of {', '.join(SITES)}")
    chosen = as_tuple(layers)
    last = model.cfg.n_layers - 1
    wrong = [
        n for n in chosen if not isinstance(n, Integral) or isinstance(n, bool) or not 0 <= int(n) <= last
    ]
    if wrong or not chosen:
        raise ValueError(
            f"layers={as_shown(layers)}: the model has layers 0..{last}; pass one or more of them"
        )
    writes, stream = hook_names(model, site), hook_names(model, "resid")
    known = _known(model)
    found: Liveness = "exact"
    for layer in chosen:
        key = (stream[layer + 1] if site == "resid" else writes[layer], stream[layer + 1])
        if key not in known:
            known[key] = _try(model, site, layer, *key)
        if known[key] != "exact":
            found = known[key]
    return found


def warn_indirect(model: HookedModel, site: str) -> None:
    """Say that an edit works, but not as a plain subtraction from the stream."""
    warnings.warn(
        f"{model_name(model)} normalises behind {site!r}, so the residual stream changes by more than the "
        "edited vector; the effect is real, its size is not that of the write",
        IndirectEditWarning,
        stacklevel=3,
    )


def _known(model: Any) -> dict[tuple[str, str], Liveness]:
    try:
        return _TRIED.setdefault(model, {})
    except TypeError:  # neither hashed nor weakly referenced: tried again each time
        return {}


def _try(model: HookedModel, site: str, layer: int, write: str, stream: str) -> Liveness:
    if site == "resid":
        return _try_stream(model, layer, stream)
    watched = {"mlp": hook_names(model, "mlp_out")[layer], "stream": stream}
    if site == "z":
        watched["attention"] = hook_names(model, "attn_out")[layer]
    before, _ = _run(model, watched, [])
    # As long as the row itself, so that no rounding can hide it.
    edit = _Add(before["stream"].float().norm(dim=-1).clamp_min(1).max())
    after, _ = _run(model, watched, [(write, edit)])
    if edit.added is None:
        raise SwallowedEditError(
            f"{model_name(model)} never reaches {write!r} in a plain forward pass, so it cannot be edited"
        )
    change = {name: (after[name] - before[name]).float() for name in watched}
    if not bool(change["stream"].any()):
        raise _swallowed(model, site, layer, write)
    # The MLP behind an edited attention answers to it; an edited MLP reads as edited.
    wanted = change["mlp"] + (0 if site == "mlp_out" else change.get("attention", edit.added.float()))
    close = 4 * torch.finfo(before["stream"].dtype).eps ** 0.5  # half the digits
    exact = float((change["stream"] - wanted).norm()) <= close * float(wanted.norm())
    return "exact" if exact else "through a norm"


def _try_stream(model: HookedModel, layer: int, stream: str) -> Liveness:
    """Whether what reads the stream behind a block sees an edit of it: the next attention, or the logits."""
    last = layer == model.cfg.n_layers - 1
    watched = {"stream": stream}
    if not last:
        watched["next"] = hook_names(model, "attn_out")[layer + 1]
    before, logits = _run(model, watched, [], logits=last)
    edit = _Add(before["stream"].float().norm(dim=-1).clamp_min(1).max())
    after, changed = _run(model, watched, [(stream, edit)], logits=last)
    reader = (logits, changed) if last else (before["next"], after["next"])
    if torch.equal(*reader):
        raise _swallowed(model, "resid", layer, stream)
    return "exact"


def _swallowed(model: HookedModel, site: str, layer: int, write: str) -> SwallowedEditError:
    return SwallowedEditError(
        f"{model_name(model)} drops what is written at {write!r} (layer {layer}): an edit of {site!r} "
        "changes nothing there; use another site, or a version of TransformerLens that keeps it"
    )


class _Add:
    """A callback that adds a random vector of this length at position 0."""

    def __init__(self, length: Tensor) -> None:
        self.length = length
        self.added: Tensor | None = None

    def __call__(self, tensor: Tensor, hook: Any = None) -> Tensor:
        g = torch.Generator().manual_seed(0)
        noise = torch.randn(tensor.shape[2:], generator=g)
        self.added = (noise * self.length.cpu() / noise.norm()).to(tensor)
        edited = tensor.clone()
        edited[:, 0] += self.added
        return edited


def _run(
    model: HookedModel, watched: Mapping[str, str], edits: list[tuple[str, Any]], *, logits: bool = False
) -> tuple[dict[str, Tensor], Any]:
    """Row 0 of the tensors at these hook points, on two tokens, and the logits if they are wanted."""
    seen: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any = None, *, name: str) -> None:
        seen[name] = tensor.detach()[:, 0].clone()

    hooks = [*edits, *((point, partial(keep, name=name)) for name, point in watched.items())]
    with trying(model, hooks) as tokens:
        output = model(tokens, return_type="logits" if logits else None)
    silent = [point for name, point in watched.items() if name not in seen]
    if silent:
        raise HookDidNotFireError(f"{model_name(model)} never reaches {silent[0]!r} in a plain forward pass")
    return seen, output
