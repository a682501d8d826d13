"""How is a metric declared, found and listed?

A metric is a function from tensors to numbers, one row per prompt. Its signature is its declaration:
a parameter's name says what it reads, the jaxtyping return annotation says which axes come out.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from mcr_lens._checks import as_shown, is_iterable
from mcr_lens.hookpoints import READS, Axis

F = TypeVar("F", bound=Callable[..., Any])

STATIC = {
    "output_gram": "W_O W_Oᵀ of every head of the layer, [head d_head d_head]",
    "visible": "which keys each query can see, [query key]: causal mask, sliding window",
    "visibility": "the same as a value of its own, without the square: causal, window, chunk",
    "tokens": "token ids of the prompts, [batch pos]",
    "logits": "next-token logits, [batch pos vocab]; asking for them costs the unembedding",
    "clean_logits": "the logits of the same prompts without interventions, [batch pos vocab]",
}
OPTIONS = {
    "position": "the token that is taken for BOS, counted from the first real token",
    "wanted": "which of the quantities that are computed together are needed",
}


class UnknownMetricError(KeyError):
    """No metric has that name."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Metric:
    """A function with its declaration: inputs, axes of the result, units and source."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    options: tuple[str, ...]
    site: Axis
    extra_axes: tuple[str, ...]
    units: str
    source: str
    label: str
    group: str
    default: bool = True

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of the variable in a result."""
        site = () if self.site == "pass" else (self.site,)
        return ("prompt", *site, *self.extra_axes)


@dataclass(frozen=True)
class Derived:
    """An intermediate quantity, computed once where it is needed and shared between metrics."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    options: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Joint:
    """One computation that gives several intermediate quantities at once, where one pass serves them all."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    options: tuple[str, ...]
    gives: tuple[str, ...]


_METRICS: dict[str, Metric] = {}
_DERIVED: dict[str, Derived] = {}
_JOINT: dict[str, list[Joint]] = {}  # by what they give


