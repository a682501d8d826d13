"""How is a text of any length read by a model of limited context, each token scored once?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mcr_lens._checks import as_shown
from mcr_lens.hookpoints import HookedModel
from mcr_lens.prompt_files import read_utf8
from mcr_lens.prompts import Prompt, items_of, own_bos, read_prompts

LONGEST = 1024
"""Tokens of a window when none is asked for: the model's context, but not more than so many."""


@dataclass(frozen=True)
class Window:
    """A row of tokens, and from which position on its tokens are scored; those before are context."""

    prompt: Prompt
    first_scored: int
    text: int

    @property
    def targets(self) -> Tensor:
        """The tokens that are scored; the prediction of each stands one position before it."""
        return self.prompt.ids[self.first_scored :]


@dataclass(frozen=True)
class Tokens:
    """A text as token ids, with how many of them (0 or 1) are a BOS that every window begins with."""

    ids: Tensor
    bos: int


def read_texts(
    model: HookedModel, texts: Any, *, prepend_bos: bool | Literal["auto"] = "auto"
) -> list[Tokens]:
    """Token ids of texts: strings, paths of text files (each file is one text, as it stands), or token ids.

    Raises:
        ValueError: nothing to read, an empty text, a file that is not UTF-8, ids outside the vocabulary.
        TypeError: something that is neither text, path nor token ids.
        FileNotFoundError: no such file.

    Source: this library.
    """
    given = [texts] if isinstance(texts, Path) else items_of(texts)
    read = [read_utf8(item).replace("\r\n", "\n") if isinstance(item, Path) else item for item in given]
    rows = read_prompts(model, read, prepend_bos=prepend_bos, whole=True)
    return [Tokens(row.ids, int(row.prepended or _begins_with_bos(model, row, prepend_bos))) for row in rows]


def cut(
    texts: Sequence[Tokens], context: int | None, window: int | None = None, stride: int | None = None
) -> list[Window]:
    """Windows of at most `window` tokens, each of which scores up to `stride` tokens that none did before.

    The first window scores all of its tokens but the first. Every later one ends `stride` tokens on and sees
    as much of what came before as fits; where the text begins with BOS, so does every window.

    Args:
        texts: what `read_texts` returns.
        context: the longest prompt that the model takes, in tokens, if there is a limit.
        window: tokens; by default the model's context, and at most 1,024.
        stride: tokens; by default half a window. Small strides give much context, and cost as much.

    Raises:
        ValueError: a window beyond the model's context or below 2, a stride that is not in 1..window − 1, or
            a text of a single token.

    Source: this library; sliding windows: Baevski and Auli, arXiv 1809.10853, section 5.5 (context window).
    """
    size, step = _sizes(context, window, stride)
    found: list[Window] = []
    for number, text in enumerate(texts):
        if len(text.ids) < 2:
            raise ValueError(f"text {number} has a single token and nothing to predict; leave it out")
        found.append(_window(text, 0, min(size, len(text.ids)), 1, number))
        done = size
        while done < len(text.ids):
            end = min(done + step, len(text.ids))
            start = max(text.bos, end - (size - text.bos))
            found.append(_window(text, start, end, done - start + text.bos, number))
            done = end
    return found


def split(texts: Sequence[Tokens], share: float) -> tuple[list[Tokens], list[Tokens]]:
    """The first `share` of all tokens, and the rest; a text that lies across the cut is cut in two.

    Raises:
        ValueError: a side would have nothing to predict.

    Source: this library.
    """
    wanted = round(share * sum(len(text.ids) for text in texts))
    first: list[Tokens] = []
    rest: list[Tokens] = []
    for text in texts:
        left = wanted - sum(len(t.ids) for t in first)
        if left >= len(text.ids) - 1:
            first.append(text)
        elif left < 2 or rest:
            rest.append(text)
        else:
            first.append(replace(text, ids=text.ids[:left]))
            head = text.ids[: text.bos]
            rest.append(replace(text, ids=torch.cat([head, text.ids[left:]])))
    if not first or not rest:
        raise ValueError(
            f"{sum(len(t.ids) for t in texts)} tokens cannot be parted at {share:.0%} so that both sides "
            "have something to predict; pass more text"
        )
    return first, rest


def _window(text: Tokens, start: int, end: int, first_scored: int, number: int) -> Window:
    head = text.ids[: text.bos] if start else text.ids[:0]
    ids = torch.cat([head, text.ids[start:end]])
    return Window(Prompt(ids, None, bool(text.bos), False), first_scored, number)


def _sizes(context: int | None, window: int | None, stride: int | None) -> tuple[int, int]:
    if window is None:
        window = min(context or LONGEST, LONGEST)
    if not _whole(window) or window < 2 or (context is not None and window > context):
        most = f"2..{context}, the model's context" if context is not None else "2 or more"
        raise ValueError(f"window={as_shown(window)}: pass a number of tokens in {most}")
    if stride is None:
        stride = max(1, window // 2)
    if not _whole(stride) or not 1 <= stride < window:
        raise ValueError(
            f"stride={as_shown(stride)}: pass a number of tokens in 1..{window - 1}, below the window"
        )
    return window, stride


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _begins_with_bos(model: Any, row: Prompt, prepend_bos: Any) -> bool:
    """A text or row of ids that begins with the tokenizer's own BOS already."""
    bos = own_bos(getattr(model, "tokenizer", None))
    return prepend_bos is not False and bos is not None and int(row.ids[0]) == bos
