"""What is each tensor called in TransformerLens, how is it shaped, and does this model have it?

The table `READS` is the only place where hook names are written down. Everything else asks for a
tensor by the short name on the left, which is also the parameter name a metric uses for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

Axis = Literal["depth", "layer", "pass"]


_TRYING: ContextVar[bool] = ContextVar("mcr_lens_trying", default=False)


class MissingHookPointError(ValueError):
    """The model has no hook point for a tensor that was asked for."""


class PatternNotComputedError(ValueError):
    """The model's attention implementation never builds the attention pattern."""


class WrongWeightsError(ValueError):
    """The model's weights were processed in a way that changes what it computes."""


class HookDidNotFireError(RuntimeError):
    """A hook was registered and the forward pass never reached it."""


@runtime_checkable
class HookedModel(Protocol):
    """What mcr_lens asks of a model: `HookedTransformer` (3.x) and `TransformerBridge` both have it."""

    @property
    def cfg(self) -> Any: ...
    @property
    def hook_dict(self) -> Mapping[str, Any]: ...
    def hooks(self, fwd_hooks: Any = ..., bwd_hooks: Any = ...) -> AbstractContextManager[Any]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class Read:
    """One kind of tensor: its TransformerLens name, the axis it lives on, its shape and meaning."""

    name: str
    template: str
    axis: Axis
    dims: str
    meaning: str


READS: dict[str, Read] = {
    read.name: read
    for read in (
        Read(
            "resid",
            "blocks.{layer}.hook_resid_post",
            "depth",
            "batch pos d_model",
            "residual stream between blocks; depth 0 enters the first block, depth L leaves the "
            "last one, before the final norm",
        ),
        Read(
            "resid_mid",
            "blocks.{layer}.hook_resid_mid",
            "layer",
            "batch pos d_model",
            "residual stream between attention and MLP; parallel blocks (Pythia) have none",
        ),
        Read(
            "attn_out",
            "blocks.{layer}.hook_attn_out",
            "layer",
            "batch pos d_model",
            "what the attention writes to the stream (after a post-norm where there is one)",
        ),
        Read(
            "mlp_out",
            "blocks.{layer}.hook_mlp_out",
            "layer",
            "batch pos d_model",
            "what the MLP writes to the stream (after a post-norm where there is one)",
        ),
        Read(
            "value",
            "blocks.{layer}.attn.hook_v",
            "layer",
            "batch pos head d_head",
            "value vectors; a key-value head is repeated for every query head that uses it",
        ),
        Read(
            "pattern",
            "blocks.{layer}.attn.hook_pattern",
            "layer",
            "batch head query key",
            "attention after the softmax; rows sum to 1 unless the model has sink logits",
        ),
        Read(
            "attention",
            "blocks.{layer}.attn.hook_attention",
            "layer",
            "batch head query key",
            "queries and keys of a model as it is served, which sum up the pattern without building it",
        ),
        Read(
            "z",
            "blocks.{layer}.attn.hook_z",
            "layer",
            "batch pos head d_head",
            "head outputs before the output projection",
        ),
    )
}
"""Every tensor a metric may read; keys are the parameter names that metrics use."""


def hook_names(model: HookedModel, read: str, points: Mapping[str, Any] | None = None) -> list[str]:
    """Canonical hook names of one kind of tensor, in the order of its axis (depth or layer).

    A bridge gives one hook point several names, and TransformerLens may run a callback once for each
    name it was registered under; the canonical name rules that out.

    Args:
        points: the model's `hook_dict`, which a bridge puts together anew whenever it is asked.

    Raises:
        MissingHookPointError: the model lacks one of them.
    """
    template, n_layers = _template(model, read), model.cfg.n_layers
    wanted = [template.format(layer=layer) for layer in range(n_layers)]
    if read == "resid":
        wanted = ["blocks.0.hook_resid_pre", *wanted]
    points = model.hook_dict if points is None else points
    missing = [name for name in wanted if name not in points]
    if missing and read in getattr(model, "lacks", {}):
        raise MissingHookPointError(
            f"{model_name(model)} as it is served has no {read!r}: {model.lacks[read]}; "  # type: ignore[attr-defined]
            "leave out the metrics that read it, or wrap the model with mcr_lens.load_model"
        )
    if missing:
        raise MissingHookPointError(
            f"{model_name(model)} has no hook point {missing[0]!r}"
            f"{f' (and {len(missing) - 1} more like it)' if len(missing) > 1 else ''}, which is "
            f"needed to read {read!r}; leave out the metrics that read it"
        )
    return [points[name].name or name for name in wanted]


@contextmanager
def trying(model: HookedModel, hooks: Sequence[tuple[str, Any]]) -> Iterator[torch.Tensor]:
    """Two tokens to run a model on, with hooks, to find out what it does; an observer looks away."""
    token = _TRYING.set(True)
    try:
        with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
            yield torch.zeros(1, 2, dtype=torch.long, device=model.cfg.device)
    finally:
        _TRYING.reset(token)


def is_trying() -> bool:
    """Whether the forward pass that is running only finds out what the model does."""
    return _TRYING.get()


