"""How does a plain Hugging Face model look like a hooked one, without being wrapped?

Its modules stay where they are. Hook points are forward hooks on its blocks and readers of its attention, and
exist only inside `with model.hooks(...)`; outside of it nothing of this library is in the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcr_lens._checks import as_shown
from mcr_lens.hookpoints import READS, HookedModel
from mcr_lens.provenance import LOADED
from mcr_lens.served_attention import implementation, reading
from mcr_lens.served_hooks import LayerReader, ServedPoint, install, through, watch_ids
from mcr_lens.served_parts import Block, Parts, known_parts, language_config, logits_of, run
from mcr_lens.visibility import Visibility, attention_chunk, attention_window

LACKS = {
    "pattern": "its attention never builds the pattern (what metrics need of it is summed up instead)",
    "resid_mid": "the stream between attention and MLP passes through no module",
}
"""What no served model has."""


@dataclass(frozen=True)
class ServedConfig:
    """What the rest of the library asks of a model's configuration, by TransformerLens' names."""

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int | None
    device: torch.device
    dtype: torch.dtype
    architecture: str
    model_name: str
    attention_dir: str
    default_prepend_bos: bool = True


@dataclass(frozen=True)
class AttentionWeights:
    """The weights of one layer's attention, as far as metrics ask for them."""

    block: Block
    n_heads: int
    usable: bool  # in every layer

    @property
    def W_O(self) -> Tensor:
        """The output projection as [head, d_head, d_model].

        Raises:
            AttributeError: packed, offloaded or missing weights.
        """
        weight = getattr(self.block.projection, "weight", None)
        if not self.usable or not isinstance(weight, Tensor) or weight.is_meta:
            raise AttributeError("W_O")
        matrix = weight.T if self.block.weight == "out in" else weight
        return matrix.reshape(self.n_heads, -1, matrix.shape[-1])


@dataclass(frozen=True)
class BlockWeights:
    """One block by TransformerLens' names."""

    attn: AttentionWeights


