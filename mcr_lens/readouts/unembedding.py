"""How does a model predict the next token from its last depth, and what would it predict from another?"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mcr_lens.hookpoints import HookedModel, hook_names, model_name, text_config, trying
from mcr_lens.observer import NonFiniteActivationError
from mcr_lens.served_writes import first_tensor
from mcr_lens.visibility import is_causal

CLOSE = 1e-3
"""How far log-probabilities may be off, as a share of their spread; ten times that in half precision."""

TOKENS = 9
"""How many tokens the trial runs on."""

Reader = Callable[[Tensor], Tensor]
"""Streams [token, d_model] to logits, or log-probabilities, [token, vocab]."""


class CannotReadOutError(ValueError):
    """It is not known how this model makes a prediction from its residual stream."""


@dataclass(frozen=True)
class Unembedding:
    """Final norm, unembedding and what else the model does behind its last block.

    `how` says in words what reads the stream; gradients flow through it to the stream.
    """

    reader: Reader = field(repr=False)
    how: str
    normalised: bool = False  # the reader gives log-probabilities

    def log_probs(self, stream: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
        """Log-probabilities of the next token in nats, float32, as if this were the stream of the last depth.

        Source: nostalgebraist 2020 ("interpreting GPT: the logit lens").
        """
        read = self.reader(stream).float()
        return read if self.normalised else read.log_softmax(-1)


def unembedding(model: HookedModel) -> Unembedding:
    """How this model reads its last depth, found out by running a few tokens and comparing.

    TransformerLens' own `logit_readout` where it has one (4.x, bridges); the norm and unembedding of a
    `HookedTransformer`; otherwise the modules through which the stream passes behind the last block.

    Raises:
        CannotReadOutError: an encoder, or a model whose logits are not found again this way.
        NonFiniteActivationError: its logits are NaN or +∞.

    Source: this library.
    """
    if not is_causal(model):
        raise CannotReadOutError(
            f"{model_name(model)} looks both ways, so no depth of it predicts the next token; pass a causal "
            "language model"
        )
    last, wanted, calls = _trial(model)
    if (wanted.isnan() | wanted.isposinf()).any():  # −∞ stands for tokens that are never said
        raise NonFiniteActivationError(
            f"{model_name(model)} predicts NaN or infinity for a few plain tokens; run it in float32 or "
            "bfloat16, or look at its weights"
        )
    for found in _ways(model, last, wanted, calls):
        if _same(found, last, wanted):
            return found
    raise CannotReadOutError(
        f"{model_name(model)} transforms the residual stream before its logits in a way that is not known, "
        "so a lens would not read what the model reads"
    )


def _ways(model: Any, last: Tensor, wanted: Tensor, calls: "Sequence[_Call]") -> Iterator[Unembedding]:
    """All that may be how the model reads its stream, the best known first."""
    if hasattr(model, "ln_final") and hasattr(model, "unembed") and not hasattr(model, "original_model"):
        soft_cap = float(getattr(model.cfg, "output_logits_soft_cap", 0) or 0)
        yield Unembedding(partial(_hooked, model, soft_cap), "ln_final and unembed of HookedTransformer")
    own = None if hasattr(model, "lacks") else _transformer_lens()
    if own is not None and type(model).__name__ == "TransformerBridge":
        yield Unembedding(partial(_bridged, own, model), "logit_readout of TransformerLens", normalised=True)
    chain = _chain(last, wanted, calls)
    if chain:
        names = {module: name for name, module in model.original_model.named_modules()}
        how = ", ".join(names.get(module, type(module).__name__) for module in chain)
        for about, transform in _transforms(text_config(model)).items():
            yield Unembedding(partial(_through, chain, transform), f"{how}{about}")


def _hooked(model: Any, soft_cap: float, stream: Tensor) -> Tensor:
    logits = model.unembed(model.ln_final(stream[None]))[0]
    return soft_cap * torch.tanh(logits / soft_cap) if soft_cap > 0 else logits


def _bridged(read: Any, model: Any, stream: Tensor) -> Tensor:
    grad = torch.is_grad_enabled()
    return read(
        model, stream, return_type="log_probs", chunk_size=max(1, len(stream)), enable_grad=grad
    ).values


def _through(chain: Sequence[nn.Module], transform: Reader, stream: Tensor) -> Tensor:
    seen: Any = stream[None]
    for module in chain:
        weight = next(module.parameters(), seen)
        seen = first_tensor(module(seen.to(weight.device)))
    assert seen is not None
    return transform(seen[0].to(stream.device))


def _transforms(config: Any) -> dict[str, Reader]:
    """What models are known to do to their logits at the end, as their configuration says it."""
    found: dict[str, Reader] = {"": lambda logits: logits}
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        found[", soft-capped"] = lambda logits: cap * torch.tanh(logits / cap)
    scale = getattr(config, "logit_scale", None)
    if scale:
        found[", scaled"] = lambda logits: logits * scale
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        found[", divided"] = lambda logits: logits / divisor
    return found


def _transformer_lens() -> Any:
    try:
        return import_module("transformer_lens.tools.analysis.logit_lens").logit_readout
    except (ModuleNotFoundError, AttributeError):  # 3.9 has none
        return None


def _same(found: Unembedding, last: Tensor, wanted: Tensor) -> bool:
    """Whether the model's own log-probabilities come out of its last depth."""
    try:
        with torch.no_grad():
            got = found.log_probs(last).double().cpu()
    except (ValueError, RuntimeError, TypeError, NotImplementedError, AttributeError):
        return False  # TransformerLens refuses what it does not know; a module may want another shape
    true = wanted.float().log_softmax(-1).double().cpu()
    if got.shape != true.shape:
        return False
    half = last.dtype in (torch.float16, torch.bfloat16)
    known = true.isfinite()  # −∞ stands for a token that is never said
    means = true.masked_fill(~known, torch.nan).nanmean(-1, keepdim=True)
    spread = float((true - means)[known].abs().max())
    apart = torch.where(got == true, 0, (got - true).abs())
    return float(apart.max()) <= CLOSE * (10 if half else 1) * max(spread, CLOSE)


