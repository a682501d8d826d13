"""The main job: prompts in, one labelled Dataset out."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from mcr_lens.batches import Batch, forward_arguments, in_batches, running
from mcr_lens.hookpoints import HookedModel, check_eval
from mcr_lens.interventions import Intervention, hooks_of, listed
from mcr_lens.observer import Observer
from mcr_lens.prompts import Prompt, read_prompts
from mcr_lens.provenance import ProcessedWeightsWarning, processing
from mcr_lens.served import hooked


class PromptWarning(UserWarning):
    """A prompt was cut, is too short to compare tokens, or comes twice."""


def measure(
    model: Any,
    prompts: Any,
    metrics: Any = None,
    *,
    batch_size: int | Literal["auto"] = "auto",
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    position: int = 0,
    interventions: Intervention | Sequence[Intervention] = (),
    tokenizer: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Run a model over prompts and return every metric, by prompt and by depth, layer and head.

    Prompts of mixed length give the same numbers as one at a time: they are padded on the right, where
    a causal model does not look, and no metric sees the padding. Nothing is cached: values are reduced
    at the hook, and the unembedding is skipped unless a metric reads the logits.

    Args:
        model: what `load_model` or `serve` returns, a `TransformerBridge` or `HookedTransformer` of your own,
            or a plain Hugging Face model, which is measured as it is served.
        prompts: strings, or token ids (taken as they are).
        metrics: names, groups ("spectral", "norms", "attention", "sinks", "theory", "loss"), functions, or a
            name → function map; None for all default metrics.
        batch_size: how many prompts run together, at most: on a processor, large batches run in smaller parts
            (see `prompts.LARGEST`).
        max_length: cut longer prompts to so many tokens; by default to the model's context, with a warning.
        prepend_bos: "auto" for the tokenizer's own BOS where it has one; without one, position 0 is the
            first token and the result says so. A BOS that is there already is never doubled.
        position: the token taken for BOS, counted from the first token.
        interventions: edits made before anything is read, such as `zero_bos_mlp(1)`.
        tokenizer: that of a plain Hugging Face model, which has none of its own.

    Raises:
        TypeError, ValueError: what came, what is allowed, what to do.
        UnknownMetricError, MissingHookPointError, PatternNotComputedError, CannotServeError: before the run.
        NonFiniteActivationError, HookDidNotFireError: after a batch.
        MemoryError: a single prompt does not fit in memory; larger batches are halved, with a warning
            (`OutOfMemoryWarning`), and give the same numbers.

    >>> few = mcr.measure(model, prompts, ["bos_norm", "sink_score"], progress=False)
    >>> few.bos_norm.dims, few.sink_score.dims
    (('prompt', 'depth'), ('prompt', 'layer', 'head'))
    """
    options = Options(metrics, batch_size, max_length, prepend_bos, position, progress)
    return measure_conditions(hooked(model, tokenizer), prompts, {"": listed(interventions)}, options)[""]


@dataclass(frozen=True)
class Options:
    """What `measure` and `compare` are told beside the model, the prompts and the interventions."""

    metrics: Any = None
    batch_size: int | Literal["auto"] = "auto"
    max_length: int | None = None
    prepend_bos: bool | Literal["auto"] = "auto"
    position: int = 0
    progress: bool = True