def derived(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare an intermediate quantity: metrics may name it as a parameter."""
    inputs, options = _parameters(function.__name__, function)
    _DERIVED[function.__name__] = Derived(function.__name__, function, inputs, options)
    return function


def joint(gives: type) -> Callable[[F], F]:
    """Declare a function that computes several quantities in one pass, the fields of `gives`.

    Each field is an intermediate quantity or a metric with a definition of its own, a pure function declared
    with `derived` or `metric`; at a hook, the values come from here. The option `wanted` names the fields
    that are needed; the others may be None. Of several for the same quantities, the first whose tensors the
    model has is taken.
    """

    def register(function: F) -> F:
        name, fields = function.__name__, tuple(gives._fields)  # type: ignore[attr-defined]
        inputs, options = _parameters(name, function)
        for each in fields:
            _JOINT.setdefault(each, []).append(Joint(name, function, inputs, options, fields))
        return function

    return register


@overload
def metric(function: F, /) -> F: ...
@overload
def metric(
    *, units: str, source: str, default: bool = ..., overwrite: bool = ..., label: str | None = ...
) -> Callable[[F], F]: ...
def metric(
    function: Callable[..., Any] | None = None,
    /,
    *,
    units: str = "1",
    source: str = "user",
    default: bool = True,
    overwrite: bool = False,
    label: str | None = None,
) -> Any:
    """Register a function as a metric and return it unchanged.

    Args:
        units: units of the result, "1" for a pure number.
        source: where the definition comes from (arXiv id and section).
        default: whether `measure` computes it when no metrics are named.
        overwrite: replace a metric of the same name (a notebook cell run again).
        label: axis title; by default the first sentence of the docstring.

    Raises:
        ValueError: an unknown parameter, a missing return annotation, or a name already taken.

    Source: this library.
    """

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        if not hasattr(fn, "__name__"):
            raise TypeError(f"a metric is a function with a name, got {type(fn).__name__}")
        if fn.__name__ in _METRICS and not overwrite:
            raise ValueError(
                f"a metric named {fn.__name__!r} exists already; rename yours or pass overwrite=True"
            )
        _METRICS[fn.__name__] = as_metric(
            fn, fn.__name__, units=units, source=source, default=default, label=label
        )
        _JOINT.pop(fn.__name__, None)  # what gave the metric that is replaced
        return fn

    return register if function is None else register(function)


def as_metric(
    function: Callable[..., Any],
    name: str,
    *,
    units: str = "1",
    source: str = "user",
    default: bool = False,
    label: str | None = None,
) -> Metric:
    """Read a function's signature as a metric declaration, without registering it.

    Raises:
        TypeError: not a function.
        ValueError: an unknown parameter, or a missing return annotation.
    """
    if not callable(function) or isinstance(function, type) or not isinstance(name, str):
        raise TypeError(
            f"metric {as_shown(name)} is a {type(function).__name__}; pass a function and its name"
        )
    plain = inspect.unwrap(getattr(function, "func", function))
    inputs, options = _parameters(name, function)
    annotation = inspect.signature(plain).return_annotation
    dims = getattr(annotation, "dim_str", None)
    if dims is None or not dims.split() or dims.split()[0] != "batch":
        raise ValueError(
            f"metric {name!r} needs a jaxtyping return annotation that starts with 'batch', such "
            f'as Float[Tensor, "batch"] or Float[Tensor, "batch head"]; it has {annotation!r}'
        )
    doc = inspect.getdoc(plain) or name
    return Metric(
        name=name,
        function=function,
        inputs=inputs,
        options=options,
        site=_site(name, inputs),
        extra_axes=tuple(dims.split()[1:]),
        units=units,
        source=source,
        label=label or doc.split("\n")[0].rstrip("."),
        group=plain.__module__.rsplit(".", 1)[-1],
        default=default,
    )


def select(wanted: str | Iterable[Any] | Mapping[str, Any] | None) -> list[Metric]:
    """Turn what a user asked for into metrics: names, groups, functions, or a name → function map.

    Raises:
        UnknownMetricError: a name that is neither a metric nor a group (the nearest is suggested).
        TypeError: something that is neither a name nor a function.
    """
    if wanted is None:
        return [m for m in _METRICS.values() if m.default]
    if isinstance(wanted, Mapping):
        if not wanted:
            raise ValueError(_NONE)
        return [as_metric(fn, name) for name, fn in wanted.items()]
    chosen: dict[str, Metric] = {}
    single = isinstance(wanted, str) or callable(wanted) or not is_iterable(wanted)
    for item in [wanted] if single else wanted:
        for found in _find(item):
            chosen[found.name] = found
    if not chosen:
        raise ValueError(_NONE)
    return list(chosen.values())


_NONE = "no metrics were asked for; name at least one, or pass metrics=None"


def get_metric(name: str) -> Metric:
    """The declaration of one registered metric.

    Raises:
        UnknownMetricError: no such metric (the nearest is suggested).
        TypeError: not a name.
    """
    if not isinstance(name, str):
        raise TypeError(f"a metric is called by a name, got {type(name).__name__}: {as_shown(name)}")
    if name not in _METRICS:
        raise UnknownMetricError(_unknown(name, _METRICS))
    return _METRICS[name]


def list_metrics() -> list[Metric]:
    """All registered metrics, in the order of declaration."""
    return list(_METRICS.values())


def get_derived() -> Mapping[str, Derived]:
    """All shared intermediate quantities by name."""
    return _DERIVED


def get_joint(name: str) -> list[Joint]:
    """The computations that give this intermediate quantity, or this metric, together with others."""
    return _JOINT.get(name, [])


def _find(item: Any) -> list[Metric]:
    if isinstance(item, Metric):
        return [item]
    if callable(item):
        name = getattr(item, "__name__", None) or getattr(item, "func", item).__name__
        known = _METRICS.get(name)
        return [known if known and known.function is item else as_metric(item, name)]
    if not isinstance(item, str):
        raise TypeError(f"a metric is a name or a function, got {type(item).__name__}: {as_shown(item)}")
    groups = {m.group for m in _METRICS.values()} | {"default", "all"}
    if item == "all":
        return list_metrics()
    if item in groups:
        members = [m for m in _METRICS.values() if item in (m.group, "default")]
        return [m for m in members if m.default] or members
    if item not in _METRICS:
        raise UnknownMetricError(_unknown(item, [*_METRICS, *groups]))
    return [_METRICS[item]]


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown metric {as_shown(name)}: {hint}`mcr-lens metrics` lists them all"


def _parameters(name: str, function: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split what a metric reads, and the known options, from its own settings (which have a default)."""
    inputs, options = [], []
    bound = getattr(function, "keywords", {})
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in OPTIONS:
            if parameter.name not in bound:
                options.append(parameter.name)
        elif parameter.default is inspect.Parameter.empty or parameter.name in {*STATIC, *_DERIVED}:
            inputs.append(parameter.name)
    legal = [*READS, *_DERIVED, *STATIC]
    wrong = [p for p in inputs if p not in legal]
    if wrong or not inputs:
        raise ValueError(
            f"metric {name!r} reads {wrong or 'nothing'}; its parameters must be among "
            f"{', '.join(legal)} (settings of its own need a default value)"
        )
    return tuple(inputs), tuple(options)


def _site(name: str, inputs: tuple[str, ...]) -> Axis:
    """The axis on which all inputs of a metric live."""
    found: list[Axis | None] = [_site_of(name) for name in inputs]
    sites: list[Axis] = list(dict.fromkeys(site for site in found if site is not None))
    if len(sites) > 1:
        raise ValueError(
            f"metric {name!r} mixes tensors that live on different axes ({', '.join(sorted(sites))}): "
            "the residual stream is indexed by depth, what a block does by layer"
        )
    return sites[0] if sites else "pass"


def _site_of(name: str) -> Axis | None:
    if name in READS:
        return READS[name].axis
    if name in _DERIVED:
        return _site(name, _DERIVED[name].inputs)
    return "layer" if name in ("output_gram", "visible", "visibility") else None
