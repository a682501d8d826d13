"""Which interventions are there to ask for? One function for each kind of edit."""

from collections.abc import Sequence
from typing import Any

import torch

from mcr_lens import edits
from mcr_lens._checks import as_shown, check_seed, is_number
from mcr_lens.activations import check_site
from mcr_lens.edits import Edit, Vector
from mcr_lens.interventions import Intervention
from mcr_lens.positions import Given, integers, read_positions

Layers = int | Sequence[int]


def _make(
    edit: Edit, site: str, layers: Layers, positions: Given, heads: int | Sequence[int] | None
) -> Intervention:
    check_site(site)
    if heads is not None and site != "z":
        raise ValueError(
            f"heads={as_shown(heads)} at site {as_shown(site)}: single heads are edited at site 'z'"
        )
    return Intervention(
        site,
        integers("layers", layers),
        read_positions(positions),
        edit,
        None if heads is None else integers("heads", heads),
    )


def zero_ablation(
    site: str, *, layers: Layers, positions: Given = 0, heads: int | Sequence[int] | None = None
) -> Intervention:
    """Zero ablation, x ← 0, of what `site` writes in `layers` at `positions`.

    Args:
        site: "mlp_out", "attn_out", "z" (head outputs before W_O), or "resid" (the stream behind block l).
        layers: one or more, counted from 0. Nothing up to that depth and layer changes.
        positions: a number, several, a slice, "bos" (position 0), `at_tokens(...)`, or None for everywhere.
        heads: of site "z" only; None for all of them.

    >>> zero_ablation("mlp_out", layers=1, positions=0).describe()["layers"]
    [1]

    Raises:
        ValueError: an unknown site, no layers, or a negative layer, position or head.

    Source: arXiv 2510.06477, ablation at the emergence layer.
    """
    return _make(edits.Zero(), site, layers, positions, heads)


def zero_bos_mlp(layers: Layers, *, position: int = 0) -> Intervention:
    """The paper's own ablation, x₀ ← x₀ + Attn(x)₀: zero the MLP output at BOS, attention kept.

    Other tokens are not touched; `position` is the token that is taken for BOS. Source: arXiv 2510.06477,
    ablation at the emergence layer.

    >>> zero_bos_mlp(1) == zero_ablation("mlp_out", layers=[1], positions=0)
    True
    """
    return zero_ablation("mlp_out", layers=layers, positions=position)


