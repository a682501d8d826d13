"""What happens inside the model on one prompt: every row norm, and the patterns of chosen heads?"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, is_iterable
from mcr_lens.activations import check_layers
from mcr_lens.attention_views import AttentionView, attention_page, check_drawable, edits_text
from mcr_lens.hookpoints import HookedModel, check_model, context_length
from mcr_lens.interventions import Condition, Intervention, read_conditions
from mcr_lens.measurement import PromptWarning
from mcr_lens.positions import integers
from mcr_lens.prompts import Prompt, items_of, prompt_from_text, read_prompts
from mcr_lens.provenance import ProcessedWeightsWarning, describe, processing
from mcr_lens.rows import texts_of
from mcr_lens.schema import SCHEMA, with_axes
from mcr_lens.snapshot import Head, Reader
from mcr_lens.visibility import is_causal

CLEAN = "clean"
"""The condition of the model as it is."""

EDITED, SHORT_NAME = "edited", 60
"""What a view calls a condition that takes more characters to describe."""

PROMPT_TEXT = 1000
"""How many characters of the prompt a close-up keeps."""


def close_up(
    model: HookedModel,
    prompt: Any,
    heads: Iterable[Head] | None = None,
    *,
    conditions: Mapping[str, Condition] | None = None,
    max_tokens: int = 64,
    prepend_bos: bool | Literal["auto"] = "auto",
) -> xr.Dataset:
    """One prompt under the lens: ‖xᵢ‖ at every depth and position, and A of chosen heads, by condition.

        close_up(model, "The river", [(2, 0), (2, 3)], conditions={"cut": zero_bos_mlp(0)})

    `token_norm` [condition, depth, position] in the units of the residual stream and, where heads are
    chosen, `pattern` [condition, shown, query, key] (attention after the softmax, rows sum to 1 unless the
    model has sink logits) with the coordinates `layer` and `head` on the axis `shown`. The coordinate
    `token` spells the positions. One forward pass for each condition; every position stands in the result,
    so this is for looking at one prompt, and `measure` for numbers over many.

    Args:
        prompt: a string, or token ids (taken as they are).
        heads: pairs (layer, head), counted from 0, shown in that order; None for no patterns.
        conditions: a name → an intervention, several, or none of them, as in `compare`. The model as it is
            always comes first and is called "clean".
        max_tokens: longer prompts are cut to so many tokens. A causal model gives those tokens the same
            numbers in either case, an encoder does not.
        prepend_bos: as in `measure`.

    Warns:
        PromptWarning: the prompt was cut.
        ProcessedWeightsWarning: the residual stream is not the trained model's.

    Raises:
        TypeError: not a TransformerLens model, or a prompt that is neither text nor token ids.
        ValueError: more than one prompt, a head that the model does not have, "clean" for an edited
            condition, or as in `compare`.
        MissingHookPointError, PatternNotComputedError, HookDidNotFireError: patterns cannot be had.
        NonFiniteActivationError: NaN or infinity in the residual stream.

    Source: this library; token norms as in arXiv 2402.17762, Fig. 1; patterns as in arXiv 2510.06477.
    """
    return _look(model, prompt, _pairs(heads), _conditions(conditions), max_tokens, prepend_bos)


def attention_view(
    model: HookedModel,
    prompt: Any,
    layer: int,
    condition: Condition | None = None,
    *,
    heads: Sequence[int] | None = None,
    max_tokens: int = 64,
    prepend_bos: bool | Literal["auto"] = "auto",
) -> AttentionView:
    """The attention patterns of a layer on one prompt, with an intervention before and after side by side.

        attention_view(model, "The river", 2, zero_bos_mlp(0)).save("sinks.html")

    A notebook shows it in a frame; the page holds all it needs and asks for nothing from outside.

    Args:
        prompt, prepend_bos: as in `close_up`.
        layer: which block, counted from 0.
        condition: an intervention or several, shown beside the model as it is; None for that alone.
        heads: which heads of the layer; None for all.
        max_tokens: longer prompts are cut to so many tokens, with a notice on the page; at most 128.

    Warns, Raises:
        As `close_up` and `attention_page`.

    Source: this library, with CircuitsVis.
    """
    check_model(model)
    check_drawable(max_tokens)
    if not _counted(layer):
        raise ValueError(f"layer={as_shown(layer)}: pass the number of a block, counted from 0")
    chosen = range(model.cfg.n_heads) if heads is None else integers("heads", heads)
    pairs = [(int(layer), int(head)) for head in chosen]
    conditions = {CLEAN: (), **_named(condition)}
    return attention_page(_look(model, prompt, pairs, conditions, max_tokens, prepend_bos))


def _named(condition: Any) -> dict[str, Sequence[Intervention]]:
    """The condition under what it does, or under the name "edited" where that takes too many words."""
    edits = () if condition is None else (condition,)
    if isinstance(condition, Sequence) and not isinstance(condition, str):
        edits = tuple(condition)
    wrong = [edit for edit in edits if not isinstance(edit, Intervention)]
    if wrong:
        what = type(wrong[0]).__name__
        raise ValueError(f"condition: got a {what}; pass an intervention such as zero_bos_mlp(1), or several")
    name = edits_text([edit.describe() for edit in edits])
    return {name if len(name) <= SHORT_NAME else EDITED: edits} if edits else {}


def _look(
    model: HookedModel,
    prompt: Any,
    heads: list[Head],
    conditions: Mapping[str, Sequence[Intervention]],
    max_tokens: int,
    prepend_bos: bool | Literal["auto"],
) -> xr.Dataset:
    """Run the conditions and label what they gave; users call what calls this, and warnings point there."""
    check_model(model)
    if getattr(model, "training", False):
        raise ValueError("the model is in training mode, so dropout would be shown; call model.eval()")
    _check_heads(model, heads)
    row, n_tokens = _one_prompt(model, prompt, max_tokens, prepend_bos)
    _warn(model, len(row.ids), n_tokens)
    reader = Reader(model, heads)
    hooks = {name: [h for edit in edits for h in edit.fwd_hooks(model)] for name, edits in conditions.items()}
    norms, patterns = [], []
    for name in conditions:
        norm, pattern = reader.read(row, hooks[name], name)
        norms.append(norm)
        patterns.append(pattern)
    ids = row.ids.tolist()
    tokenizer = getattr(model, "tokenizer", None)
    attrs = {
        "schema": SCHEMA,
        "kind": "close-up of one prompt",
        **describe(model),
        "interventions": json.dumps({n: [e.describe() for e in edits] for n, edits in conditions.items()}),
        "prompt": _text(row, ids, tokenizer),
        "n_tokens": n_tokens,
        "shown_tokens": len(ids),
        "attention": "causal" if is_causal(model) else "bidirectional",
    }
    about = {
        "units": "1",
        "long_name": "Norm of the residual stream at a token",
        "source": "this library, after arXiv 2402.17762, Fig. 1",
    }
    ds = xr.Dataset(
        {"token_norm": (("condition", "depth", "position"), np.stack(norms), about)},
        coords={
            "condition": list(conditions),
            "depth": np.arange(model.cfg.n_layers + 1),
            "position": np.arange(len(ids)),
            "token": ("position", np.array(texts_of(ids, tokenizer), dtype=object)),
        },
        attrs=attrs,
    )
    return with_axes(_with_patterns(ds, np.stack(patterns), heads) if heads else ds)


def _with_patterns(ds: xr.Dataset, patterns: np.ndarray, heads: Sequence[Head]) -> xr.Dataset:
    about = {"units": "1", "long_name": "Attention pattern", "source": "arXiv 2510.06477 (attention maps)"}
    places = np.arange(ds.sizes["position"])
    ds = ds.assign(pattern=(("condition", "shown", "query", "key"), patterns, about))
    return ds.assign_coords(
        shown=np.arange(len(heads)),
        layer=("shown", np.array([layer for layer, _ in heads])),
        head=("shown", np.array([head for _, head in heads])),
        query=places,
        key=places,
    )


def _pairs(heads: Any) -> list[Head]:
    """Pairs of plain integers, in the order given."""
    if heads is None:
        return []
    given = list(heads) if is_iterable(heads) and not isinstance(heads, str | Mapping) else []
    found: list[Head] = []
    for pair in given:
        if isinstance(pair, Sequence | np.ndarray) and len(pair) == 2 and all(map(_counted, pair)):
            found.append((int(pair[0]), int(pair[1])))
    if not found or len(found) < len(given):
        raise ValueError(
            f"heads={as_shown(heads)}: pass pairs (layer, head) counted from 0, such as [(0, 1), "
            "(2, 3)], or None"
        )
    twice = [pair for pair in found if found.count(pair) > 1]
    if twice:
        raise ValueError(f"heads: {twice[0]} comes twice; name each head once")
    return found


def _counted(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= 0


def _check_heads(model: HookedModel, heads: Sequence[Head]) -> None:
    check_layers(model, [layer for layer, _ in heads])
    last = int(model.cfg.n_heads) - 1
    wrong = [head for _, head in heads if head > last]
    if wrong:
        raise ValueError(f"head {wrong[0]} does not exist: the model has heads 0..{last}")


def _conditions(given: Mapping[str, Condition] | None) -> dict[str, Sequence[Intervention]]:
    """The model as it is, and after it what was asked for."""
    made = {} if given is None else read_conditions(given)
    if made.get(CLEAN):
        raise ValueError("condition 'clean' is the model as it is; give the edited one another name")
    return {CLEAN: ()} | made


def _one_prompt(
    model: HookedModel, prompt: Any, max_tokens: int, prepend_bos: bool | Literal["auto"]
) -> tuple[Prompt, int]:
    """The prompt as it will run, and how many tokens it has in full."""
    if not _counted(max_tokens) or max_tokens < 1:
        raise ValueError(f"max_tokens={as_shown(max_tokens)}: pass a positive number of tokens")
    limit = min(int(max_tokens), context_length(model) or int(max_tokens))
    rows = read_prompts(model, prompt, prepend_bos=prepend_bos, max_length=limit)
    if len(rows) != 1:
        raise ValueError(f"got {len(rows)} prompts, and a close-up shows one; pass one of them")
    if not rows[0].truncated:
        return rows[0], len(rows[0].ids)
    (item,) = items_of(prompt)
    if isinstance(item, str):
        item = prompt_from_text(model, item, 0, prepend_bos, None).ids
    return rows[0], len(item)


def _warn(model: HookedModel, shown: int, n_tokens: int) -> None:
    if processing(model).startswith("processed"):
        warnings.warn(
            f"weights: {processing(model)}; norms are not the trained model's, so look at what "
            "mcr_lens.load_model returns instead",
            ProcessedWeightsWarning,
            stacklevel=4,
        )
    if shown == n_tokens:
        return
    most = min(n_tokens, context_length(model) or n_tokens)
    more = f"; pass max_tokens={most} to see more" if most > shown else ", all that the model takes"
    encoder = "" if is_causal(model) else ". It is an encoder: with the rest, the numbers would be others"
    warnings.warn(
        f"the prompt has {n_tokens} tokens and was cut to the first {shown}{more}{encoder}",
        PromptWarning,
        stacklevel=4,
    )


def _text(row: Prompt, ids: Sequence[int], tokenizer: Any) -> str:
    text = row.text
    if text is None:
        text = "" if tokenizer is None else str(tokenizer.decode(ids))
    return text[:PROMPT_TEXT].replace("\x00", "\ufffd")
