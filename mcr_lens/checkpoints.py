"""Which checkpoints of a training are there, and what does each of them show? One at a time, one Dataset."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from tqdm.auto import tqdm

from mcr_lens._checks import as_shown, path_of
from mcr_lens.measurement import measure
from mcr_lens.models import load_model
from mcr_lens.prompts import items_of
from mcr_lens.serving import serve
from mcr_lens.training_steps import check_agreement, check_step, join_steps

METRICS = ("massive_activation_ratio", "matrix_entropy", "sink_score", "next_token_loss")
"""What is measured by default: all that `emergence_steps` and `plot_emergence` read."""

PYTHIA_REVISIONS = tuple(f"step{n}" for n in (1, 1000, 2000, 4000, 8000, 10_000, 20_000, 30_000, 143_000))
"""Revisions of a Pythia model on the hub, such as `EleutherAI/pythia-410m`, at the steps of Fig. 2 of
arXiv 2510.06477."""

NAMED = re.compile(r"(?:step|checkpoint)[-_]?(\d+)")
"""What the folder of a checkpoint is called: step500, checkpoint-500."""


def emergence(
    checkpoints: Any,
    prompts: Any,
    *,
    metrics: Any = None,
    revisions: Sequence[str] | None = None,
    served: bool = False,
    tokenizer: Any = None,
    batch_size: int | Literal["auto"] = "auto",
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    position: int = 0,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Measure the same prompts at every checkpoint of a training; one Dataset, with `step` as its first axis.

    Checkpoints are loaded one after the other, through `load_model` or as they are served, and only one is
    held. Each step is what `measure` gives for it. For many prompts, or a measuring that may be interrupted,
    use `sweep` with `revisions` and put its results together with `join_steps`.

        ds = mcr_lens.emergence("run/checkpoints", prompts)
        ds = mcr_lens.emergence("EleutherAI/pythia-410m", prompts, revisions=["step1", "step1000"])

    Args:
        checkpoints: a folder that holds folders `step500` or `checkpoint-500`, in the order of their numbers;
            a map from training step to folder, hub name or model in memory; or a hub name, with `revisions`.
        prompts: as `measure`.
        metrics: as `measure`; by default norm ratio, entropy, sink scores and next-token loss.
        revisions: of the hub name; the step is the number that each ends in. Those of the paper's Fig. 2:
            `mcr_lens.checkpoints.PYTHIA_REVISIONS`.
        served: load each with `serve` instead of `load_model`.
        tokenizer: of checkpoints that come without one.
        batch_size, max_length, prepend_bos, position: as `measure`.
        dtype, device: as `load_model` or `serve`; not for models in memory.
        progress: show a bar over checkpoints.

    Returns:
        Variables as `measure`, by step, prompt and depth, layer or head; the coordinate `checkpoint` [step]
        says which model it was. `save` and `load` take it; `ds.sel(step=500)` is a result of its own.

    Raises:
        ValueError: no checkpoints, names without a number, or what `measure` refuses.
        TypeError: neither a folder, a name nor a map.
        ModelLoadError: a checkpoint that cannot be loaded.
        ResultSchemaError: checkpoints that differ in layers, heads, width, dtype or tokens of the prompts.

    Source: arXiv 2510.06477, Fig. 2 (training dynamics of Pythia).
    """
    found = find_checkpoints(checkpoints, revisions)
    texts = items_of(prompts)  # read anew at every step
    chosen = {"dtype": dtype, "device": device}
    options = {
        "batch_size": batch_size, "max_length": max_length, "prepend_bos": prepend_bos, "position": position,
        "progress": False,
    }  # fmt: skip
    results: dict[int, xr.Dataset] = {}
    for step, (source, revision) in tqdm(found.items(), unit="checkpoint", disable=not progress):
        model = source
        if isinstance(source, str):
            load = serve if served else load_model
            revised = {} if revision is None else {"revision": revision}
            model = load(source, tokenizer=tokenizer, verbose=False, **chosen, **revised)
        elif any(value is not None for value in chosen.values()):
            raise ValueError(
                f"step {step} is a model in memory, where dtype= and device= have no effect; leave them out"
            )
        own = {} if isinstance(source, str) else {"tokenizer": tokenizer}
        results[step] = measure(model, texts, list(METRICS) if metrics is None else metrics, **options, **own)
        del model  # or two of them would be held while the next one is loaded
        first = next(iter(results))
        check_agreement(first, results[first], step, results[step])
    named = isinstance(checkpoints, str | os.PathLike)
    return join_steps(results, model=os.fspath(checkpoints) if named else None)


def find_checkpoints(given: Any, revisions: Sequence[str] | None = None) -> dict[int, tuple[Any, str | None]]:
    """Training step → (folder, name or model, revision), in the order of the steps.

    Raises:
        ValueError: none, names without a number, one step twice, or revisions of what is not on a hub.
        TypeError: neither a folder, a name nor a map.

    Source: this library.
    """
    if isinstance(given, str | os.PathLike):
        folder = path_of(given)
        if folder.is_dir():
            if revisions is not None:
                raise ValueError(f"{folder} is a folder and has no revisions; leave them out")
            return _in_folder(folder)
        return _on_hub(os.fspath(given), revisions)
    if not isinstance(given, Mapping):
        raise TypeError(
            "checkpoints: expected a folder, a hub name or a map from step to model, got "
            f"{type(given).__name__}"
        )
    if revisions is not None:
        raise ValueError("revisions= goes with a hub name; a map names each checkpoint itself")
    if not given:
        raise ValueError("checkpoints: got an empty map; pass at least one training step")
    found = {check_step(step): model for step, model in given.items()}
    if len(found) < len(given):
        raise ValueError("checkpoints: a training step is there twice")
    return {
        step: (os.fspath(found[step]) if isinstance(found[step], str | os.PathLike) else found[step], None)
        for step in sorted(found)
    }


def _in_folder(folder: Path) -> dict[int, tuple[Any, str | None]]:
    found: dict[int, tuple[Any, str | None]] = {}
    for path in sorted(folder.iterdir()):
        match = NAMED.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        step = int(match[1])
        if step in found:
            raise ValueError(f"{folder} holds step {step} twice ({Path(found[step][0]).name}, {path.name})")
        found[step] = (str(path), None)
    if not found:
        raise ValueError(
            f"{folder} holds no checkpoints: no folder is named like step500 or checkpoint-500; pass a map "
            "from training step to folder"
        )
    return dict(sorted(found.items()))


def _on_hub(name: str, revisions: Sequence[str] | None) -> dict[int, tuple[Any, str | None]]:
    if revisions is None:
        raise ValueError(
            f"{as_shown(name)} is no folder; for a model on a hub pass revisions=['step1', 'step1000']"
        )
    if not isinstance(revisions, Sequence) or isinstance(revisions, str) or not revisions:
        raise ValueError(
            f"revisions={as_shown(revisions)}: pass a list of names such as ['step1', 'step1000']"
        )
    found: dict[int, tuple[Any, str | None]] = {}
    for revision in revisions:
        number = re.search(r"(\d+)$", str(revision))
        if number is None:
            raise ValueError(
                f"revision {as_shown(revision)} does not end in its training step, as 'step1000' does"
            )
        if int(number[1]) in found:
            raise ValueError(f"revisions: training step {int(number[1])} is there twice")
        found[int(number[1])] = (name, str(revision))
    return dict(sorted(found.items()))
