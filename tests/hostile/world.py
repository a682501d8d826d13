"""What is bad input thrown at? Models, results, readouts and files, each made when first asked for."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import models as tiny
import numpy as np
import torch
import xarray as xr
from refusals import ROWS
from traces import hook_census

import mcr_lens as mcr

TEXTS = ["the sky is blue", "a cat sat on the mat", "no rain fell", "it was late", "who is there", "go home"]
TEXT = " ".join(TEXTS)
PAIRS = [(one, other) for one, other in pairwise(TEXTS)]
SCORES = [1.0, 2.0, 3.0, 4.0, 5.0]
LABELS = ["x", "y", "x", "y", "x", "y"]
RECORDS = [
    {"query": "The sky is", "choices": ["blue", "green"], "gold": 0},
    {"query": "A cat says", "choices": ["moo", "miau", "wuff"], "gold": 1},
]
PLAN = {"out": "o", "models": [{"name": "demo"}], "prompts": [{"name": "p", "texts": ["a text"]}]}
QUICK: dict[str, Any] = {"progress": False}
RESAMPLES: dict[str, Any] = {"resamples": 100}


@dataclass(frozen=True)
class Case:
    """One bad input: what it is, the call that gets it, and what has to come back."""

    what: str
    call: Callable[["World"], Any]
    error: type[BaseException]
    says: str  # a part of the message, as it stands


class World:
    """Tiny models made in memory, what was measured of them, and a folder for files."""

    MODELS = ("llama", "reader", "raw", "served", "encoder")
    """Names of those that are never changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, name: str, content: str | bytes) -> Path:
        """A file with this content."""
        path = self.folder / name
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    def lines(self, name: str, *rows: Any) -> Path:
        """A JSON Lines file."""
        return self.file(name, "\n".join(map(json.dumps, rows)))

    def plan(self, **changes: Any) -> dict[str, Any]:
        """The mapping of a plan, with other values; None takes a key out."""
        given = copy.deepcopy(PLAN) | {"out": str(self.folder / "swept")} | changes
        return {key: value for key, value in given.items() if value is not None}

    @cached_property
    def llama(self) -> Any:
        """A bridge without a tokenizer."""
        return _run_once(tiny.bridge("llama"))

    @cached_property
    def reader(self) -> Any:
        """A bridge with a tokenizer."""
        model = tiny.hugging_face("llama")
        return _run_once(mcr.load_model(model, tokenizer=tiny.tokenizer(), verbose=False))

    @cached_property
    def raw(self) -> Any:
        """A plain Hugging Face model."""
        return tiny.hugging_face("llama")

    @cached_property
    def served(self) -> Any:
        """A model as it is served, with a tokenizer."""
        return mcr.serve(tiny.hugging_face("llama"), tiny.tokenizer())

    @cached_property
    def encoder(self) -> Any:
        """A bidirectional model."""
        return _run_once(tiny.bridge("bert"))

    @cached_property
    def ds(self) -> xr.Dataset:
        """What `measure` returns, three prompts and every metric."""
        return mcr.measure(self.reader, TEXTS[:3], "all", **QUICK)

    @cached_property
    def small(self) -> xr.Dataset:
        """The same with one variable, which is quickly written."""
        return mcr.measure(self.reader, TEXTS[:3], ["bos_norm"], **QUICK)

    @cached_property
    def six(self) -> xr.Dataset:
        """The same of six prompts, as many as a correlation needs."""
        return mcr.measure(self.reader, TEXTS, ["sink_score", "mixing_score", "next_token_loss"], **QUICK)

    @cached_property
    def compared(self) -> xr.Dataset:
        """Two conditions, and all that `compare` measures."""
        return mcr.compare(self.reader, TEXTS[:3], {"clean": [], "cut": mcr.zero_bos_mlp(1)}, **QUICK)

    @cached_property
    def doses(self) -> xr.Dataset:
        """A write times several factors."""
        return mcr.dose_response(self.reader, TEXTS[:3], layers=1, factors=(1.0, 0.0), **QUICK)

    @cached_property
    def steps(self) -> xr.Dataset:
        """The same prompts at two steps of a training."""
        return mcr.join_steps({1: self.ds, 2: self.ds})

    @cached_property
    def null(self) -> xr.Dataset:
        """The prompts of `ds` and random weights."""
        return mcr.random_weights(self.reader, TEXTS[:3], ["bos_norm", "sink_score"], seeds=(0, 1), **QUICK)

    @cached_property
    def moments(self) -> xr.Dataset:
        """What remains of prompts that were not kept."""
        return mcr.moments(self.ds)

    @cached_property
    def seen(self) -> xr.Dataset:
        """A prompt from close by."""
        return mcr.close_up(self.reader, TEXTS[0], [(1, 0), (2, 1)])

    @cached_property
    def lens(self) -> xr.Dataset:
        """A readout over windows."""
        return mcr.logit_lens(self.reader, TEXT, window=16, **QUICK)

    @cached_property
    def choices(self) -> xr.Dataset:
        """A readout over questions."""
        return mcr.multiple_choice(self.reader, RECORDS, **QUICK)

    @cached_property
    def probe(self) -> xr.Dataset:
        """A readout over labelled texts."""
        return mcr.linear_probe(self.reader, TEXTS, LABELS, seeds=1, **QUICK)

    @cached_property
    def pairs(self) -> xr.Dataset:
        """A readout over pairs of texts."""
        return mcr.similarity_probe(self.reader, PAIRS, SCORES, **RESAMPLES, **QUICK)

    @cached_property
    def tuned(self) -> mcr.TunedLens:
        """Translators that change nothing."""
        return mcr.TunedLens(torch.zeros(4, 32, 32), torch.zeros(4, 32))

    @cached_property
    def result_file(self) -> Path:
        """A result on disk."""
        return mcr.save(self.small, self.folder / "good.nc")

    @cached_property
    def lens_file(self) -> Path:
        """A tuned lens on disk."""
        return self.tuned.save(self.folder / "good.safetensors")

    def spoilt(self, value: float, where: str = "embed_tokens") -> Any:
        """A Hugging Face model with this number in all weights of one kind."""
        model = tiny.hugging_face("llama")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if where in name:
                    weight.fill_(value)
        return model


