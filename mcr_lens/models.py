"""How does a name, a folder or a Hugging Face model become a model whose every tensor can be read?"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mcr_lens._checks import as_shown, first_line, path_of
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
        ValueError: options that exclude each other, a dtype or device that is none.
        TypeError: neither a name nor a model.

    Source: this library.

    >>> model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model  # model = mcr.load_model("demo")
    (8, 4, 32)
    """
    _check_versions()
    kind = _dtype(dtype)
    check_device(device, device_map)
    if device_map is not None and not isinstance(device_map, str | Mapping):
        raise ValueError(f"device_map={as_shown(device_map)}: pass 'auto', or a map from modules to devices")
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
        ModelLoadError: it is a file, a folder without a model, or nothing that a model can be called.
    """
    source = str(demo_folder()) if name == DEMO else name
    try:
        folder = path_of(source)
    except ValueError:
        folder = None
    if folder is None or not source.strip():
        raise ModelLoadError(
            f"{name[:40]!r} is no name of a model; pass a Hugging Face folder, a hub name, or 'demo'"
        )
    if folder.exists() and not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"{as_shown(name)} is no model: "
            f"{'it holds no config.json' if folder.is_dir() else 'it is a file'}; "
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


def _check_in_memory(model: Any, device_map: Any, tokenizer: Any) -> None:
    if isinstance(model, HookedModel):
        raise TypeError(
            f"{type(model).__name__} is a TransformerLens model already; pass it to measure as it is"
        )
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"expected a hub name, a folder or a Hugging Face model, got {type(model).__name__}")
    if tokenizer is not None and not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(f"tokenizer is a {type(tokenizer).__name__}; pass one that AutoTokenizer returns")
    if device_map is not None:
        raise ValueError("device_map has no effect on a model in memory; pass it to from_pretrained instead")


def check_weights(model: Any) -> None:
    """Refuse a model in memory that cannot compute anything, before something is done to it.

    Raises:
        ModelLoadError: no layers, weights that are not there, whole numbers for weights, a block that stands
            twice.

    Source: this library.
    """
    name, config = type(model).__name__, model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "num_hidden_layers", None) == 0:
        raise ModelLoadError(f"{name} has no layers, so there is nothing to measure; load another model")
    spread = getattr(model, "hf_device_map", None)  # what is offloaded comes back for its forward pass
    if not spread and any(weight.is_meta for weight in model.parameters()):
        raise ModelLoadError(
            f"{name} has weights on the meta device, which hold no numbers; load them, by from_pretrained or "
            "load_state_dict(..., assign=True)"
        )
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if type(module) is torch.nn.Linear and weight is not None and not weight.is_floating_point():
            raise ModelLoadError(
                f"{name} holds {weight.dtype} weights in {path}, a plain linear layer, which cannot compute "
                "with them; load the model with its quantization_config, or convert it to float32"
            )
        if isinstance(module, torch.nn.ModuleList) and len(set(module)) < len(module):
            raise ModelLoadError(
                f"{name} has the same module several times in {path}, so what its blocks do cannot be told "
                "apart; give each its own"
            )


def _wrap(model: Any, kind: Any, device: Any, device_map: Any, tokenizer: Any) -> Any:
    _check_in_memory(model, device_map, tokenizer)
    check_weights(model)
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
        raise ModelLoadError(f"TransformerLens cannot wrap {architecture}: {first_line(error)}") from error


def _prepared(tokenizer: Any) -> Any:
    """TransformerLens looks for a name and wants a tokenizer that adds its BOS, or fetches another one."""
    tokenizer.init_kwargs.setdefault("name_or_path", tokenizer.name_or_path or "local")
    # Said this way, and not by the attribute: setting that rewrites the template, and [CLS], [SEP] are gone.
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


def check_device(device: Any, device_map: Any = None) -> None:
    """Refuse what no weights can be put on, and a device beside a map of them.

    Raises:
        ValueError: what is allowed.

    Source: this library.
    """
    if device is None:
        return
    if device_map is not None:
        raise ValueError("pass device or device_map, not both")
    try:
        torch.device(device)
    except (TypeError, RuntimeError, ValueError):
        raise ValueError(
            f"device={as_shown(device)}: pass 'cpu', 'cuda', 'cuda:1' or a torch device"
        ) from None


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(dtype, str):
        if dtype.removeprefix("torch.") not in allowed:
            raise ValueError(f"dtype={as_shown(dtype)}: pass one of {', '.join(allowed)}")
        return allowed[dtype.removeprefix("torch.")]
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={as_shown(dtype)}: pass one of {', '.join(allowed)}")
    return dtype


def _explain(name: str, folder: Path, error: Exception) -> str:
    if folder.exists():
        return f"{as_shown(name)} could not be loaded as a Hugging Face folder: {first_line(error)}"
    if "/" in name and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        return f"{as_shown(name)} is no model: there is no such folder"
    if _caused_by(error, "GatedRepoError"):
        return (
            f"{as_shown(name)} is gated on the hub: ask for access on its page, then log in with `hf auth "
            "login` or set HF_TOKEN"
        )
    return (
        f"{as_shown(name)} is neither a local folder nor a model that could be fetched from the hub "
        f"({first_line(error)}); check the name and the network, or pass a folder"
    )


def _caused_by(error: BaseException | None, *kinds: str) -> bool:
    """Whether an error of the hub's client, by the names of its classes, stands behind this one."""
    while error is not None:
        if {kind.__name__ for kind in type(error).__mro__} & set(kinds):
            return True
        error = error.__cause__ or error.__context__
    return False


def not_fetched(error: BaseException) -> bool:
    """Whether the hub could not be reached, or does not hand this out.

    Source: this library.
    """
    return _caused_by(error, "HfHubHTTPError", "LocalEntryNotFoundError", "OfflineModeIsEnabled", "HTTPError")


def _check_versions() -> None:
    found = version("transformer-lens")
    major, minor = (int(part) for part in found.split(".")[:2])
    if not (3, 9) <= (major, minor) < (5, 0):
        raise ImportError(
            f"mcr_lens needs transformer-lens 3.9 or 4.x, and {found} is installed (older versions are "
            'wrong under padding): pip install "transformer-lens>=3.9,<5"'
        )