def measure_conditions(
    model: HookedModel, prompts: Any, conditions: Mapping[str, Sequence[Intervention]], options: Options
) -> dict[str, xr.Dataset]:
    """One result for each condition, all of them from the same batches.

    A metric that reads the logits without interventions costs one unedited forward pass, shared by all
    conditions; a condition without interventions is that pass.

    Raises:
        As `measure`.
    """
    check_eval(model)
    rows = read_prompts(model, prompts, prepend_bos=options.prepend_bos, max_length=options.max_length)
    _check_position(rows, options.position)
    watches = {name: _observer(model, options, edits) for name, edits in conditions.items()}
    hooks = {name: hooks_of(model, edits) for name, edits in conditions.items()}
    _warn(model, rows, asked=options.max_length is not None)
    plan = next(iter(watches.values())).plan
    arguments = forward_arguments(model, needs_logits=bool(plan.steps["pass"]))
    against_clean = "clean_logits" in plan.statics
    order = sorted(conditions, key=lambda name: bool(hooks[name])) if against_clean else list(conditions)

    def run(batch: Batch) -> None:
        about = [{"prompt": i, **_about(rows[i])} for i in batch.numbers]
        clean = None
        if against_clean and hooks[order[0]]:
            with torch.no_grad():
                clean = model(batch.tokens, **arguments)
        for name in order:
            watch = watches[name]
            watch.expect(batch.tokens, spans=[(0, n) for n in batch.lengths], about=about)
            with (
                torch.no_grad(),
                running(batch.numbers),
                model.hooks(fwd_hooks=[*hooks[name], *watch.fwd_hooks]),
            ):
                logits = model(batch.tokens, **arguments)
            clean = logits if against_clean and not hooks[name] else clean
            watch.finish(logits, clean)

    for _ in in_batches(
        model, rows, options.batch_size, partial(_all_or_nothing, run, watches), progress=options.progress
    ):
        pass
    results = {name: watches[name].result() for name in conditions}
    first = next(iter(results.values()))
    warn_of_last(first, (first.n_tokens == options.position + 1) & (first.n_tokens > 1), stacklevel=4)
    return results


def warn_of_last(ds: xr.Dataset, last: xr.DataArray, *, stacklevel: int = 3) -> None:
    """Say that nobody stands behind the position that is read, where that leaves something undefined.

    Args:
        last: by prompt, whether it is the last one.
    """
    if not last.any():
        return
    few = ds.isel(prompt=np.flatnonzero(last.values))
    floats = [v for v in few.data_vars.values() if v.dtype.kind == "f" and not {"top", "rank"} & set(v.dims)]
    if any(values.isnull().any() for values in floats):
        warnings.warn(
            f"{few.sizes['prompt']} of {ds.sizes['prompt']} prompts end at the position that is read: what "
            "later tokens give to it is NaN; leave them out",
            PromptWarning,
            stacklevel=stacklevel,
        )


def _all_or_nothing(run: Callable[[Batch], None], watches: Mapping[str, Observer], batch: Batch) -> None:
    """Run a batch; after an error, no condition keeps anything of it."""
    before = {name: watch.mark() for name, watch in watches.items()}
    try:
        run(batch)
    except BaseException:
        for name, watch in watches.items():
            watch.forget_since(before[name])
        raise


def _observer(model: HookedModel, options: Options, edits: Sequence[Intervention]) -> Observer:
    watch = Observer(model, options.metrics, position=options.position, interventions=tuple(edits))
    watch._release = True
    return watch


def _about(prompt: Prompt) -> dict[str, Any]:
    return {"text": prompt.text, "prepended": prompt.prepended, "truncated": prompt.truncated}


def _check_position(rows: Sequence[Prompt], position: int) -> None:
    shortest = min(len(row.ids) for row in rows)
    if isinstance(position, int) and position >= shortest:
        raise ValueError(
            f"position={position}, but the shortest prompt has {shortest} tokens; leave it out or "
            "choose an earlier position"
        )


def _warn(model: Any, rows: Sequence[Prompt], *, asked: bool) -> None:
    if processing(model).startswith("processed"):
        warnings.warn(
            f"weights: {processing(model)}; norms and entropies are not the trained model's, so measure "
            "what mcr_lens.load_model returns instead",
            ProcessedWeightsWarning,
            stacklevel=4,
        )
    cut = sum(row.truncated for row in rows)
    if cut and not asked:
        longest = max(len(row.ids) for row in rows)
        warnings.warn(
            f"{cut} of {len(rows)} prompts were longer than {longest} tokens and were cut there; see "
            "the coordinate `truncated`",
            PromptWarning,
            stacklevel=4,
        )
    single = sum(len(row.ids) == 1 for row in rows)
    if single:
        warnings.warn(
            f"{single} of {len(rows)} prompts have a single token: whatever compares it with other "
            "tokens is NaN; leave them out",
            PromptWarning,
            stacklevel=4,
        )
    seen = {tuple(row.ids.tolist()) for row in rows}
    if len(seen) < len(rows):
        warnings.warn(
            f"{len(rows) - len(seen)} prompts come more than once and are counted each time",
            PromptWarning,
            stacklevel=4,
        )