def scale(
    site: str,
    factor: float | int,
    *,
    layers: Layers,
    positions: Given = 0,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """Scale what `site` writes, x ← λ x: 1 changes nothing, 0 is the zero ablation.

    Arguments as `zero_ablation`.

    >>> scale("mlp_out", 0.5, layers=1).describe()["factor"]
    0.5

    Raises:
        ValueError: as `zero_ablation`, or a factor that is not a finite number.

    Source: this library (dose-response).
    """
    return _make(edits.Scale(number("factor", factor)), site, layers, positions, heads)


def mean_ablation(
    site: str,
    *,
    layers: Layers,
    prompts: Any,
    positions: Given = 0,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """Mean ablation, x ← mean of x over the chosen positions of reference prompts.

    The reference runs through the unedited model when hooks are made. Arguments as `zero_ablation`.

    Raises:
        ValueError: as `zero_ablation`, or no reference prompts.

    Source: arXiv 2402.17762 (set to mean).
    """
    return _make(edits.Mean(_frozen(prompts)), site, layers, positions, heads)


def resample_ablation(
    site: str,
    *,
    layers: Layers,
    prompts: Any,
    positions: Given = 0,
    heads: int | Sequence[int] | None = None,
    seed: int = 0,
) -> Intervention:
    """Resample ablation, x ← x of another prompt, drawn from the chosen positions of reference prompts.

    Drawn anew for every prompt and position, the same donor in every layer; batches make no difference in
    `measure` and `compare`. Arguments as `zero_ablation`.

    Raises:
        ValueError: as `zero_ablation`, no reference prompts, or a seed that is not a number from 0.

    Source: this library.
    """
    check_seed(seed)
    return _make(edits.Resample(_frozen(prompts), int(seed)), site, layers, positions, heads)


def clamp_norm(
    site: str,
    limit: float | int,
    *,
    layers: Layers,
    positions: Given = 0,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """Clamp the norm, x ← x · min(1, limit / ‖x‖), in the units of the residual stream; the direction stays.

    Arguments as `zero_ablation`; at site "z" the norm is that of a single head.

    Raises:
        ValueError: as `zero_ablation`, or a limit that is not a non-negative number.

    Source: this library (direct manipulation of the norm).
    """
    return _make(edits.ClampNorm(number("limit", limit, least=0)), site, layers, positions, heads)


def remove_direction(
    site: str,
    direction: Any,
    *,
    layers: Layers,
    positions: Given = 0,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """Remove a direction, x ← x − (x·u) u with u = direction / ‖direction‖.

    Arguments as `zero_ablation`; `direction` is a tensor, array or list of d_model numbers (z: d_head).

    Raises:
        ValueError: as `zero_ablation`, or a direction that is zero or not a row of finite numbers.

    Source: this library.
    """
    unit = Vector.of("direction", direction)
    if not bool(unit.numbers.any()):
        raise ValueError("direction is zero, so there is nothing to remove; pass a nonzero one")
    return _make(edits.RemoveDirection(unit), site, layers, positions, heads)


def inject(
    site: str,
    *,
    layers: Layers,
    positions: Given,
    vector: Any = None,
    norm: float | int | None = None,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """Inject a vector, x ← x + v, or a norm, x ← norm · x / ‖x‖, at any token.

    Arguments as `zero_ablation`, and one of the two: `vector`, d_model numbers (z: d_head), or `norm`, in the
    units of the residual stream (a zero row stays zero). `record_activations` gives a vector to inject.

    Raises:
        ValueError: as `zero_ablation`, both or none of `vector` and `norm`, or not finite numbers.

    Source: this library (artificial induction).
    """
    if (vector is None) == (norm is None):
        raise ValueError("inject takes either vector= (added to what is there) or norm= (the length it gets)")
    edit: Edit
    if vector is not None:
        edit = edits.Add(Vector.of("vector", vector))
    else:
        edit = edits.SetNorm(number("norm", norm, least=0))
    return _make(edit, site, layers, positions, heads)


def random_direction(
    site: str,
    *,
    layers: Layers,
    positions: Given = 0,
    seed: int = 0,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """Turn what `site` writes into a random direction of the same norm, x ← ‖x‖ u with u random.

    One u for each layer and seed, the same for every prompt: is it the norm that matters, or the direction?
    Arguments as `zero_ablation`.

    Raises:
        ValueError: as `zero_ablation`, or a seed that is not a number from 0.

    Source: this library (matched control).
    """
    check_seed(seed)
    return _make(edits.RandomDirection(int(seed)), site, layers, positions, heads)


def number(what: str, given: Any, least: int | None = None) -> float:
    """One finite number, in words if it is not.

    Raises:
        ValueError: what came and what is allowed.
    """
    finite = is_number(given) and abs(given) < float("inf")
    if not finite or (least is not None and given < least):
        allowed = "a finite number" if least is None else f"a finite number from {least} on"
        raise ValueError(f"{what}={as_shown(given)}: pass {allowed}")
    return float(given)


def _frozen(prompts: Any) -> tuple[Any, ...]:
    """Reference prompts as a value: strings, and token ids as tuples."""
    items = [prompts] if isinstance(prompts, str) else prompts
    try:
        items = [i if isinstance(i, str) else torch.as_tensor(i).tolist() for i in items]
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"prompts holds a {type(prompts).__name__} that is neither text nor token ids; pass strings or "
            "rows of ids as reference prompts"
        ) from None
    if not items:
        raise ValueError("prompts is empty; pass at least one reference prompt")
    if all(isinstance(i, int) for i in items):  # a single row of ids
        items = [items]
    if not all(isinstance(i, str | list) for i in items):
        raise ValueError("prompts holds single numbers that are no token ids; pass strings or rows of ids")
    return tuple(i if isinstance(i, str) else tuple(i) for i in items)