@dataclass
class _Call:
    """One call of a module: what went in and came out, and when."""

    module: nn.Module
    given: Tensor | None
    began: int
    made: Tensor | None = None
    ended: int = -1


def _trial(model: Any) -> tuple[Tensor, Tensor, list[_Call]]:
    """Stream of the last depth [token, d_model], logits [token, vocab], and what each module made."""
    kept: list[Tensor] = []
    last = hook_names(model, "resid")[-1]
    calls: list[_Call] = []
    with ExitStack() as stack:
        tokens = stack.enter_context(trying(model, [(last, lambda x, hook=None: kept.append(x.detach()))]))
        if hasattr(model, "original_model"):
            stack.enter_context(_recording(model.original_model, calls))
        ids = torch.arange(TOKENS, device=tokens.device)[None] % max(1, int(model.cfg.d_vocab))
        logits = model(ids, return_type="logits")
    return kept[-1][0], logits[0].detach(), calls


@contextmanager
def _recording(model: nn.Module, calls: list[_Call]) -> Iterator[None]:
    """Note every call of a module below the model while the block lasts."""
    clock = iter(range(2**62))
    running: list[_Call] = []

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        floats = (a for a in (*args, *kwargs.values()) if torch.is_tensor(a) and a.is_floating_point())
        given = next(floats, None)
        running.append(_Call(module, None if given is None else given.detach(), next(clock)))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        call = running.pop()
        made = first_tensor(output)
        call.made, call.ended = None if made is None else made.detach(), next(clock)
        calls.append(call)

    with ExitStack() as stack:
        for module in model.modules():
            if module is not model:
                stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(end).remove)
        yield


def _chain(last: Tensor, logits: Tensor, calls: Sequence[_Call]) -> list[nn.Module]:
    """The modules through which the last depth's stream becomes logits; none where it gets lost."""
    width = logits.shape[-1]
    # A hook point hands on what it is given: it is no step on the way.
    calls = [call for call in calls if call.given is not None and not _equal(call.made, call.given)]
    made = [call.ended for call in calls if _equal(call.made, last)]
    if not made:
        return []
    now, seen = max(made), last
    chain: list[nn.Module] = []
    while True:
        next_calls = [call for call in calls if call.began > now and _equal(call.given, seen)]
        if not next_calls:
            return []
        call = min(next_calls, key=lambda call: call.began)  # the outermost of those that begin here
        if call.made is None:
            return []
        chain.append(call.module)
        seen, now = call.made.reshape(-1, call.made.shape[-1]), call.ended
        if seen.shape[-1] == width:
            return chain


def _equal(tensor: Tensor | None, wanted: Tensor) -> bool:
    if tensor is None or tensor.numel() != wanted.numel():
        return False
    return torch.equal(tensor.reshape(wanted.shape).to(wanted.device), wanted)
