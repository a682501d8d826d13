"""Which labelled texts are learned from, and which are tested?"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from mcr_lens._checks import is_iterable
from mcr_lens.prompts import Prompt


class ProbeWarning(UserWarning):
    """Texts are tested that were learned from too, or the solver of a probe stopped before it converged."""


@dataclass(frozen=True)
class Data:
    """All texts, their labels as numbers of `classes`, which are the same, and how many may be learned from.

    Those to test on, where there are any of their own, come last.
    """

    rows: list[Prompt]
    labels: np.ndarray
    classes: list[Any]
    same: np.ndarray
    n_given: int

    @property
    def has_test(self) -> bool:
        return self.n_given < len(self.rows)


@dataclass(frozen=True)
class Split:
    """Which texts are learned from, which choose C, which are tested, by number; the labels to learn."""

    fit: np.ndarray
    validation: np.ndarray
    tested: np.ndarray
    labels: np.ndarray

    @property
    def trained(self) -> np.ndarray:
        """All that is not tested."""
        return np.concatenate([self.fit, self.validation])


def read_labels(rows: list[Prompt], labels: Any, which: str) -> tuple[list[Prompt], list[Any]]:
    """Texts and their labels, as strings or integers; `which` stands before the names in errors.

    Raises:
        TypeError: labels of another kind, or of several.
        ValueError: not one label for each text.
    """
    if isinstance(labels, str | bytes | Mapping) or not is_iterable(labels):
        raise TypeError(f"{which}labels came as {type(labels).__name__}; pass a list, one for each text")
    try:
        plain = [label.item() if isinstance(label, np.generic | torch.Tensor) else label for label in labels]
    except RuntimeError:  # rows of a matrix, tensors without numbers
        raise TypeError(
            f"{which}labels hold no single values; pass strings only, or whole numbers only"
        ) from None
    found = [int(label) if isinstance(label, bool) else label for label in plain]
    if len(found) != len(rows):
        raise ValueError(
            f"{which}labels: got {len(found)} for {len(rows)} {which}texts; pass one for each, in their order"
        )
    kinds = {type(label) for label in found}
    if kinds not in ({str}, {int}):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"{which}labels hold {names}; pass strings only, or whole numbers only")
    return rows, found


def join(given: tuple[list[Prompt], list[Any]], test: tuple[list[Prompt], list[Any]] | None) -> Data:
    """Texts to learn from and to test on, in one list.

    Raises:
        ValueError: one class, too few texts of one, or a label to test on that cannot be learned.
    """
    rows, labels = given
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(f"labels: all texts are {classes[0]!r}; a probe needs two classes or more")
    if test is not None:
        unknown = [label for label in test[1] if label not in classes]
        if unknown:
            raise ValueError(
                f"test_labels: {unknown[0]!r} is no label of the texts to learn from, which are "
                f"{_listed(classes)}; spell them alike"
            )
        rows, labels = rows + test[0], labels + test[1]
    known: dict[tuple[int, ...], int] = {}
    same = np.array([known.setdefault(tuple(row.ids.tolist()), len(known)) for row in rows])
    places = {label: place for place, label in enumerate(classes)}
    data = Data(rows, np.array([places[label] for label in labels]), classes, same, len(given[0]))
    _check_counts(data)
    return data


def _check_counts(data: Data) -> None:
    least = 2 if data.has_test else 3
    first = np.unique(data.same[: data.n_given], return_index=True)[1]
    counts = np.bincount(data.labels[first], minlength=len(data.classes))
    if counts.min() < least and len(first) < data.n_given:
        twice = _labelled_twice(data)
        if twice:
            raise ValueError(
                f"labels: {twice} of {data.n_given} texts come again with another label, and a text counts "
                f"for its first one, so {data.classes[int(counts.argmin())]!r} is left with {counts.min()}; "
                "give each text one label"
            )
    if counts.min() < least:
        raise ValueError(
            f"labels: {data.classes[int(counts.argmin())]!r} has {counts.min()} different texts; every class "
            f"needs {least} or more, so that there is one to learn from, one to validate with"
            + ("" if data.has_test else " and one to test on")
        )
    both = int(np.isin(data.same[data.n_given :], data.same[: data.n_given]).sum())
    if both:
        warnings.warn(
            f"{both} of {len(data.rows) - data.n_given} test texts are also among those to learn from, so "
            "the accuracy may be too high; leave them out of either",
            ProbeWarning,
            stacklevel=4,
        )


def _labelled_twice(data: Data) -> int:
    """How many texts come again with another label than the first time."""
    same, labels = data.same[: data.n_given], data.labels[: data.n_given]
    first = np.unique(same, return_index=True)[1]  # numbers of texts count up from 0
    return int((labels != labels[first][same]).sum())


def _listed(classes: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, classes[:8]))
    return shown if len(classes) <= 8 else f"{shown}, … ({len(classes)} in all)"


def make_split(data: Data, seed: int, test_share: float, validation_share: float) -> Split:
    """The split of this seed; test texts of their own are tested by every seed."""
    generator = np.random.default_rng([seed, 0])
    numbers = np.arange(len(data.rows))
    tested = numbers >= data.n_given
    if not data.has_test:
        tested = drawn(data.labels, data.same, test_share, generator)
    others = numbers[~tested]
    validated = drawn(data.labels[others], data.same[others], validation_share, generator)
    return Split(others[~validated], others[validated], numbers[tested], data.labels)


def drawn(
    labels: Int[np.ndarray, " text"],
    same: Int[np.ndarray, " text"],
    share: float,
    generator: np.random.Generator,
) -> Bool[np.ndarray, " text"]:
    """Draw a share of the texts of each class; texts of the same number in `same` go together.

    At least one of each class is drawn, and at least one is not. A text that comes with several labels
    counts in the class of its first one.
    """
    groups, first = np.unique(same, return_index=True)
    chosen = []
    for label in np.unique(labels[first]):
        mine = generator.permutation(groups[labels[first] == label])
        chosen.append(mine[: int(np.clip(round(share * len(mine)), 1, len(mine) - 1))])
    return np.isin(same, np.concatenate(chosen))


def shuffled(split: Split, seed: int) -> Split:
    """The same split with labels to learn in random order, by seed; each part keeps as many of each class."""
    generator, labels = np.random.default_rng([seed, 1]), split.labels.copy()
    for part in (split.fit, split.validation):
        labels[part] = generator.permutation(labels[part])
    return Split(split.fit, split.validation, split.tested, labels)
