"""How is a model made that differs from another in its weights alone?"""

import copy
import warnings
import zlib
from typing import Any, Literal

import torch
from torch import nn

from mcr_lens._checks import as_shown, check_seed
from mcr_lens.hookpoints import HookedModel, check_model, model_name
from mcr_lens.models import load_model
from mcr_lens.provenance import LOADED, processing
from mcr_lens.served import ServedModel

Kind = Literal["initialised", "shuffled"]

KINDS = {
    "initialised": "drawn anew, as before any training",
    "shuffled": "the trained ones, the entries of each tensor in random order",
}
"""What can be random about a twin's weights."""


def random_twin(model: HookedModel, seed: int, *, kind: Kind = "initialised") -> Any:
    """A second model of the same architecture with random weights; the given one is not touched.

    Same configuration, precision, device and tokenizer. It takes as much memory as the model, is made on the
    CPU, and leaves the global random numbers as they were.

    Args:
        seed: another seed, other weights.
        kind: "initialised": drawn as Hugging Face (or TransformerLens, for a HookedTransformer) draws them
            before training. "shuffled": the entries of every trained tensor in random order, biases and gains
            included, which keeps the distribution of its values and nothing else.

    Raises:
        ValueError: an unknown kind, packed (quantised) weights or weights spread over devices, weights that
            compatibility mode processed, or a seed that is not a number from 0.
        TypeError: not a TransformerLens model.

    Source: this library.
    """
    check_model(model)
    check_seed(seed)
    seed = int(seed)
    if str(kind) not in KINDS:
        said = "; ".join(f"{name!r} ({what})" for name, what in KINDS.items())
        raise ValueError(f"kind={as_shown(kind)}: pass {said}")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the GPUs as well, which nobody puts back.
        torch.default_generator.manual_seed(seed)
        wrapped = getattr(model, "original_model", None)
        twin = _new_hooked(model) if wrapped is None else _new_bridge(model, wrapped)
        if kind == "shuffled":
            _shuffle(wrapped or model, getattr(twin, "original_model", None) or twin, seed)
    name = LOADED.get(model, {}).get("model", model_name(model))
    LOADED[twin] = {"model": f"{name} ({kind} weights, seed {seed})", "revision": "none"}
    return twin.eval()


def _new_bridge(model: Any, wrapped: Any) -> Any:
    """The Hugging Face class and configuration of a bridge or a served model once more, by the same door."""
    config = copy.deepcopy(wrapped.config)
    if getattr(config, "quantization_config", None) is not None or getattr(wrapped, "is_quantized", False):
        raise ValueError(f"{model_name(model)} has packed (quantised) weights; pass it in full precision")
    if len(set((getattr(wrapped, "hf_device_map", None) or {}).values())) > 1:
        raise ValueError(f"{model_name(model)} is spread over devices; pass it on one, or a smaller model")
    if processing(model).startswith("processed"):
        raise ValueError(
            f"the weights of {model_name(model)} are {processing(model)}, and its twin's would be raw; pass "
            "what mcr_lens.load_model returns"
        )
    fresh = type(wrapped)(config)
    example = next(wrapped.parameters())
    for parameter in fresh.parameters():  # buffers, such as RoPE frequencies, stay in float32
        parameter.data = parameter.data.to(example.dtype)
    tokenizer = copy.deepcopy(getattr(model, "tokenizer", None))
    if isinstance(model, ServedModel):
        return ServedModel(fresh.to(example.device).eval(), tokenizer)
    return load_model(fresh.to(example.device).eval(), tokenizer=tokenizer, verbose=False)


def _new_hooked(model: Any) -> Any:
    """A HookedTransformer (TransformerLens 3.x) of the same configuration."""
    cfg = copy.deepcopy(model.cfg)
    cfg.init_weights, cfg.seed = True, None  # a seed of its own would be set for the whole process
    if model.tokenizer is None:
        cfg.tokenizer_name = None  # or it looks for one
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        return type(model)(cfg, tokenizer=copy.deepcopy(model.tokenizer))


def _shuffle(source: Any, twin: nn.Module, seed: int) -> None:
    """Give every parameter of the twin the entries of the source's, in random order."""
    given, new = dict(source.named_parameters()), dict(twin.named_parameters())
    if {n: p.shape for n, p in given.items()} != {n: p.shape for n, p in new.items()}:
        raise ValueError(
            f"the parameters of this {type(source).__name__} are not those of a new one of its "
            "configuration: they were changed after loading; load it again, or pass kind='initialised'"
        )
    with torch.no_grad():
        # A bridge holds query, key and value as views of the joint tensor too: the parts come last.
        for name, parameter in sorted(new.items(), key=lambda item: -item[1].numel()):
            flat = given[name].detach().flatten()
            # By name, so that a parameter more or less, as between versions, changes no other one.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            order = torch.randperm(flat.numel(), generator=generator)
            parameter.copy_(flat[order.to(flat.device)].view(parameter.shape))
