"""What is one text at each depth? The rows of its tokens, pooled to one vector, in one pass over the data."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mcr_lens._checks import as_shown, is_iterable
from mcr_lens.batches import Batch
from mcr_lens.hookpoints import HookedModel, check_eval
from mcr_lens.measurement import PromptWarning
from mcr_lens.prompts import Prompt, own_bos, read_prompts
from mcr_lens.readouts.streams import by_depth
from mcr_lens.served import hooked

POOLINGS = {
    "mean": "the mean over all real tokens but a BOS in front",
    "last": "the last real token",
    "bos": "the token at position 0, a BOS or not",
}
"""What is made of the rows of one text, in words."""


def representations(
    model: Any,
    texts: Any,
    *,
    pooling: str | Sequence[str] = "mean",
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    tokenizer: Any = None,
    progress: bool = True,
) -> Float[np.ndarray, "prompt depth d_model"] | dict[str, Float[np.ndarray, "prompt depth d_model"]]:
    """One frozen vector per text and depth 0..L, in the units of the residual stream, float32.

    With x_i(l) the stream at depth l and position i of a text of T real tokens: "mean" is
    (1/|M|) Σ_{i∈M} x_i(l), "last" x_{T−1}(l), "bos" x_0(l). M holds every real token but a BOS at position
    0: that row can be a hundred times as long as the others, and a mean over it would be that row. M is {0}
    for a text that is nothing but a BOS. Other special tokens ([CLS], [SEP]) count. Without a BOS, "bos" is
    the first token. Padding never counts. Held in memory: 4 bytes for each text, depth, dimension, pooling.

    Args:
        model: as for `measure`.
        texts: strings, or token ids (taken as they are).
        pooling: "mean", "last" or "bos"; or several, read in the same pass.
        max_length: cut longer texts to so many tokens; by default to the model's context, with a warning.
        prepend_bos: as for `measure`.
        batch_size: how many texts run together, at most, or "auto".
        tokenizer: that of a plain Hugging Face model, which has none of its own.

    Returns:
        An array [prompt, depth, d_model], texts in the order given; for several poolings, one by name.

    Raises:
        TypeError: neither a model nor texts.
        ValueError: an unknown pooling, no texts, an empty one, or a model in training mode.
        NonFiniteActivationError, HookDidNotFireError: after a batch.

    Source: this library; leaving BOS out of the mean is its choice.
    """
    names = check_poolings(pooling)
    known = hooked(model, tokenizer)
    rows = read_rows(known, texts, prepend_bos=prepend_bos, max_length=max_length)
    found = pooled(known, rows, names, batch_size=batch_size, progress=progress)
    return found[pooling] if isinstance(pooling, str) else found


def check_poolings(pooling: str | Sequence[str]) -> tuple[str, ...]:
    """The names of poolings, once each.

    Raises:
        ValueError: an unknown one, or none.
    """
    listed = list(pooling) if is_iterable(pooling) and not isinstance(pooling, str) else [pooling]
    names = tuple(dict.fromkeys(name for name in listed if isinstance(name, str)))
    if not names or any(not isinstance(name, str) or name not in POOLINGS for name in listed):
        raise ValueError(
            f"pooling={as_shown(pooling)}: pass {', '.join(map(repr, POOLINGS))}, or several of them"
        )
    return names


def read_rows(
    model: HookedModel, texts: Any, *, prepend_bos: bool | Literal["auto"], max_length: int | None
) -> list[Prompt]:
    """Texts as rows of tokens, for a model that is ready to run; a warning where the context cut some.

    Raises:
        TypeError, ValueError: as `measure`.
    """
    check_eval(model)
    rows = read_prompts(model, texts, prepend_bos=prepend_bos, max_length=max_length)
    cut = sum(row.truncated for row in rows)
    if cut and max_length is None:
        longest = max(len(row.ids) for row in rows)
        warnings.warn(
            f"{cut} of {len(rows)} texts were longer than {longest} tokens and were cut there; pass "
            f"max_length={longest} if that is meant",
            PromptWarning,
            stacklevel=3,
        )
    return rows


def pooled(
    model: HookedModel,
    rows: Sequence[Prompt],
    names: Sequence[str],
    *,
    batch_size: int | Literal["auto"],
    progress: bool,
) -> dict[str, Float[np.ndarray, "prompt depth d_model"]]:
    """Every pooling by name, from one pass over the data.

    Raises:
        As `representations`.
    """
    skipped = [has_bos(model, row) and len(row.ids) > 1 for row in rows]
    found: dict[str, np.ndarray] = {}

    def reduce(stream: Float[Tensor, "batch pos d_model"], batch: Batch) -> dict[str, Tensor]:
        lengths = torch.tensor(batch.lengths, device=stream.device)
        starts = torch.tensor([int(skipped[n]) for n in batch.numbers], device=stream.device)
        return {name: _pool(stream.detach(), name, starts, lengths) for name in names}

    for batch, depths in by_depth(model, rows, reduce, batch_size=batch_size, progress=progress):
        for depth, by_name in enumerate(depths):
            for name, vectors in by_name.items():
                if name not in found:
                    shape = (len(rows), len(depths), vectors.shape[-1])
                    found[name] = np.empty(shape, dtype=np.float32)
                found[name][list(batch.numbers), depth] = vectors.cpu().numpy()
    return found


def has_bos(model: Any, row: Prompt) -> bool:
    """Whether a BOS stands at position 0, put there by the tokenizer, the text or the ids."""
    bos = own_bos(getattr(model, "tokenizer", None))
    return row.prepended or (bos is not None and int(row.ids[0]) == bos)


def _pool(
    stream: Float[Tensor, "batch pos d_model"], name: str, starts: Tensor, lengths: Tensor
) -> Float[Tensor, "batch d_model"]:
    if name == "bos":
        return stream[:, 0].float()
    if name == "last":
        return stream[torch.arange(len(stream), device=stream.device), lengths - 1].float()
    seen = _between(starts, lengths, stream.shape[1])
    # Filled, not multiplied: what stands at padding may be anything, infinity too.
    return stream.float().masked_fill(~seen.unsqueeze(-1), 0).sum(1) / seen.sum(1, keepdim=True)


def _between(starts: Tensor, lengths: Tensor, width: int) -> Bool[Tensor, "batch pos"]:
    places = torch.arange(width, device=starts.device)
    return (places >= starts.unsqueeze(1)) & (places < lengths.unsqueeze(1))
