"""What do the explorer's figures need to know about one prompt, and nothing measured twice?"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.ablations import random_direction, scale, zero_ablation
from mcr_lens.closeup import CLEAN, close_up
from mcr_lens.hookpoints import HookedModel, check_model, model_name
from mcr_lens.interventions import Intervention
from mcr_lens.measurement import PromptWarning, measure
from mcr_lens.metrics._registry import Metric, list_metrics
from mcr_lens.prompts import Prompt, read_prompts
from mcr_lens.rows import texts_of

T = TypeVar("T")

NONE = "none"
"""The name of the choice that leaves the model as it is."""

SHOWN = 128
"""How many tokens a pattern and the choice of a position hold: more could not be told apart."""

KEPT = 24
"""How many measurements are kept, so that going back to one costs nothing."""

USUAL = ("massive_activation_ratio", "matrix_entropy", "sink_score")
"""Measured whatever metric was chosen: what the profile and the map of heads draw in any case."""

Moving = Callable[[int, int], Intervention]
"""An intervention for a layer and a position."""

CHOICES: dict[str, Moving] = {
    "zero MLP": lambda layer, position: zero_ablation("mlp_out", layers=layer, positions=position),
    "zero attention": lambda layer, position: zero_ablation("attn_out", layers=layer, positions=position),
    "random direction of MLP": lambda layer, position: random_direction(
        "mlp_out", layers=layer, positions=position
    ),
    "scale MLP by 0.5": lambda layer, position: scale("mlp_out", 0.5, layers=layer, positions=position),
}
"""What can be done to what the chosen layer writes at the chosen position."""


@dataclass(frozen=True)
class Choice:
    """What the controls say."""

    prompt: str
    layer: int
    head: int
    metric: str
    position: int
    intervention: str


class Exploration:
    """Results and patterns for one choice after the other.

    `notes` holds what was warned of while the last choice was measured, as sentences.
    """

    def __init__(self, model: HookedModel, interventions: Mapping[str, Any] | None = None) -> None:
        check_model(model)
        self.model = model
        self.choices: dict[str, Any] = {NONE: (), **CHOICES, **_read(interventions)}
        self.metrics: dict[str, Metric] = {m.name: m for m in list_metrics() if _drawable(m)}
        self.notes: list[str] = []
        self._kept: dict[Any, tuple[Any, list[str]]] = {}

    def tokens(self, text: str) -> list[str]:
        """The prompt's tokens as the tokenizer spells them, `SHOWN` of them at most.

        Raises:
            ValueError: a prompt without tokens, or not what the model reads.
        """
        ids = self._row(text).ids[:SHOWN].tolist()
        return texts_of(ids, getattr(self.model, "tokenizer", None))

    def place(self, choice: Choice) -> Any:
        """Where the intervention acts: (layer, position); None for one that says so itself, or for none."""
        return (choice.layer, choice.position) if callable(self.choices[choice.intervention]) else None

    def describe(self, choice: Choice) -> str:
        """What is done to the model, in words."""
        if choice.intervention == NONE:
            return "the model as it is"
        if self.place(choice) is None:
            layers = sorted({layer for edit in self._edits(choice) for layer in edit.layers})
            return f"{choice.intervention}, in layer {', '.join(map(str, layers))}"
        return f"{choice.intervention}, in layer {choice.layer} at position {choice.position}"

    def results(self, choice: Choice) -> dict[str, xr.Dataset]:
        """The model as it is, "clean", and under the intervention, by its name.

        Raises:
            As `measure`.
        """
        self.notes = []
        names = list(dict.fromkeys([*USUAL, choice.metric]))
        about = (choice.prompt, choice.position, choice.metric)
        found = {CLEAN: self._once(("clean", *about), lambda: self._measure(choice, names, ()))}
        if choice.intervention != NONE:
            key = ("edited", *about, choice.intervention, self.place(choice))
            found[choice.intervention] = self._once(
                key, lambda: self._measure(choice, names, self._edits(choice))
            )
        return found

    def pattern(self, choice: Choice) -> xr.Dataset:
        """The chosen head's pattern, "clean" and under the intervention.

        Raises:
            As `close_up`.
        """
        key = ("pattern", choice.prompt, choice.layer, choice.intervention, self.place(choice))
        heads = [(choice.layer, head) for head in range(self.model.cfg.n_heads)]
        edited = {} if choice.intervention == NONE else {choice.intervention: self._edits(choice)}
        ds = self._once(
            key,
            lambda: close_up(
                self.model, self._prompt(choice.prompt), heads, conditions=edited or None, max_tokens=SHOWN
            ),
        )
        if ds.attrs["shown_tokens"] < ds.attrs["n_tokens"]:
            shown, n = ds.attrs["shown_tokens"], ds.attrs["n_tokens"]
            self.notes.append(f"the pattern shows the first {shown} of {n} tokens")
        return ds.isel(shown=[choice.head])

    def forget(self) -> None:
        """Measure anew from here on."""
        self._kept = {}

    def _measure(self, choice: Choice, names: list[str], edits: Sequence[Intervention]) -> xr.Dataset:
        return measure(
            self.model, self._prompt(choice.prompt), names, position=choice.position, interventions=edits,
            progress=False,
        )  # fmt: skip

    def _edits(self, choice: Choice) -> tuple[Intervention, ...]:
        given = self.choices[choice.intervention]
        if callable(given):
            given = given(choice.layer, choice.position)
        made = (given,) if isinstance(given, Intervention) else given
        if not isinstance(made, Sequence) or not all(isinstance(e, Intervention) for e in made):
            raise ValueError(
                f"{choice.intervention!r} gave a {type(given).__name__}, not an intervention; it is called "
                "with a layer and a position and returns what mcr_lens.zero_ablation and its siblings make"
            )
        return tuple(made)

    def _prompt(self, text: str) -> Any:
        """The text, or the token ids in it where the model has no tokenizer."""
        if getattr(self.model, "tokenizer", None) is not None:
            return text
        words = text.replace(",", " ").split()
        if not words or not all(word.isdecimal() for word in words):
            raise ValueError(
                f"{model_name(self.model)} has no tokenizer: type token ids, numbers with spaces between"
            )
        return [int(word) for word in words]

    def _row(self, text: str) -> Prompt:
        if not text.strip():
            raise ValueError("the prompt is empty; type some text")
        return read_prompts(self.model, self._prompt(text))[0]

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` gives, made the first time and kept; its warnings become notes every time."""
        if key not in self._kept:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                value = make()
            self._kept[key] = value, [note for warning in said for note in _note(warning)]
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        value, notes = self._kept[key]
        self.notes += [note for note in notes if note not in self.notes]
        return value


