"""What makes the numbers of a part? Its digest: change any of it, and a part is measured anew."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mcr_lens._checks import as_shown
from mcr_lens.metrics._registry import get_metric
from mcr_lens.models import DEMO, ModelLoadError, _explain, demo_folder
from mcr_lens.provenance import processing
from mcr_lens.sweep_engines import versions
from mcr_lens.sweep_plan import ModelPlan, Plan

LARGE = 2**24
"""Files of a model folder up to this size are told apart by content, larger ones by size and time."""


def prepared(plan: ModelPlan) -> tuple[ModelPlan, dict[str, Any]]:
    """The model as it is to be loaded, and what tells it from all others, as JSON values.

    A hub model is pinned to the commit that its revision means now; a function that loads a model is called.

    Raises:
        ModelLoadError: a hub model that cannot be found.
        TypeError: a function that does not return a model.

    Source: this library.
    """
    about: dict[str, Any] = {"name": plan.name, "revision": plan.revision, "dtype": plan.dtype}
    about |= {"device": plan.device, "device_map": plan.device_map}
    about |= {"served": plan.served, "attention": plan.attention}
    if plan.model is not None:
        plan = replace(plan, model=_ready(plan))
        return plan, about | {"weights": _weights(plan.model), "tokenizer": _tokenizer(plan.model)}
    folder = demo_folder() if plan.name == DEMO else Path(plan.name)
    if folder.is_dir():
        return plan, about | {"name": plan.name, "files": _folder(folder)}
    plan = replace(plan, commit=_commit(plan))
    return plan, about | {"commit": plan.commit}


def settings(plan: Plan) -> dict[str, Any]:
    """How everything in a plan is measured, and with what, as JSON values.

    Source: this library.
    """
    return {
        "metrics": [(name, _code(name)) for name in plan.metrics],
        "conditions": [(name, [e.describe() for e in edits]) for name, edits in plan.conditions.items()],
        "batch_size": plan.batch_size,
        "max_length": plan.max_length,
        "prepend_bos": plan.prepend_bos,
        "position": plan.position,
        "keep": plan.keep,
        "versions": versions(),
    }


def _ready(plan: ModelPlan) -> Any:
    """A model in memory as it is, or what the function that loads it returns."""
    is_model = isinstance(plan.model, torch.nn.Module) or hasattr(plan.model, "hook_dict")
    model = plan.model() if callable(plan.model) and not is_model else plan.model
    if not hasattr(model, "hook_dict"):
        raise TypeError(
            f"model {as_shown(plan.name)} is a {type(model).__name__}; pass what load_model or serve "
            "returns, or a function that returns it"
        )
    return model


def _commit(plan: ModelPlan) -> str | None:
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        return extract_commit_hash(cached_file(plan.name, "config.json", revision=plan.revision), None)
    except (OSError, ValueError) as error:
        raise ModelLoadError(_explain(plan.name, Path(plan.name), error)) from None


def _folder(folder: Path) -> list[Any]:
    found = []
    for file in sorted(f for f in folder.iterdir() if f.is_file()):
        about = file.stat()
        small = about.st_size <= LARGE
        what = hashlib.sha256(file.read_bytes()).hexdigest() if small else [about.st_size, about.st_mtime_ns]
        found.append((file.name, what))
    return found


def _weights(model: Any) -> str:
    inner = getattr(model, "original_model", model)
    config = getattr(inner, "config", None)
    about = str(model.cfg) if config is None else config.to_json_string()
    digest = hashlib.sha256(
        f"{type(model).__name__} {processing(model)} {getattr(model, 'door', '')} {about}".encode()
    )
    for name, tensor in inner.state_dict().items():
        raw = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    return digest.hexdigest()


def _tokenizer(model: Any) -> str | None:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return None
    inner = getattr(tokenizer, "backend_tokenizer", None)
    text = inner.to_str() if inner is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{tokenizer.bos_token} {text}".encode()).hexdigest()


def _code(name: str) -> str | None:
    """A digest of a user's metric; those of this library go with its version."""
    function = get_metric(name).function
    code = getattr(function, "__code__", None)
    if function.__module__.startswith("mcr_lens.") or code is None:
        return None
    told = (code.co_code, code.co_names, [c for c in code.co_consts if not hasattr(c, "co_code")])
    return hashlib.sha256(repr((told, function.__defaults__, function.__kwdefaults__)).encode()).hexdigest()
