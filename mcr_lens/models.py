"""How does a name, a folder or a Hugging Face model become a model whose every tensor can be read?"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mcr_lens.hookpoints import HookedModel
from mcr_lens.provenance import LOADED

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEMO = "demo"
"""The name of the model that comes with the package."""


class ModelLoadError(ValueError):
    """A model could not be loaded; the message says what to do."""


def load_model(
    model: Any,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    verbose: bool = True,
) -> "TransformerBridge":
    """Boot a model through the TransformerLens bridge with the weights as they were trained.

    No folding and no centring, eager attention (so that every pattern can be read), evaluation mode.

    Args:
        model: "demo" for the bundled model, a Hugging Face hub name, a local folder, or a Hugging Face
            model in memory. A model in memory is wrapped in place: the bridge replaces its submodules.
        dtype: "float32", "bfloat16", "float16" or a torch dtype; by default float32 for what is loaded
            here, and unchanged for a model in memory.
        device: where to put the weights; by default a GPU where there is one.
        device_map: spread a large model over devices ("auto", or a map); not together with `device`.
        revision: branch, tag or commit of a hub model (Pythia: "step1000").
        tokenizer: for a model in memory; without one it takes token ids only.
        verbose: say on standard error, in one line, what was done.

    Raises:
        ModelLoadError: not a model, not found, or no network to fetch it.
        ValueError: options that exclude each other.
        TypeError: neither a name nor a model.

    Source: this library.
    """
    _check_versions()
    kind = _dtype(dtype)
    if device is not None and device_map is not None:
        raise ValueError("pass device or device_map, not both")
    in_memory = not isinstance(model, str | Path)
    if in_memory:
        bridge = _wrap(model, kind, device, device_map, tokenizer)
        name = type(model).__name__
    else:
        name = str(model)
        bridge = _boot(name, kind, device, device_map, revision, tokenizer)
    bridge.eval()
    config = bridge.original_model.config
    LOADED[bridge] = {
        "model": name if name == DEMO or not in_memory else f"{name} (in memory)",
        "revision": str(revision or getattr(config, "_commit_hash", None) or "unknown"),
    }
    if verbose:
        weights = next(bridge.original_model.parameters())
        print(
            f"{name}: {bridge.cfg.n_layers} layers, {bridge.cfg.n_heads} heads, width {bridge.cfg.d_model}; "
            f"{str(weights.dtype).removeprefix('torch.')} on {bridge.cfg.device}, weights as trained, "
            f"{getattr(config, '_attn_implementation', 'eager')} attention",
            file=sys.stderr,
        )
    return bridge


def demo_folder() -> Path:
    """Where the bundled model lies, as a Hugging Face folder."""
    return Path(str(files("mcr_lens") / "demo"))


def model_source(name: str) -> str:
    """What Hugging Face loads a model of this name from: the bundled model's folder, a folder, a hub name.

    Raises:
        ModelLoadError: it is a file, or a folder without a model.
    """
    source = str(demo_folder()) if name == DEMO else name
    folder = Path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"{name!r} is no model: {'it holds no config.json' if folder.is_dir() else 'it is a file'}; "
            "pass a Hugging Face folder, a hub name, or 'demo'"
        )
    return source


def _boot(name: str, kind: Any, device: Any, device_map: Any, revision: str | None, tokenizer: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    source = model_source(name)
    options: dict[str, Any] = {"dtype": kind or torch.float32, "tokenizer": tokenizer}
    options |= {"device_map": device_map} if device_map is not None else {"device": device}
    if revision is not None:
        options["revision"] = revision
    try:
        with _quiet(unless=name != DEMO and sys.stderr.isatty()):
            return TransformerBridge.boot_transformers(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        # torch asserts that it was built for the device that is asked for.
        raise ModelLoadError(_explain(name, Path(source), error)) from error


@contextmanager
def _quiet(*, unless: bool) -> Iterator[None]:
    """Keep Hugging Face's progress bars out of pipes and log files."""
    from transformers.utils import logging

    if unless or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _check_in_memory(model: Any, device_map: Any) -> None:
    if isinstance(model, HookedModel):
        raise TypeError(
            f"{type(model).__name__} is a TransformerLens model already; pass it to measure as it is"
        )
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"expected a hub name, a folder or a Hugging Face model, got {type(model).__name__}")
    if device_map is not None:
        raise ValueError("device_map has no effect on a model in memory; pass it to from_pretrained instead")


def _wrap(model: Any, kind: Any, device: Any, device_map: Any, tokenizer: Any) -> Any:
    _check_in_memory(model, device_map)
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if kind is not None or device is not None:
        model = model.to(device=device, dtype=kind)
    # TransformerLens 3.x leaves a model in memory on sdpa, where some patterns are never computed.
    model.set_attn_implementation("eager")
    architecture = type(model).__name__
    if not model.config.architectures:  # absent on models built from a config
        model.config.architectures = [architecture]
    weights = next(model.parameters())
    try:
        if tokenizer is None:
            return build_bridge_from_module(model, architecture, hf_config=model.config)
        return TransformerBridge.boot_transformers(
            str(getattr(model, "name_or_path", "") or architecture),
            hf_model=model,
            tokenizer=_prepared(tokenizer),
            dtype=weights.dtype,
            device=weights.device,
        )
    except (ValueError, KeyError, RuntimeError) as error:
        raise ModelLoadError(f"TransformerLens cannot wrap {architecture}: {_first_line(error)}") from error


def _prepared(tokenizer: Any) -> Any:
    """TransformerLens looks for a name and wants a tokenizer that adds its BOS, or fetches another one."""
    tokenizer.init_kwargs.setdefault("name_or_path", tokenizer.name_or_path or "local")
    # Said this way, and not by the attribute: setting that rewrites the template, and [CLS], [SEP] are gone.
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(dtype, str):
        if dtype.removeprefix("torch.") not in allowed:
            raise ValueError(f"dtype={dtype!r}: pass one of {', '.join(allowed)}")
        return allowed[dtype.removeprefix("torch.")]
    return dtype


def _explain(name: str, folder: Path, error: Exception) -> str:
    if folder.exists():
        return f"{name!r} could not be loaded as a Hugging Face folder: {_first_line(error)}"
    if "/" in name and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        return f"{name!r} is no model: there is no such folder"
    return (
        f"{name!r} is neither a local folder nor a model that could be fetched from the hub "
        f"({_first_line(error)}); check the name and the network, or pass a folder"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].strip() or type(error).__name__


def _check_versions() -> None:
    found = version("transformer-lens")
    major, minor = (int(part) for part in found.split(".")[:2])
    if not (3, 9) <= (major, minor) < (5, 0):
        raise ImportError(
            f"mcr_lens needs transformer-lens 3.9 or 4.x, and {found} is installed (older versions are "
            'wrong under padding): pip install "transformer-lens>=3.9,<5"'
        )