def _note(said: warnings.WarningMessage) -> list[str]:
    """A warning of this library as a sentence; those of other packages go where they were going."""
    if not said.category.__module__.startswith("mcr_lens"):
        warnings.warn_explicit(said.message, said.category, said.filename, said.lineno)
        return []
    text = str(said.message)
    return [] if said.category is PromptWarning and "max_tokens=" in text else [text]


def _drawable(metric: Metric) -> bool:
    """One number per depth, layer or head."""
    return metric.site != "pass" and metric.extra_axes in ((), ("head",)) and metric.units != "token"


def _read(given: Mapping[str, Any] | None) -> dict[str, Any]:
    example = 'pass a map such as {"cut": zero_bos_mlp(1)}'
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"interventions: got {type(given).__name__}; {example}")
    for name, edits in given.items():
        if not isinstance(name, str) or not name or name in (NONE, CLEAN):
            raise ValueError(f"interventions: {as_shown(name)} cannot be a name; {example}")
        made = edits if isinstance(edits, Sequence) and not isinstance(edits, str) and edits else (edits,)
        wrong = [e for e in made if not isinstance(e, Intervention)]
        if wrong and not callable(edits):
            raise ValueError(
                f"interventions: {as_shown(name)} is a {type(wrong[0]).__name__}, neither an intervention "
                f"nor a function of layer and position that returns one; {example}"
            )
    return dict(given)
