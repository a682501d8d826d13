"""How do prompts become rows of tokens, and which rows run together?"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mcr_lens._checks import as_shown
from mcr_lens.hookpoints import HookedModel, context_length, model_name
from mcr_lens.visibility import is_causal

BOS_ADVICE = "pass prepend_bos='auto' (the tokenizer's own BOS where it has one), True or False"


@dataclass(frozen=True)
class Prompt:
    """One prompt as the model will see it, and what was done to make it so."""

    ids: Tensor
    text: str | None
    prepended: bool
    truncated: bool


def own_bos(tokenizer: Any) -> int | None:
    """The BOS id of a tokenizer that has one of its own; None where TransformerLens put EOS in its place."""
    bos = getattr(tokenizer, "bos_token_id", None)
    declared = getattr(tokenizer, "init_kwargs", {}).get("bos_token")
    if bos is None or (declared is None and bos == tokenizer.eos_token_id):
        return None
    return int(bos)


def read_prompts(
    model: HookedModel,
    prompts: Any,
    *,
    prepend_bos: bool | Literal["auto"] = "auto",
    max_length: int | None = None,
    whole: bool = False,
) -> list[Prompt]:
    """Tokenize strings, or take token ids as they are.

    Args:
        prompts: a string, several strings, a tensor of token ids [pos] or [batch, pos], or a list of
            such tensors or id lists of any lengths.
        whole: whether what is longer than the context is kept, for windows to be cut from.

    Raises:
        ValueError: nothing to measure, an empty prompt, ids outside the vocabulary, or a tensor longer
            than the context.
        TypeError: something that is neither text nor token ids.
    """
    limit = None if whole else _limit(model, max_length)
    if not _is_bos(prepend_bos):
        raise ValueError(f"prepend_bos={as_shown(prepend_bos)}: {BOS_ADVICE}")
    items = items_of(prompts)
    if not items:
        raise ValueError("no prompts were given; pass at least one string or row of token ids")
    vocabulary = getattr(model.cfg, "d_vocab", None)
    found = []
    for number, item in enumerate(items):
        if isinstance(item, str):
            found.append(prompt_from_text(model, item, number, prepend_bos, limit))
        else:
            if prepend_bos != "auto":
                raise ValueError(
                    f"prepend_bos={prepend_bos} has no meaning for token ids, which are taken as they "
                    "are; leave it at 'auto'"
                )
            found.append(_from_ids(item, number, limit, cut=max_length is not None))
        _check_range(found[-1].ids, number, vocabulary)
    return found


def _is_bos(given: Any) -> bool:
    return isinstance(given, bool) or (isinstance(given, str) and given == "auto")


def make_batches(
    lengths: Sequence[int], model: HookedModel, batch_size: int | Literal["auto"]
) -> list[list[int]]:
    """Group prompts of similar length, the longest first; bidirectional models get equal lengths only.

    On a processor no batch is so large that its widest tensor goes beyond `LARGEST` bytes: a batch of 8
    prompts then runs as two of 4. "auto" bounds a batch by its tokens besides, and on a GPU by its patterns.

    Raises:
        ValueError: a batch size that is not a positive integer or "auto".
    """
    named = isinstance(batch_size, str) and batch_size == "auto"
    if not named and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise ValueError(f"batch_size={as_shown(batch_size)}: pass a positive integer or 'auto'")
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches:
            longest = lengths[batches[-1][0]]
            wished = _auto(model, longest) if batch_size == "auto" else batch_size
            size = _in_equal_parts(wished, _fitting(model, longest))
            if len(batches[-1]) < size and (is_causal(model) or longest == lengths[i]):
                batches[-1].append(i)
                continue
        batches.append([i])
    return batches


LARGEST = 2**24
"""Bytes of the widest tensor in a batch on a processor.

