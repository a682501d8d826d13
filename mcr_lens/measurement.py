"""The main job: prompts in, one labelled Dataset out."""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
import xarray as xr
from tqdm.auto import tqdm

from mcr_lens.hookpoints import HookedModel, check_model
from mcr_lens.observer import Observer
from mcr_lens.prompts import Prompt, make_batches, read_prompts, stack
from mcr_lens.provenance import ProcessedWeightsWarning, processing


class PromptWarning(UserWarning):
    """A prompt was cut, is too short to compare tokens, or comes twice."""


def measure(
    model: HookedModel,
    prompts: Any,
    metrics: Any = None,
    *,
    batch_size: int | Literal["auto"] = "auto",
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    position: int = 0,
    interventions: Sequence[Any] = (),
    progress: bool = True,
) -> xr.Dataset:
    """Run a model over prompts and return every metric, by prompt and by depth, layer and head.

    Prompts of mixed length give the same numbers as one at a time: they are padded on the right, where
    a causal model does not look, and no metric sees the padding. Nothing is cached: values are reduced
    at the hook, and the unembedding is skipped unless a metric reads the logits.

    Args:
        model: a `TransformerBridge`, a `HookedTransformer`, or what `load_model` returns.
        prompts: strings, or token ids (taken as they are).
        metrics: names, groups ("spectral", "norms", "attention", "sinks", "loss"), functions, or a name →
            function map; None for all default metrics.
        batch_size: how many prompts run together.
        max_length: cut longer prompts to so many tokens; by default to the model's context, with a warning.
        prepend_bos: "auto" for the tokenizer's own BOS where it has one; without one, position 0 is the
            first token and the result says so. A BOS that is there already is never doubled.
        position: the token taken for BOS, counted from the first token.
        interventions: edits made before anything is read, such as `zero_bos_mlp(1)`.

    Raises:
        TypeError, ValueError: what came, what is allowed, what to do.
        UnknownMetricError, MissingHookPointError, PatternNotComputedError: before the run.
        NonFiniteActivationError, HookDidNotFireError: after a batch.
    """
    check_model(model)
    if getattr(model, "training", False):
        raise ValueError("the model is in training mode, so dropout would be measured; call model.eval()")
    rows = read_prompts(model, prompts, prepend_bos=prepend_bos, max_length=max_length)
    _check_position(rows, position)
    watch = Observer(model, metrics, position=position, interventions=tuple(interventions))
    watch._release = True
    edits = [hook for edit in interventions for hook in edit.fwd_hooks(model)]
    _warn(model, rows, asked=max_length is not None)
    batches = make_batches([len(row.ids) for row in rows], model, batch_size)
    arguments = _forward_arguments(model, needs_logits=bool(watch.plan.steps["pass"]))
    filler = getattr(getattr(model, "tokenizer", None), "pad_token_id", None)
    device = torch.device(getattr(model.cfg, "device", None) or "cpu")
    bar = tqdm(total=len(rows), unit="prompt", disable=not progress, delay=1, leave=False)
    with bar, torch.no_grad(), model.hooks(fwd_hooks=[*edits, *watch.fwd_hooks]):
        for batch in batches:
            chosen = [rows[i] for i in batch]
            tokens = stack(chosen, filler if filler is not None else int(chosen[0].ids[0]))
            watch.expect(
                tokens,
                spans=[(0, len(p.ids)) for p in chosen],
                about=[{"prompt": i, **_about(rows[i])} for i in batch],
            )
            logits = model(tokens.to(device), **arguments)
            watch.finish(logits)
            bar.update(len(batch))
    return watch.result()


def _about(prompt: Prompt) -> dict[str, Any]:
    return {"text": prompt.text, "prepended": prompt.prepended, "truncated": prompt.truncated}


def _forward_arguments(model: Any, *, needs_logits: bool) -> dict[str, Any]:
    """Skip the unembedding where the model can: HookedTransformer by return_type, Hugging Face by one row."""
    if needs_logits:
        return {"return_type": "logits"}
    wrapped = getattr(model, "original_model", None)
    if wrapped is not None and "logits_to_keep" in inspect.signature(wrapped.forward).parameters:
        return {"return_type": None, "logits_to_keep": 1}
    return {"return_type": None}


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
            stacklevel=3,
        )
    cut = sum(row.truncated for row in rows)
    if cut and not asked:
        longest = max(len(row.ids) for row in rows)
        warnings.warn(
            f"{cut} of {len(rows)} prompts were longer than {longest} tokens and were cut there; see "
            "the coordinate `truncated`",
            PromptWarning,
            stacklevel=3,
        )
    single = sum(len(row.ids) == 1 for row in rows)
    if single:
        warnings.warn(
            f"{single} of {len(rows)} prompts have a single token: whatever compares it with other "
            "tokens is NaN; leave them out",
            PromptWarning,
            stacklevel=3,
        )
    seen = {tuple(row.ids.tolist()) for row in rows}
    if len(seen) < len(rows):
        warnings.warn(
            f"{len(rows) - len(seen)} prompts come more than once and are counted each time",
            PromptWarning,
            stacklevel=3,
        )
