"""How does a number stand in a Dataset, with its units, its label and the ends of its interval?"""

from collections.abc import Mapping, Sequence
from typing import Any

Variable = tuple[Sequence[str], Any, Mapping[str, Any]]
"""Axes, values, attributes."""


def about(
    units: str, label: str, source: str, better: str | None = None, *, group: str = "readout"
) -> dict[str, str]:
    """The attributes of a number: units, what it is called, where it comes from, and which way is better.

    Source: this library.
    """
    found = {"units": units, "long_name": label, "source": source, "group": group}
    return found | ({"better": better} if better else {})


def with_interval(
    name: str,
    value: Any,
    low: Any,
    high: Any,
    attrs: Mapping[str, Any],
    *,
    over: str,
    axes: Sequence[str] = ("depth",),
    level: float = 0.95,
    sampled: Mapping[str, str] | None = None,
) -> dict[str, Variable]:
    """A number beside the ends of its interval, `<name>_low` and `<name>_high`, and what that is over.

    `sampled` says what the number is a mean of, for resampling: `samples`, the name of a variable with one
    entry for each unit, and maybe `weights`, or another `statistic`.

    Source: this library.
    """
    found: dict[str, Variable] = {name: (axes, value, {**attrs, "interval_over": over, **(sampled or {})})}
    for end, words, values in (("low", "lower", low), ("high", "upper", high)):
        label = f"{attrs['long_name']}: {words} end of the {level:.4g} interval"
        beside = about(str(attrs["units"]), label, str(attrs["source"]), group="interval")
        found[f"{name}_{end}"] = (axes, values, beside)
    return found