def _run_once(bridge: Any) -> Any:
    """A bridge adds hooks of its own on its first pass; hooks are counted after it."""
    with torch.no_grad():
        bridge(torch.tensor(ROWS), return_type=None)
    return bridge


def state_of(model: Any) -> tuple[int, dict[str, int], bool]:
    """What must be the same before and after a call: weights, hooks, evaluation mode."""
    inner = getattr(model, "original_model", model)
    total = 0
    for name, tensor in [*inner.named_parameters(), *inner.named_buffers()]:
        total ^= hash((name, tensor.detach().cpu().numpy().tobytes()))
    hooks = hook_census(model) if hasattr(model, "hook_dict") and isinstance(model, torch.nn.Module) else {}
    hooks |= {
        f"module.{name}": len(module._forward_hooks) + len(module._forward_pre_hooks)
        for name, module in inner.named_modules()
    }
    return total, {name: count for name, count in hooks.items() if count}, inner.training


def renamed(ds: xr.Dataset, **names: str) -> xr.Dataset:
    """A Dataset with other names of its axes."""
    return ds.rename_dims(names).drop_indexes([n for n in names if n in ds.indexes], errors="ignore")


def with_nan(ds: xr.Dataset, variable: str) -> xr.Dataset:
    """A Dataset with one variable that is NaN everywhere."""
    return ds.assign({variable: ds[variable] * np.nan})


__all__ = [
    "LABELS", "PAIRS", "PLAN", "QUICK", "RECORDS", "RESAMPLES", "ROWS", "SCORES", "TEXT", "TEXTS", "Case",
    "World", "renamed", "state_of", "with_nan",
]  # fmt: skip
