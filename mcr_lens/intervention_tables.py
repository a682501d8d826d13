"""How is an intervention read from a table, as `Intervention.describe` writes it and a plan file holds it?"""

from collections.abc import Callable, Mapping
from typing import Any

from mcr_lens._checks import as_shown
from mcr_lens.ablations import clamp_norm, inject, random_direction, scale, zero_ablation
from mcr_lens.interventions import Intervention
from mcr_lens.plan_tables import nearest
from mcr_lens.positions import at_tokens

KINDS: dict[str, tuple[Callable[..., Intervention], dict[str, str]]] = {
    "zero_ablation": (zero_ablation, {}),
    "scale": (scale, {"factor": "factor"}),
    "clamp_norm": (clamp_norm, {"limit": "limit"}),
    "inject": (inject, {"norm": "norm"}),
    "random_direction": (random_direction, {"seed": "seed"}),
}
"""Kinds that need neither vectors nor prompts, with their settings."""

ELSEWHERE = ("mean_ablation", "resample_ablation", "remove_direction")
WHERE = ("kind", "site", "layers", "positions", "heads")


def read_intervention(table: Any) -> Intervention:
    """An intervention from its table: kind, site, layers, positions, heads and its own setting.

    `positions` as in `zero_ablation` (by default 0), or "all", a range such as "2:8", or a table
    `{tokens = [...]}`; None is everywhere, as `describe` writes it.

    >>> half = {"kind": "scale", "factor": 0.5, "site": "mlp_out", "layers": [1]}
    >>> read_intervention(half).describe()["factor"]
    0.5

    Raises:
        ValueError: an unknown kind or key, one that needs vectors or prompts, or as `zero_ablation`.

    Source: this library.
    """
    example = '{kind = "zero_ablation", site = "mlp_out", layers = [1]}'
    if not isinstance(table, Mapping):
        raise ValueError(f"got a {type(table).__name__}; an intervention is a table such as {example}")
    kind = table.get("kind")
    if kind in ELSEWHERE or "vector" in table:
        raise ValueError(
            f"{kind} needs vectors or prompts, which a table cannot hold; use mcr_lens.compare, or one of "
            f"{', '.join(KINDS)}"
        )
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind={as_shown(kind)}: {nearest(kind, KINDS)}pass one of {', '.join(KINDS)}")
    make, own = KINDS[kind]
    for key in table:
        if key not in (*WHERE, *own):
            allowed = (*WHERE, *own)
            raise ValueError(
                f"{kind} has no key {as_shown(key)}; {nearest(key, allowed)}its keys are {', '.join(allowed)}"
            )
    for key in ("site", "layers", *(k for k in own if k != "seed")):
        if key not in table:
            raise ValueError(f"{kind} needs {key}; write a table such as {example}")
    settings = {name: table[key] for key, name in own.items() if key in table}
    if not isinstance(settings.get("seed", 0), int) or isinstance(settings.get("seed"), bool):
        raise ValueError(f"seed={as_shown(settings['seed'])}: pass a whole number")
    if "positions" in table:
        settings["positions"] = _positions(table["positions"])
    elif kind == "inject":
        settings["positions"] = 0
    try:
        return make(table["site"], layers=table["layers"], heads=table.get("heads"), **settings)
    except TypeError as error:
        raise ValueError(f"{kind} cannot be read ({error}); write a table such as {example}") from None


def _positions(given: Any) -> Any:
    if given == "all":
        return None
    if isinstance(given, Mapping):
        tokens = given.get("tokens")
        if set(given) != {"tokens"} or not isinstance(tokens, list | tuple):
            raise ValueError(f"positions={as_shown(dict(given))}: the only table is {{tokens = [...]}}")
        return at_tokens(*tokens)
    if isinstance(given, str) and ":" in given:
        parts = given.split(":")
        if len(parts) > 3 or any(p and not p.isdecimal() for p in parts):
            raise ValueError(f"positions={as_shown(given)}: a range counts from 0, such as '2:8' or '1:'")
        return slice(*(int(p) if p else None for p in parts))
    return given