For larger ones, C libraries fetch fresh memory from the system each time, and filling it in takes longer than
the arithmetic: `make bench` shows it, by GPT-2's forward pass over prompts of 512 tokens.
"""


def _auto(model: HookedModel, length: int) -> int:
    if _on_cpu(model):
        return max(1, 4096 // length)
    if hasattr(model, "lacks"):  # as it is served: no pattern is ever built
        return max(1, 16384 // length)
    return max(1, min(16384 // length, 2**31 // (4 * model.cfg.n_heads * length**2)))


def _fitting(model: HookedModel, length: int) -> int:
    """How many prompts of this length a processor takes at a time, by the MLP's width and the pattern."""
    if not _on_cpu(model):
        return length * 2**20
    width = getattr(model.cfg, "d_mlp", None) or 4 * model.cfg.d_model
    fitting = LARGEST // (4 * width * length)
    if not hasattr(model, "lacks"):
        fitting = min(fitting, LARGEST // (2 * model.cfg.n_heads * length**2))
    return max(1, fitting)


def _in_equal_parts(size: int, most: int) -> int:
    """The size of the parts of a batch, no two of which differ by more than one, none above `most`."""
    return -(-size // -(-size // most))


def _on_cpu(model: HookedModel) -> bool:
    return str(getattr(model.cfg, "device", "cpu") or "cpu").startswith("cpu")


def stack(prompts: Sequence[Prompt], filler: int) -> Tensor:
    """Rows of token ids, padded on the right, where a causal model cannot see it."""
    return torch.nn.utils.rnn.pad_sequence([p.ids for p in prompts], batch_first=True, padding_value=filler)


def items_of(prompts: Any) -> list[Any]:
    """What a user passes as prompts, one entry each: texts or rows of token ids."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Tensor):
        if prompts.ndim not in (1, 2):
            raise ValueError(f"token ids have shape {tuple(prompts.shape)}; pass [pos] or [batch, pos]")
        return list(prompts if prompts.ndim == 2 else prompts[None])
    try:
        if isinstance(prompts, bytes | bytearray | Mapping | Set):  # lists of something else
            raise TypeError
        items = list(prompts)
    except TypeError:
        raise TypeError(f"prompts must be strings or token ids, got {type(prompts).__name__}") from None
    if items and all(isinstance(i, int) and not isinstance(i, bool) for i in items):
        return [items]
    return items


def prompt_from_text(
    model: Any, text: str, number: int | str, prepend_bos: bool | str, limit: int | None
) -> Prompt:
    """A text as a row of token ids, with BOS as asked for, cut to the limit; `number` calls it in errors."""
    called = number if isinstance(number, str) else f"prompt {number}"
    tokenizer: Any = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"{model_name(model)} has no tokenizer, so it cannot read text; pass token ids instead"
        )
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(f"tokenizer is a {type(tokenizer).__name__}; pass one that AutoTokenizer returns")
    if not text:
        raise ValueError(f"{called} is empty; leave it out")
    try:
        ids = list(tokenizer(text, verbose=False)["input_ids"])
    except (UnicodeEncodeError, TypeError):  # what tokenizers raise depends on their version
        raise ValueError(f"{called} is not valid text (a lone surrogate); clean it") from None
    bos = own_bos(tokenizer)
    if prepend_bos is True and bos is None:
        bos = tokenizer.bos_token_id
        if bos is None:
            raise ValueError("prepend_bos=True, but the tokenizer has no BOS token; pass 'auto' or False")
    bare = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    prepended = False
    if prepend_bos is False:
        added = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
        ids = ids[1:] if added and len(ids) > len(bare) else ids
    elif bos is not None:
        prepended = bare[:1] != [bos]
        ids = [bos, *ids] if ids[:1] != [bos] else ids
        if not prepended and ids[:2] == [bos, bos]:
            ids = ids[1:]  # the text itself began with BOS, and the tokenizer added another
    if not ids:
        raise ValueError(f"{called}, {text[:40]!r}, has no tokens; leave it out")
    cut = limit is not None and len(ids) > limit
    return Prompt(torch.tensor(ids[:limit]), text, prepended, cut)


def _from_ids(item: Any, number: int, limit: int | None, *, cut: bool) -> Prompt:
    if isinstance(item, bytes | bytearray | Mapping | Set):  # which would pass for a list of ids
        raise TypeError(f"prompt {number} is neither text nor token ids, but {type(item).__name__}")
    try:
        ids = item.detach().cpu() if isinstance(item, Tensor) else torch.tensor(list(item))
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"prompt {number} is neither text nor token ids, but {type(item).__name__}") from None
    if ids.ndim != 1 or len(ids) == 0:
        raise ValueError(f"prompt {number} has shape {tuple(ids.shape)}; pass one row of token ids")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"prompt {number} holds {ids.dtype}; token ids are integers")
    if limit is not None and len(ids) > limit and not cut:
        raise ValueError(
            f"prompt {number} has {len(ids)} tokens and the model takes {limit}; shorten it, or pass "
            f"max_length={limit} to cut it"
        )
    return Prompt(ids[:limit].long(), None, False, limit is not None and len(ids) > limit)


def _check_range(ids: Tensor, number: int, vocabulary: int | None) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (vocabulary is not None and vocabulary > 0 and high >= vocabulary):
        worst = low if low < 0 else high
        raise ValueError(
            f"prompt {number} holds the token id {worst}, outside the vocabulary 0..{(vocabulary or 0) - 1}; "
            "was it made with another model's tokenizer?"
        )


def _limit(model: HookedModel, max_length: int | None) -> int | None:
    context = context_length(model)
    if max_length is None:
        return context
    if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1:
        raise ValueError(f"max_length={as_shown(max_length)}: pass a positive number of tokens, or None")
    if context is not None and max_length > context:
        raise ValueError(
            f"max_length={max_length} is more than the {context} tokens the model takes; pass at most that"
        )
    return max_length
