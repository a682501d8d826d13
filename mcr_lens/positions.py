"""Which tokens does an intervention touch, whoever runs the model?

Positions are absolute: counted from the first position of the sequence, also while decoding with a key-value
cache, where a forward pass holds the newest tokens only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from mcr_lens._checks import as_shown, as_tuple, encodable
from mcr_lens.hookpoints import (
    READS,
    HookedModel,
    MissingHookPointError,
    check_pattern,
    hook_names,
    model_name,
    trying,
)

Given: TypeAlias = "int | Sequence[int] | slice | Literal['bos'] | AtTokens | Span | None"


@dataclass(frozen=True)
class Span:
    """Every position from `start` on, up to but without `stop` (None: to the end), in steps of `step`."""

    start: int
    stop: int | None
    step: int

    def __str__(self) -> str:
        stop = "" if self.stop is None else self.stop
        return f"{self.start}:{stop}" + (f":{self.step}" if self.step != 1 else "")


@dataclass(frozen=True)
class AtTokens:
    """Every position that holds one of these tokens; made by `at_tokens`."""

    tokens: tuple[int | str, ...]


Positions: TypeAlias = tuple[int, ...] | Span | AtTokens | None
"""What was asked for, in one form; None: everywhere."""


def at_tokens(*tokens: int | str) -> AtTokens:
    """Positions by what stands there: token ids, or tokens as the tokenizer spells them.

    >>> at_tokens(0, ".").tokens
    (0, '.')

    Raises:
        ValueError: no tokens, or something that is neither an id nor a text.

    Source: this library.
    """
    wrong = [t for t in tokens if isinstance(t, bool) or not isinstance(t, int | str) or t in ("", -1)]
    if not tokens or wrong:
        raise ValueError(
            f"at_tokens{as_shown(tokens)}: pass one or more token ids, or tokens as the tokenizer spells them"
        )
    return AtTokens(tuple(tokens))


def read_positions(given: Given) -> Positions:
    """What a user says about positions, in one form.

    Raises:
        ValueError: nothing, or something that is not counted from 0.
    """
    if given is None or isinstance(given, AtTokens | Span):
        return given
    if isinstance(given, str):
        if given != "bos":
            raise ValueError(
                f"positions={as_shown(given)}: the only name is 'bos'; for a token pass at_tokens()"
            )
        return (0,)
    if isinstance(given, slice):
        start, step = 0 if given.start is None else given.start, 1 if given.step is None else given.step
        stop = given.stop
        whole = all(isinstance(n, int) for n in (start, step, stop) if n is not None)
        if not whole or start < 0 or step < 1 or (stop is not None and stop <= start):
            raise ValueError(
                f"positions={as_shown(given)}: a slice counts from 0 and holds at least one position"
            )
        return Span(start, stop, step)
    return integers("positions", given)


def integers(what: str, given: int | Sequence[int]) -> tuple[int, ...]:
    """One or more numbers counted from 0, sorted, each once.

    Raises:
        ValueError: none, a negative one, or something else.
    """
    numbers = as_tuple(given)
    if not numbers or any(not isinstance(n, Integral) or isinstance(n, bool) or n < 0 for n in numbers):
        raise ValueError(f"{what}={as_shown(given)}: pass one or more numbers counted from 0")
    return tuple(sorted({int(n) for n in numbers}))


def describe(positions: Positions) -> Any:
    """Positions as JSON values."""
    if isinstance(positions, AtTokens):
        return {"tokens": list(positions.tokens)}
    return str(positions) if isinstance(positions, Span) else positions and list(positions)


class Picker:
    """Says, in each forward pass, which rows of a tensor are meant.

    Args:
        layer: the layer whose attention pattern tells how many positions the cache holds. Without
            attention patterns (state-space models), steps of one position are left alone.
    """

    def __init__(self, model: HookedModel, positions: Positions, layer: int) -> None:
        self._positions, self._layer = positions, layer
        self._offset, self._end = 0, 0
        self._mask: Tensor | None = None
        self.hooks: list[tuple[str, Any]] = []
        if isinstance(positions, AtTokens):
            self.hooks = [_token_hook(model, positions, self._see_tokens)]
        elif positions is not None and READS["pattern"].template.format(layer=layer) in model.hook_dict:
            names = hook_names(model, "pattern")
            check_pattern(model, names)
            self.hooks = [(names[layer], self._see_pattern)]
        elif positions is not None and READS["attention"].template.format(layer=layer) in model.hook_dict:
            self.hooks = [(hook_names(model, "attention")[layer], self._see_pattern)]

    def pick(self, tensor: Tensor) -> Any:
        """An index into [batch, pos, ...], or None for no row at all; an index of the last kind is a mask."""
        if self._positions is None:
            return (slice(None), slice(None))
        length = tensor.shape[1]
        if isinstance(self._positions, AtTokens):
            assert self._mask is not None
            return self._mask.to(tensor.device) if self._mask.any() else None
        if not self.hooks and length == 1:
            return None  # no attention, so nothing tells where a decoding step stands
        here = [p - self._offset for p in self._absolute(self._offset + length)]
        here = [p for p in here if 0 <= p < length]
        return (slice(None), here) if here else None

    def positions_of(self, tensor: Tensor, index: Any) -> list[tuple[int, int]]:
        """(row of the batch, absolute position) of every picked row, in the order of `tensor[index]`."""
        grid = torch.zeros(tensor.shape[:2], dtype=torch.bool)
        grid[index.cpu() if torch.is_tensor(index) else index] = True
        return [(row, position + self._offset) for row, position in grid.nonzero().tolist()]

    def _absolute(self, end: int) -> Sequence[int]:
        if isinstance(self._positions, Span):
            stop = end if self._positions.stop is None else min(end, self._positions.stop)
            return range(self._positions.start, stop, self._positions.step)
        assert isinstance(self._positions, tuple)
        return self._positions

    def _see_pattern(self, pattern: Any, hook: Any = None) -> None:
        """How many positions came before this pass.

        The cache of a sliding layer holds its window only, so what was seen since the last whole prompt
        counts too.
        """
        queries, keys = pattern.shape[-2:]
        self._offset = 0 if queries == keys else max(keys - queries, self._end)
        self._end = self._offset + queries

    def _see_tokens(self, mask: Tensor) -> None:
        self._mask = mask


def _token_hook(model: Any, positions: AtTokens, tell: Any) -> tuple[str, Any]:
    """A hook that reads, once per forward pass, which positions hold the tokens."""
    ids = [_token_id(model, token) for token in positions.tokens]
    points = model.hook_dict
    if "embed.hook_in" in points:  # a bridge: the ids themselves

        def read_ids(tokens: Tensor, hook: Any = None) -> None:
            tell(torch.isin(tokens, torch.tensor(ids, device=tokens.device)))

        return points["embed.hook_in"].name or "embed.hook_in", read_ids
    if "hook_embed" not in points:
        raise MissingHookPointError(
            f"{model_name(model)} has no hook point that shows its token ids; pass positions as numbers"
        )
    wanted = _embeddings(model, ids)

    def read_rows(embedded: Tensor, hook: Any = None) -> None:
        same = embedded[:, :, None] == wanted.to(embedded)
        tell(same.all(-1).any(-1))

    return "hook_embed", read_rows


def _embeddings(model: Any, ids: Sequence[int]) -> Tensor:
    """What the model embeds these tokens as: [token, d_model], for models that hide the ids themselves."""
    seen: list[Tensor] = []
    with trying(model, [("hook_embed", lambda rows, hook=None: seen.append(rows.detach()[0]))]) as tokens:
        model(torch.tensor([list(ids)], device=tokens.device), return_type=None)
    return seen[0]


def _token_id(model: Any, token: int | str) -> int:
    vocabulary = getattr(model.cfg, "d_vocab", None)
    if isinstance(token, int):
        if token < 0 or (vocabulary and vocabulary > 0 and token >= vocabulary):
            raise ValueError(f"token id {token} is outside the vocabulary of {model_name(model)}")
        return token
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"{model_name(model)} has no tokenizer to look up {as_shown(token)}; pass its id")
    found = tokenizer.get_vocab().get(token)
    if not encodable(token):
        raise ValueError(f"{as_shown(token)} is not valid text (a lone surrogate); pass the id of a token")
    if found is None:
        spelt = tokenizer.convert_ids_to_tokens(tokenizer(token, add_special_tokens=False)["input_ids"])
        hint = f"it is written {spelt[0]!r}" if len(spelt) == 1 else f"it falls apart into {spelt[:6]}"
        raise ValueError(f"{as_shown(token)} is not a token of {model_name(model)}: {hint}")
    return int(found)
