"""How is a Hugging Face model measured as it is served: its own attention, quantised, split or compiled?"""

import sys
from pathlib import Path
from typing import Any

import torch

from mcr_lens._checks import as_shown
from mcr_lens.models import ModelLoadError, _explain, check_device, check_weights, model_source, not_fetched
from mcr_lens.provenance import LOADED
from mcr_lens.served import ServedModel, is_plain


def serve(
    model: Any,
    tokenizer: Any = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    attention: str | None = None,
    verbose: bool = True,
    **options: Any,
) -> ServedModel:
    """A Hugging Face model as it is served, ready to be measured; nothing is wrapped and nothing replaced.

    Metrics are those of `load_model`'s bridge: what they read of an attention pattern is summed up from
    queries and keys, so that fast attention (sdpa, flash) stays fast and memory is linear in the length of a
    prompt. Quantised, compiled and split models can be measured too. What needs the pattern itself (a metric
    of yours that reads `pattern`, attention views) takes `load_model`.

    Args:
        model: a Hugging Face model in memory, a hub name, a local folder, or "demo".
        tokenizer: for a model in memory; without one it takes token ids only. For a name, its own by default.
        dtype: for a name: "float32", "bfloat16", …; by default as the weights are stored.
        device: for a name: where to put the weights; by default a GPU where there is one.
        attention: for a name: "sdpa", "flash_attention_2", "eager", …; by default what transformers takes.
        verbose: say on standard error, in one line, what was loaded.
        options: for a name: whatever `from_pretrained` takes, such as `revision`, `device_map`,
            `quantization_config`. Code from a hub runs only with `trust_remote_code=True`.

    Raises:
        TypeError: neither a name nor a Hugging Face model.
        ValueError: options for a model that is in memory already, or that exclude each other; a dtype or
            device that is none.
        ModelLoadError: not found, or no network to fetch it.
        CannotServeError: the model does not go through transformers' attention interface, or its attention
            has a part that is not known; `load_model` may still wrap it.

    Source: this library.
    """
    if not isinstance(model, str | Path):
        given = {"dtype": dtype, "device": device, "attention": attention, **options}
        given = {name: value for name, value in given.items() if value is not None}
        if given:
            raise ValueError(
                f"{next(iter(given))}= has no effect on a model in memory; pass it to from_pretrained instead"
            )
        if is_plain(model):
            check_weights(getattr(model, "_orig_mod", model))
        return ServedModel(model, tokenizer)
    check_device(device, options.get("device_map"))
    if attention is not None and not isinstance(attention, str):
        raise TypeError(
            f"attention={as_shown(attention)}: pass the name of an implementation, such as 'sdpa'"
        )
    loaded, tokenizer = _load(str(model), tokenizer, dtype, device, attention, options)
    served = ServedModel(loaded, tokenizer)
    revision = options.get("revision") or getattr(loaded.config, "_commit_hash", None)
    LOADED[served] = {"model": str(model), "revision": str(revision or "unknown")}
    if options.get("trust_remote_code"):
        LOADED[served]["trust_remote_code"] = "yes: code that came with the model was run"
    if verbose:
        print(f"{model}: {served!r}, as it is served", file=sys.stderr)
    return served


def _load(name: str, tokenizer: Any, dtype: Any, device: Any, attention: Any, options: dict[str, Any]) -> Any:
    import transformers as hf

    source = model_source(name)
    shared = {key: options[key] for key in ("revision", "trust_remote_code", "token") if key in options}
    shared.setdefault("trust_remote_code", False)  # or transformers asks whoever sits at the terminal
    chosen = {"dtype": _dtype(dtype), **options, "trust_remote_code": shared["trust_remote_code"]}
    if attention is not None:
        chosen["attn_implementation"] = attention
    try:
        config = hf.AutoConfig.from_pretrained(source, **shared)
        kind = _auto_class(hf, config)
        model = kind.from_pretrained(source, **chosen).eval()
        if tokenizer is None:
            tokenizer = hf.AutoTokenizer.from_pretrained(source, **shared)
        split = options.get("device_map") is not None or options.get("quantization_config") is not None
        if not split:
            model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError, TypeError) as error:
        # torch asserts that it was built for the device; what from_pretrained does not take is a TypeError.
        if not_fetched(error):
            raise ModelLoadError(_explain(name, Path(source), error)) from error
        why = " ".join(str(error).split())
        raise ModelLoadError(f"{as_shown(name)} could not be loaded: {why[:300]}") from error
    if not is_plain(model):
        raise ModelLoadError(f"{as_shown(name)} is no Hugging Face model; pass a hub name or a folder of one")
    return model, tokenizer


def _auto_class(hf: Any, config: Any) -> Any:
    """The class of models that this one says it is: a language model with its head."""
    named = str((getattr(config, "architectures", None) or [""])[0])
    return hf.AutoModelForMaskedLM if named.endswith("ForMaskedLM") else hf.AutoModelForCausalLM


def _dtype(given: Any) -> Any:
    if given is None:
        return "auto"
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={as_shown(given)}: pass 'float32', 'bfloat16', 'float16' or a torch dtype")
    return found