def _template(model: HookedModel, read: str) -> str:
    """The hook name of one kind of tensor in this model, where TransformerLens means the same by it."""
    if read == "resid_mid" and _is_post_norm(model):
        raise MissingHookPointError(
            f"{model_name(model)} has no 'resid_mid': there, TransformerLens' hook_resid_mid is what enters "
            "the last LayerNorm, the MLP's output included; leave out the metrics that read it"
        )
    if read == "attn_out" and _norms_inside_attention(model):
        return "blocks.{layer}.attn.o.hook_out"
    return READS[read].template


def _norms_inside_attention(model: HookedModel) -> bool:
    """BERT and RoBERTa: addition and LayerNorm lie inside what Hugging Face calls attention.

    So `hook_attn_out` fires on the stream behind them, and not on what the attention writes.
    """
    name = str(getattr(model.cfg, "architecture", None) or "")
    wrapped = hasattr(model, "original_model") and not hasattr(model, "lacks")  # not as it is served
    return wrapped and name.startswith(("Bert", "Roberta"))


def _is_post_norm(model: HookedModel) -> bool:
    """Whether a norm stands behind each addition to the stream (BERT, RoBERTa, OPT-350m)."""
    before = getattr(text_config(model), "do_layer_norm_before", True)
    return _norms_inside_attention(model) or before is False


def check_pattern(model: Any, names: Sequence[str]) -> None:
    """Make sure, before a run, that the attention pattern is really computed.

    Bridges that leave attention to Hugging Face have pattern hooks which stay silent under sdpa or flash
    attention. Only such a model gets a forward pass of two tokens to find out.

    Raises:
        PatternNotComputedError: a pattern hook stays silent.
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    attention = getattr(config, "_attn_implementation", None) or "eager"
    if attention == "eager":
        return
    fired: set[str] = set()
    hooks = [(name, lambda pattern, hook=None, name=name: fired.add(name)) for name in names]
    with trying(model, hooks) as tokens:
        model(tokens, return_type=None)
    silent = [name for name in names if name not in fired]
    if silent:
        raise PatternNotComputedError(
            f"{model_name(model)} runs {attention!r} attention, which never computes {silent[0]!r}; load "
            "it with mcr_lens.load_model, or call model.set_attn_implementation('eager') first"
        )


def text_config(model: HookedModel) -> Any:
    """Hugging Face's configuration of the language model, which may be a part of a larger one (Gemma-3)."""
    config: Any = getattr(getattr(model, "original_model", None), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def output_projection(model: Any, layer: int) -> Any:
    """`W_O` of one layer as [head, d_head, d_model], or None where the model does not expose it."""
    try:
        weight = model.blocks[layer].attn.W_O
    except (AttributeError, TypeError, KeyError, NotImplementedError):
        return None
    return weight if getattr(weight, "ndim", 0) == 3 else None


def context_length(model: HookedModel) -> int | None:
    """The longest prompt the model takes, in tokens, where it says so."""
    return getattr(model.cfg, "n_ctx", None)


def model_name(model: HookedModel) -> str:
    """The model's name as TransformerLens knows it."""
    cfg: Any = model.cfg
    name = getattr(cfg, "model_name", None)
    if name in (None, "", "external"):  # what TransformerLens calls a module that was handed to it
        name = getattr(cfg, "architecture", None)
    return str(name or type(model).__name__)


def check_model(model: Any) -> None:
    """Refuse early, in words, what is not a TransformerLens model or does not compute what it should.

    Raises:
        TypeError: the object lacks what mcr_lens needs.
        WrongWeightsError: TransformerLens' weight processing broke this model.
    """
    if isinstance(model, HookedModel) and hasattr(model.cfg, "n_layers"):
        _check_family(model)
        _check_weights(model)
        return
    hint = (
        "wrap it with mcr_lens.load_model(model), or take it as it is with mcr_lens.serve(model)"
        if hasattr(model, "config")
        else "pass a TransformerBridge, a HookedTransformer, or what mcr_lens.load_model returns"
    )
    raise TypeError(f"expected a TransformerLens model, got {type(model).__name__}; {hint}")


def check_eval(model: Any) -> None:
    """Refuse what is not a TransformerLens model, and one in training mode.

    Raises:
        TypeError, ValueError: what came and what to do.

    Source: this library.
    """
    check_model(model)
    if getattr(model, "training", False):
        raise ValueError("the model is in training mode, so dropout would be measured; call model.eval()")


def _check_family(model: Any) -> None:
    if type(model).__name__ in ("HookedEncoder", "HookedEncoderDecoder"):
        raise TypeError(
            f"{type(model).__name__} reads the stream before a norm that it applies between blocks, so its "
            "depths are not what enters the next block; wrap the Hugging Face model with "
            "mcr_lens.load_model(model)"
        )


def _check_weights(model: Any) -> None:
    """Folding value biases into b_O is exact only where attention rows sum to 1; a sink logit breaks that."""
    sinks = getattr(model.cfg, "architecture", None) == "GptOssForCausalLM"
    sinks = sinks or getattr(model.cfg, "use_attention_sinks", False)
    processed = getattr(model, "_weights_processed", not hasattr(model, "original_model"))
    if not (sinks and processed):
        return
    biases = [getattr(block.attn, "b_V", None) for block in model.blocks]
    if all(bias is not None and not bias.any() for bias in biases):
        raise WrongWeightsError(
            f"{model_name(model)} has learned sink logits, and TransformerLens folded its value biases "
            "as if attention rows summed to 1, so it no longer computes what was trained; measure what "
            "mcr_lens.load_model returns, or process with fold_value_biases=False"
        )
