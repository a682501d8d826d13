"""What can be changed in a forward pass, as a value that is written into the result?

An `Intervention` says where (a site, layers, positions, heads) and what (an edit); it knows no model. In a
forward pass it becomes plain hooks, for `measure`, `compare`, `intervene` or TransformerLens by hand.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcr_lens._checks import as_shown
from mcr_lens.activations import check_layers, record_activations, site_names
from mcr_lens.batches import running_numbers
from mcr_lens.edits import Apply, Edit
from mcr_lens.hookpoints import HookedModel, check_model
from mcr_lens.liveness import check_edit, warn_indirect
from mcr_lens.positions import Picker, Positions, describe


@dataclass(frozen=True)
class Intervention:
    """An edit of what some blocks write, at some positions; everything else stays as it is.

    Made by `zero_ablation` and its siblings; equal to another that says the same. Positions are absolute,
    counted from the first position of the batch, so give it batches without left padding; while decoding
    with a key-value cache they are those of the whole sequence.

    >>> mcr.zero_bos_mlp(0) == mcr.zero_ablation("mlp_out", layers=0)
    True
    >>> mcr.Intervention.__name__, mcr.zero_bos_mlp(0).layers, mcr.zero_bos_mlp(0).positions
    ('Intervention', (0,), (0,))
    """

    site: str
    layers: tuple[int, ...]
    positions: Positions  # None: everywhere
    edit: Edit
    heads: tuple[int, ...] | None = None  # of site "z"; None: all

    def fwd_hooks(self, model: HookedModel) -> list[tuple[str, Any]]:
        """Pairs (hook name, callback) for `run_with_hooks`, `model.hooks` or `measure`.

        Every hook point is first tried out on two tokens (see `check_edit`); an edit that needs reference
        prompts runs them here.

        Warns:
            IndirectEditWarning: the model normalises behind the hook point.

        Raises:
            ValueError: a layer, head or token that the model does not have, or a vector of another width.
            MissingHookPointError: the model lacks the hook point.
            SwallowedEditError: the model drops edits there.
            PatternNotComputedError: without the attention pattern, nothing tells how long the cache is.
        """
        check_model(model)
        names = site_names(model, self.site)
        check_layers(model, self.layers)
        self._check_heads(model)
        if check_edit(model, self.site, self.layers) != "exact":
            warn_indirect(model, self.site)
        cfg: Any = model.cfg
        width = int(cfg.d_head if self.site == "z" else cfg.d_model)
        functions = self.edit.bind(self.layers, width, lambda: self._collect(model))
        hooks: list[tuple[str, Any]] = []
        for layer in self.layers:
            picker = Picker(model, self.positions, layer)
            hooks += [*picker.hooks, (names[layer], _Callback(picker, functions[layer], self.heads))]
        return hooks

    def describe(self) -> dict[str, Any]:
        """The intervention as JSON values."""
        about = {
            "kind": self.edit.kind,
            "site": self.site,
            "layers": list(self.layers),
            "positions": describe(self.positions),
        }
        if self.heads is not None:
            about["heads"] = list(self.heads)
        return about | self.edit.describe()

    def _check_heads(self, model: HookedModel) -> None:
        last = model.cfg.n_heads - 1
        wrong = [head for head in self.heads or () if head > last]
        if wrong:
            raise ValueError(f"head {wrong[0]} does not exist: the model has heads 0..{last}")

    def _collect(self, model: HookedModel) -> dict[int, Tensor]:
        rows = record_activations(
            model, list(self.edit.reference), self.site, layers=self.layers, positions=self.positions
        )
        if self.heads is None:
            return rows
        return {layer: found[:, list(self.heads)] for layer, found in rows.items()}


def hooks_of(model: HookedModel, interventions: Sequence[Intervention]) -> list[tuple[str, Any]]:
    """The hooks of several interventions, in order.

    Raises:
        As `Intervention.fwd_hooks`.

    Source: this library.
    """
    return [hook for each in interventions for hook in each.fwd_hooks(model)]


def listed(given: Any) -> tuple[Intervention, ...]:
    """One intervention, several in order, or none.

    Raises:
        TypeError: something that is no intervention.

    Source: this library.
    """
    made: tuple[Any, ...] = () if given is None else (given,)
    if isinstance(given, Sequence) and not isinstance(given, str):
        made = tuple(given)
    wrong = [one for one in made if not isinstance(one, Intervention)]
    if wrong:
        raise TypeError(
            f"interventions: got a {type(wrong[0]).__name__}; pass an intervention such as zero_bos_mlp(1), "
            "or several in a list"
        )
    return made


class _Callback:
    """The hook of one layer: it picks rows, edits them, and puts them back into a copy."""

    def __init__(self, picker: Picker, function: Apply, heads: tuple[int, ...] | None) -> None:
        self._picker, self._function = picker, function
        self._heads = None if heads is None else list(heads)

    def __call__(self, tensor: Tensor, hook: Any = None) -> Tensor:
        index = self._picker.pick(tensor)
        if index is None:
            return tensor
        rows = tensor[index]
        chosen = rows if self._heads is None else rows[..., self._heads, :]

        def where() -> list[tuple[int, int]]:
            numbers = running_numbers(tensor.shape[0])
            return [(numbers[row], at) for row, at in self._picker.positions_of(tensor, index)]

        changed = self._function(chosen, where)
        if self._heads is not None:
            rows = rows.clone()
            rows[..., self._heads, :] = changed
            changed = rows
        edited = tensor.clone()
        edited[index] = changed
        return edited


Condition = Intervention | Sequence[Intervention]
"""What is done in one condition; an empty sequence leaves the model as it is."""


@contextmanager
def intervene(model: HookedModel, *interventions: Intervention) -> Iterator[None]:
    """Run the model with interventions for the length of a `with` block, also in `model.generate`.

        with mcr_lens.intervene(model, mcr_lens.zero_bos_mlp(1)):
            text = model.generate("The river", max_new_tokens=20)

    Raises:
        As `Intervention.fwd_hooks`.

    Source: this library.
    """
    check_model(model)
    with model.hooks(fwd_hooks=hooks_of(model, listed(interventions))):
        yield


def read_conditions(conditions: Mapping[str, Condition]) -> dict[str, Sequence[Intervention]]:
    """Conditions as a user gives them, as a name → its interventions.

    Raises:
        ValueError: no conditions, a name that is not text, or something that is not an intervention.

    Source: this library.
    """
    example = 'pass a map such as {"clean": [], "cut": [zero_bos_mlp(1)]}'
    if not isinstance(conditions, Mapping) or not conditions:
        what = "an empty map" if isinstance(conditions, Mapping) else type(conditions).__name__
        raise ValueError(f"conditions: got {what}; {example}")
    found = {}
    for name, edits in conditions.items():
        made: tuple[Any, ...] = (edits,)
        if isinstance(edits, Sequence) and not isinstance(edits, str):
            made = tuple(edits)
        wrong = [e for e in made if not isinstance(e, Intervention)]
        if not isinstance(name, str) or not name:
            raise ValueError(f"conditions: the name {as_shown(name)} is not a text; {example}")
        if wrong:
            what = type(wrong[0]).__name__
            raise ValueError(f"condition {as_shown(name)} holds a {what}, not an intervention; {example}")
        found[name] = made
    return found
