"""How is the attention of a Hugging Face model reached without changing what it computes?

transformers looks its attention function up by name. While somebody reads, the name is that of a function of
this library, which calls the model's own with the same arguments, returns what it returns, and shows queries,
keys, values and head outputs to whoever reads that layer. No function of transformers is replaced.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mcr_lens.attention_summary import summarize
from mcr_lens.hookpoints import PatternNotComputedError
from mcr_lens.metrics.summary import PatternSummary
from mcr_lens.rows import Group
from mcr_lens.visibility import Visibility

PREFIX = "mcr_lens:"
"""Of the names under which this library registers with transformers; behind it, the model's own."""


class CannotServeError(ValueError):
    """A Hugging Face model has parts that cannot be measured as it is served; the message says which."""


@runtime_checkable
class Reader(Protocol):
    """Whoever reads one attention layer: it sees the arguments, and may change values and head outputs."""

    def values(self, value: Tensor) -> Tensor: ...
    def attention(self, seen: "Attention", output: Any) -> Any: ...


_READERS: dict[int, list[Reader]] = {}  # by id of the module: modules may compare by value


@dataclass(frozen=True)
class Attention:
    """Queries and keys of one layer in one forward pass, and how they become a pattern, not built."""

    query: Tensor  # [batch, head, query, d_head]
    key: Tensor  # [batch, kv, key, d_head]
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    mask: Tensor | None = None  # as transformers made it: additive or boolean
    visibility: Visibility | None = None
    name: str = "attention"
    checked: set[Any] = field(default_factory=set)  # masks that were looked at, by layer and span
    row_lse: Tensor | None = None  # [batch, head, query], where the fast attention says it

    @property
    def shape(self) -> torch.Size:
        """That of the pattern: [batch, head, query, key]; a decoding step has more keys than queries."""
        return torch.Size((*self.query.shape[:3], self.key.shape[2]))

    @property
    def device(self) -> torch.device:
        """Where the summary is computed."""
        return self.query.device

    def detach(self) -> "Attention":
        """The same without a graph behind it."""
        return replace(self, query=self.query.detach(), key=self.key.detach())

    def cut(self, group: Group) -> "Attention":
        """The real tokens of these rows."""
        real = slice(group.start, group.start + group.length)
        mask, lse = self.mask, self.row_lse
        if mask is not None and mask.ndim == 4:
            row = group.rows[0] if mask.shape[0] > 1 else 0
            mask = mask[row : row + 1, :, real, real]
        return replace(
            self,
            query=group.cut(self.query.transpose(1, 2)).transpose(1, 2),
            key=group.cut(self.key.transpose(1, 2)).transpose(1, 2),
            mask=mask,
            row_lse=None if lse is None else group.cut(lse.transpose(1, 2)).transpose(1, 2),
            visibility=None if self.visibility is None else replace(self.visibility, length=group.length),
            name=f"{self.name} from token {group.start}",
        )

    def summary(self, position: int = 0) -> PatternSummary:
        """What the metrics read of the pattern, in memory linear in the number of tokens.

        Raises:
            PatternNotComputedError: the model hides other keys than this library takes for hidden.
            ValueError: a position that is no token.

        Source: this library.
        """
        seen = self.visibility or Visibility(self.shape[-1])
        self._check_mask(seen)
        return summarize(
            self.query.detach(),
            self.key.detach(),
            scale=self.scale,
            causal=seen.causal,
            window=seen.window,
            chunk=seen.chunk,
            softcap=self.softcap,
            sink_logits=self.sinks,
            position=position,
            row_lse=self.row_lse,
        )

    def pattern(
        self, visible: Bool[Tensor, "query key"] | None = None
    ) -> Float[Tensor, "batch head query key"]:
        """The pattern itself, by the book and in float64: for a look at a few tokens.

        Args:
            visible: the keys that each query sees; by default as the model's own mask says, if it made one.

        Source: this library.
        """
        query, key = (tensor.detach().cpu().double() for tensor in (self.query, self.key))
        scores = self._scores(query, key.repeat_interleave(query.shape[1] // key.shape[1], 1))
        hidden = self._hidden() if visible is None else ~visible
        scores = scores.masked_fill(hidden, -torch.inf)
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.detach().cpu().double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]

    def largest_score(self) -> float:
        """The largest magnitude of a score, seen or not: for a look at a few tokens."""
        query, key = (tensor.detach().cpu().double() for tensor in (self.query, self.key))
        return float(
            self._scores(query, key.repeat_interleave(query.shape[1] // key.shape[1], 1)).abs().max()
        )

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        scores = query @ key.mT * self.scale
        return self.softcap * torch.tanh(scores / self.softcap) if self.softcap else scores

    def _hidden(self) -> Tensor:
        if self.mask is not None and self.mask.ndim == 4:
            return _hidden_by(self.mask).cpu()
        return ~(self.visibility or Visibility(self.shape[-1])).mask()

    def _check_mask(self, seen: Visibility) -> None:
        """Three queries of the mask, the first, the middle and the last, once for each layer and length."""
        about = (self.name, seen.length, None if self.mask is None else self.mask.shape)
        if about in self.checked or self.mask is None or self.mask.ndim != 4:
            return
        some = torch.tensor([0, seen.length // 2, seen.length - 1], device=self.mask.device)
        wanted = seen.sees(some[:, None], torch.arange(seen.length, device=self.mask.device))
        rows = self.mask[0, :, some, : seen.length]
        hidden = _hidden_by(rows)
        added = rows.new_zeros(()) if rows.dtype == torch.bool else rows.masked_fill(hidden, 0)
        if bool((hidden == wanted).any()) or bool(added.any()):
            raise PatternNotComputedError(
                f"{self.name}: the model's mask hides other keys than mcr_lens takes for hidden (a prefix, "
                "packed prompts, or a bias on the scores); wrap the model with mcr_lens.load_model"
            )
        self.checked.add(about)


def _hidden_by(mask: Tensor) -> Tensor:
    """What a mask hides, whether it says so or is added to the scores."""
    return ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2


@contextmanager
def reading(model: torch.nn.Module, readers: Mapping[torch.nn.Module, Reader]) -> Iterator[None]:
    """Show the attention of these modules to their readers while the block lasts; everything is put back.

    Raises:
        CannotServeError: an attention implementation that cannot be stood in for.
    """
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for config in configurations(model):
            own = config._attn_implementation_internal
            if not str(own).startswith(PREFIX):
                stack.callback(setattr, config, "_attn_implementation_internal", own)
                config._attn_implementation_internal = _registered(own or "eager")
        for module, reader in readers.items():
            present = _READERS.setdefault(id(module), [])
            present.append(reader)
            stack.callback(_leave, id(module), reader)
        yield


@contextmanager
def uncompiled(model: torch.nn.Module) -> Iterator[None]:
    """Run compiled parts of a model as they are written while the block lasts; nothing is compiled anew."""
    compiled = any(
        getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


def _leave(key: int, reader: Reader) -> None:
    _READERS[key] = [other for other in _READERS[key] if other is not reader]
    if not _READERS[key]:
        del _READERS[key]


def configurations(model: torch.nn.Module) -> list[Any]:
    """Every configuration that some module of the model asks for its attention, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = module.__dict__.get("config")
        if hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def implementation(model: torch.nn.Module) -> str:
    """The name of the model's own attention implementation."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return str(getattr(config, "_attn_implementation", None) or "eager").removeprefix(PREFIX)


def _registered(own: str) -> str:
    """The name under which this library stands in for an attention implementation."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if "|" in own:
        raise CannotServeError(
            f"the model runs {own!r} attention, whose keys lie in pages; load it with sdpa, flash or eager"
        )
    name = PREFIX + own
    if name not in ALL_ATTENTION_FUNCTIONS:
        type(ALL_ATTENTION_FUNCTIONS).register(name, partial(_attend, own))
        if own in ALL_MASK_ATTENTION_FUNCTIONS:
            type(ALL_MASK_ATTENTION_FUNCTIONS).register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    return name


def _attend(
    own: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The model's own attention function, seen by the readers of this module."""
    function = own_function(own, module)
    readers: Sequence[Reader] = tuple(_READERS.get(id(module), ()))
    for reader in readers:
        value = reader.values(value)
    if not readers:
        return function(module, query, key, value, attention_mask, *args, **kwargs)
    with _RowSums() as sums:
        output = function(module, query, key, value, attention_mask, *args, **kwargs)
    scale = kwargs.get("scaling")
    if scale is None:
        scale = getattr(module, "scaling", None)
    sinks = kwargs.get("s_aux")
    seen = Attention(
        query=query,
        key=key,
        scale=float(query.shape[-1] ** -0.5 if scale is None else scale),
        softcap=kwargs.get("softcap"),
        sinks=getattr(module, "sinks", None) if sinks is None else sinks,
        mask=attention_mask if torch.is_tensor(attention_mask) else None,
        row_lse=sums.seen,
    )
    for reader in readers:
        output = reader.attention(seen, output)
    return output


class _RowSums(TorchDispatchMode):
    """Keeps the row sums that torch's fast attention on a CPU returns to `scaled_dot_product_attention`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if "_scaled_dot_product_flash_attention_for_cpu.default" in str(func):
            self.seen = made[1].detach()
        return made


def own_function(own: str, module: torch.nn.Module) -> Callable[..., Any]:
    """The attention function that a module calls when nobody reads.

    Raises:
        CannotServeError: there is none of that name.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    homes = [sys.modules.get(kind.__module__) for kind in type(module).__mro__]
    for home in homes:
        table = getattr(home, "ALL_ATTENTION_FUNCTIONS", None)
        if table is not None:
            break
    else:
        table = ALL_ATTENTION_FUNCTIONS
    if own in table:
        return table[own]
    for home in homes:
        if own == "eager" and hasattr(home, "eager_attention_forward"):
            return home.eager_attention_forward  # type: ignore[union-attr]
    raise CannotServeError(
        f"{type(module).__name__} runs {own!r} attention, which is nowhere to be found; load the model with "
        "attn_implementation='sdpa'"
    )
