"""What stands in the rows of a batch: which positions are real, which tokens, which prompt?"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREVIEW = 80
"""How many characters of a prompt a result keeps."""

Span = tuple[int, int]
"""(first real position, number of real positions) of one row."""


@dataclass(frozen=True)
class Group:
    """Rows of a batch whose real tokens stand in the same place, so that one call measures them all."""

    rows: tuple[int, ...]
    start: int
    length: int

    def cut(self, tensor: Tensor, *, pattern: bool = False) -> Tensor:
        """The real tokens of these rows: a view where the rows are neighbours, otherwise a copy."""
        first, last = self.rows[0], self.rows[-1]
        if self.rows == tuple(range(first, last + 1)):
            chosen = tensor[first : last + 1]
        else:
            chosen = tensor[torch.tensor(self.rows, device=tensor.device)]
        real = slice(self.start, self.start + self.length)
        return chosen[:, :, real, real] if pattern else chosen[:, real]


@dataclass
class Rows:
    """The rows of one batch, or of many joined: real positions, token ids, and what is known of them."""

    spans: list[Span]
    tokens: list[Tensor] | None
    padding: list[int]
    about: list[dict[str, Any]] = field(default_factory=list)
    batch: Tensor | None = None
    masked: bool = False

    @staticmethod
    def of(
        n_rows: int,
        width: int,
        tokens: Tensor | None = None,
        spans: Sequence[Span] | None = None,
        about: Sequence[dict[str, Any]] | None = None,
    ) -> "Rows":
        """Describe a batch of `n_rows` × `width` positions; without spans every position is real."""
        if tokens is not None and tuple(tokens.shape) != (n_rows, width):
            tokens, spans = None, None  # ids of another call, not of this pass
        known = list(spans) if spans is not None else [(0, width)] * n_rows
        return Rows(
            spans=known,
            tokens=None
            if tokens is None
            else [row[s : s + n] for row, (s, n) in zip(tokens, known, strict=True)],
            padding=[width - n for _, n in known],
            about=list(about) if about is not None else [{} for _ in known],
            batch=tokens,
            masked=spans is not None,
        )

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        """All rows of several batches, in order; token ids only if every batch has them."""
        ids = [p.tokens for p in parts]
        return Rows(
            spans=[s for p in parts for s in p.spans],
            tokens=None if any(t is None for t in ids) else [r for t in ids for r in t or []],
            padding=[n for p in parts for n in p.padding],
            about=[a for p in parts for a in p.about],
        )

    def reordered(self, order: Sequence[int]) -> "Rows":
        """The same rows in another order."""
        return Rows(
            spans=[self.spans[i] for i in order],
            tokens=None if self.tokens is None else [self.tokens[i] for i in order],
            padding=[self.padding[i] for i in order],
            about=[self.about[i] for i in order],
        )

    def name(self, row: int) -> str:
        """How to speak of one row in a message."""
        about = self.about[row]
        if about.get("text"):
            return f"prompt {about.get('prompt', row)}, {about['text'][:40]!r}"
        return f"row {about.get('prompt', row)}"

    def looks_padded(self, tokenizer: Any) -> bool:
        """Whether rows seem to end or begin in padding although no mask says so."""
        pad, bos = getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "bos_token_id", None)
        if pad is None or self.masked or self.batch is None or len(self.spans) < 2:
            return False
        edges = [self.batch[:, -1]] if pad == bos else [self.batch[:, -1], self.batch[:, 0]]
        return any(bool((e == pad).any()) and not bool((e == pad).all()) for e in edges)


def spans_of(attention_mask: Tensor, tokens: Tensor | None = None) -> list[Span]:
    """Where the real tokens of each row stand, from a mask with 1 for real and 0 for padding.

    Raises:
        TypeError: not a tensor.
        ValueError: not [batch, pos], not the shape of the tokens, other numbers than 0 and 1, a row without
            real tokens, or a gap.
    """
    for name, given in (("attention_mask", attention_mask), ("tokens", tokens)):
        if given is not None and not isinstance(given, Tensor):
            raise TypeError(f"{name} came as {type(given).__name__}; pass a tensor [batch, pos]")
    if attention_mask.ndim != 2 or (tokens is not None and attention_mask.shape != tokens.shape):
        shape = "" if tokens is None else f" for tokens of shape {tuple(tokens.shape)}"
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}{shape}; pass [batch, pos] with 1 "
            "for every real token"
        )
    real = attention_mask.detach().cpu() != 0
    if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ValueError(
            "attention_mask holds other numbers than 0 and 1; pass 1 for every real token and 0 for padding"
        )
    starts, lengths = real.int().argmax(1).tolist(), real.sum(1).tolist()
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if length == 0 or not bool(real[row, start : start + length].all()):
            what = "no real token" if length == 0 else "padding between its tokens"
            raise ValueError(f"row {row} of attention_mask has {what}; pad on one side only, left or right")
    return list(zip(starts, lengths, strict=True))


def group_rows(spans: Sequence[Span]) -> list[Group]:
    """Rows with the same span, together."""
    found: dict[Span, list[int]] = {}
    for row, span in enumerate(spans):
        found.setdefault(span, []).append(row)
    return [Group(tuple(rows), start, length) for (start, length), rows in found.items()]


def describe_rows(rows: Rows, tokenizer: Any, bos_id: int | None, position: int) -> dict[str, list[Any]]:
    """Coordinates of the axis `prompt`: length, identity, text and what was done to each prompt."""
    n = len(rows.spans)
    ids = [None] * n if rows.tokens is None else [row.tolist() for row in rows.tokens]
    return {
        "n_tokens": [length for _, length in rows.spans],
        "prompt_hash": ["" if row is None else _hash(row) for row in ids],
        "text": [_preview(a.get("text"), row, tokenizer) for a, row in zip(rows.about, ids, strict=True)],
        "position_token": ["" if row is None else _token(row, position, tokenizer) for row in ids],
        "has_bos": [row is not None and bos_id is not None and row[0] == bos_id for row in ids],
        "bos_prepended": [bool(a.get("prepended", False)) for a in rows.about],
        "truncated": [bool(a.get("truncated", False)) for a in rows.about],
        "padding": rows.padding,
    }


def ids_at(rows: Rows, positions: Any) -> Any:
    """Token ids at positions [prompt, ...] (numpy integers); −1 where there is no such token."""
    found = np.full(positions.shape, -1, dtype=np.int32)
    for row, ids in enumerate(rows.tokens or []):
        inside = (positions[row] >= 0) & (positions[row] < len(ids))
        found[row][inside] = ids.cpu().numpy()[positions[row][inside]]
    return found


def texts_of(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Token ids as the tokenizer spells them; as numbers without one."""
    if tokenizer is None:
        return [str(i) for i in ids]
    return [str(tokenizer.convert_ids_to_tokens(i)).replace("\x00", "\ufffd") for i in ids]


def _hash(ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def _preview(text: str | None, ids: Sequence[int] | None, tokenizer: Any) -> str:
    if text is None and ids is not None and tokenizer is not None:
        text = tokenizer.decode(ids[:PREVIEW])
    return (text or "")[:PREVIEW].replace("\x00", "\ufffd")


def _token(ids: Sequence[int], position: int, tokenizer: Any) -> str:
    return texts_of([ids[position]], tokenizer)[0] if position < len(ids) else ""