class ServedModel:
    """A Hugging Face model as it is served: its own weights, its own attention, hooks while they are needed.

    `hook_dict` names what can be read, `lacks` says what cannot and why, `original_model` is the model.

    Raises:
        TypeError: not a Hugging Face model, or a tokenizer that is none.
        CannotServeError: its attention cannot be seen, or is not what is known of attention.

    Source: this library.

    >>> served = mcr.serve("demo", dtype="float32", verbose=False)
    >>> isinstance(served, mcr.ServedModel), "blocks.0.hook_resid_post" in served.hook_dict
    (True, True)
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        if isinstance(model, HookedModel):
            raise TypeError(
                f"{type(model).__name__} can be measured as it is, and is not served; pass it to measure, or "
                "pass mcr_lens.serve the Hugging Face model that it was made of"
            )
        if tokenizer is not None and not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise TypeError(f"tokenizer is a {type(tokenizer).__name__}; pass one that AutoTokenizer returns")
        if not is_plain(model):
            raise TypeError(
                f"expected a Hugging Face model in memory, got {type(model).__name__}; pass what "
                "from_pretrained returns, or a name or folder to mcr_lens.serve"
            )
        self.original_model: Any = getattr(model, "_orig_mod", model)
        self.tokenizer = tokenizer
        self.cfg: Any = None  # not known before the trial
        self._points: dict[str, ServedPoint] = {}
        device = _input_device(self.original_model)
        with _evaluating(self.original_model):
            self._parts: Parts = known_parts(self.original_model, device, self._limits)
        self.cfg = _describe(self.original_model, self._parts, device)
        self.lacks: Mapping[str, str] = {**LACKS, **self._parts.lacks}
        names = ["embed.hook_in", "blocks.0.hook_resid_pre"]
        for read in READS.keys() - self.lacks.keys():
            names += [READS[read].template.format(layer=layer) for layer in range(self.cfg.n_layers)]
        self._points = {name: ServedPoint(name) for name in names}
        found = self._parts.blocks
        usable = all(block.weight for block in found)
        self.blocks: list[BlockWeights] = [
            BlockWeights(AttentionWeights(b, self.cfg.n_heads, usable)) for b in found
        ]
        LOADED[self] = {
            "model": f"{self.cfg.model_name} (in memory)",
            "revision": str(getattr(self.original_model.config, "_commit_hash", None) or "unknown"),
        }

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.original_model.training

    @property
    def door(self) -> str:
        """How the model is read, for a result."""
        return f"Hugging Face model as it is served, {implementation(self.original_model)} attention"

    @property
    def embed(self) -> nn.Module:
        """The module that reads token ids."""
        return self.original_model.get_input_embeddings()

    @property
    def hook_dict(self) -> Mapping[str, ServedPoint]:
        """Every hook point by its canonical name."""
        return self._points

    def eval(self) -> "ServedModel":
        """Put the model into evaluation mode."""
        self.original_model.eval()
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's own parameters."""
        return self.original_model.parameters()

    def __call__(
        self,
        tokens: Any,
        return_type: str | None = "logits",
        *,
        attention_mask: Tensor | None = None,
        **arguments: Any,
    ) -> Any:
        """One forward pass over token ids [batch, pos] or texts; logits, the mean loss, both, or nothing.

        Raises:
            ValueError: another return type, or texts without a tokenizer.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(f"return_type={as_shown(return_type)}: pass 'logits', 'loss', 'both' or None")
        ids, mask = self._ids(tokens)
        mask = attention_mask if attention_mask is not None else mask
        if mask is not None:
            arguments["attention_mask"] = mask
        output = run(self.original_model, ids, **arguments)
        if return_type is None:
            return None
        logits = logits_of(output)
        if return_type == "logits":
            return logits
        loss = _loss(logits, ids, mask)
        return loss if return_type == "loss" else (logits, loss)

    @contextmanager
    def hooks(
        self, fwd_hooks: Sequence[tuple[str, Callable[..., Any]]] = (), bwd_hooks: Sequence[Any] = ()
    ) -> Iterator["ServedModel"]:
        """Call functions at hook points while the block lasts; what one returns takes the tensor's place.

        Raises:
            ValueError: an unknown hook point, or backward hooks.
        """
        if bwd_hooks:
            raise ValueError("bwd_hooks: a model as it is served has forward hooks only; use load_model")
        points: dict[str, list[Callable[..., Any]]] = {}
        for name, function in fwd_hooks:
            if name not in self.hook_dict:
                raise ValueError(f"there is no hook point {as_shown(name)}; hook_dict lists them all")
            points.setdefault(name, []).append(function)
        called = {name: partial(through, them, self.hook_dict[name]) for name, them in points.items()}
        with ExitStack() as stack:
            stack.enter_context(reading(self.original_model, self._readers(called)))
            for name, function in called.items():
                _, layer, kind = name.split(".", 2) if name.startswith("blocks.") else ("", "", "")
                made = install(self._parts.blocks[int(layer)], kind, function) if layer else []
                for handle in made or ([] if layer else watch_ids(self.embed, function)):
                    stack.callback(handle.remove)
            yield self

    def __repr__(self) -> str:
        cfg = self.cfg
        return (
            f"ServedModel({cfg.architecture}: {cfg.n_layers} layers, {cfg.n_heads} heads, width "
            f"{cfg.d_model}; {str(cfg.dtype).removeprefix('torch.')} on {cfg.device}, "
            f"{implementation(self.original_model)} attention)"
        )

    def _limits(self, layer: int) -> tuple[int | None, int | None]:
        """The window and the chunk of a layer, as the configuration says."""
        return attention_window(self, layer), attention_chunk(self, layer)

    def _readers(self, called: Mapping[str, Callable[..., Any]]) -> dict[nn.Module, LayerReader]:
        """Who reads the attention of which module."""
        readers = {}
        for layer, block in enumerate(self._parts.blocks):
            names = {kind: f"blocks.{layer}.attn.hook_{kind}" for kind in ("v", "attention", "z")}
            chosen = {kind: called[name] for kind, name in names.items() if name in called}
            if chosen:
                visibility = Visibility(1, self._parts.causal, *self._limits(layer))
                title = f"{self.cfg.model_name}, layer {layer}"
                readers[block.attention] = LayerReader(title, visibility, chosen)
        return readers

    def _ids(self, tokens: Any) -> tuple[Tensor, Tensor | None]:
        device = self.cfg.device
        if isinstance(tokens, Tensor):
            return (tokens if tokens.ndim == 2 else tokens[None]).to(device), None
        if self.tokenizer is None:
            raise ValueError(
                f"{self.cfg.model_name} has no tokenizer, so it cannot read text; pass token ids"
            )
        texts = [tokens] if isinstance(tokens, str) else list(tokens)
        read = self.tokenizer(texts, return_tensors="pt", padding=len(texts) > 1)
        return read["input_ids"].to(device), read["attention_mask"].to(device)


def is_plain(model: Any) -> bool:
    """Whether this is a Hugging Face model that nothing was wrapped around."""
    inner = getattr(model, "_orig_mod", model)
    return (
        isinstance(inner, nn.Module)
        and hasattr(inner, "config")
        and hasattr(inner, "get_input_embeddings")
        and not isinstance(inner, HookedModel)
    )


def hooked(model: Any, tokenizer: Any = None) -> Any:
    """A plain Hugging Face model as it is served, anything else as it is.

    Raises:
        TypeError: a tokenizer for a model that has its own.
        CannotServeError: a Hugging Face model that cannot be measured as it is.
    """
    if is_plain(model):
        return ServedModel(model, tokenizer)
    if tokenizer is not None:
        raise TypeError(
            f"tokenizer= goes with a plain Hugging Face model, and this is a {type(model).__name__}; pass "
            "the tokenizer to load_model or serve"
        )
    return model


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while the block lasts: with dropout, parts would not add up."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _input_device(model: Any) -> torch.device:
    """Where token ids go: accelerate says it where weights lie elsewhere between two passes."""
    embedding = model.get_input_embeddings()
    held = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    if held is not None:
        return torch.device(f"cuda:{held}" if isinstance(held, int) else held)
    weight = next(embedding.parameters(), None)
    return torch.device("cpu") if weight is None or weight.is_meta else weight.device


def _describe(model: Any, parts: Parts, device: torch.device) -> ServedConfig:
    config = language_config(model)
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return ServedConfig(
        n_layers=len(parts.blocks),
        n_heads=parts.n_heads,
        n_key_value_heads=parts.n_key_value_heads,
        d_model=parts.d_model,
        d_head=parts.d_head,
        d_vocab=int(getattr(model.get_input_embeddings(), "num_embeddings", None) or config.vocab_size),
        n_ctx=getattr(config, "max_position_embeddings", None),
        device=device,
        dtype=dtypes[0] if dtypes else torch.get_default_dtype(),
        architecture=type(model).__name__,
        model_name=type(model).__name__,
        attention_dir="causal" if parts.causal else "bidirectional",
    )


def _loss(logits: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Mean next-token loss over real tokens."""
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    real = torch.ones_like(losses) if mask is None else (mask[:, 1:] * mask[:, :-1]).to(losses)
    return (losses * real).sum() / real.sum()
