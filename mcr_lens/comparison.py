"""The same prompts with and without interventions: one Dataset with an axis `condition`."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.ablations import number, scale
from mcr_lens.conditions import join_conditions
from mcr_lens.hookpoints import HookedModel, check_model, model_name
from mcr_lens.interventions import Condition, read_conditions
from mcr_lens.measurement import Options, measure_conditions
from mcr_lens.metrics._registry import select
from mcr_lens.observer import ObservationWarning
from mcr_lens.positions import Given
from mcr_lens.served import hooked
from mcr_lens.visibility import is_causal

NAMED = ("model", "prompts", "conditions", "metrics")
"""What `dose_response` hands to `compare` by itself."""


def compare(
    model: Any,
    prompts: Any,
    conditions: Mapping[str, Condition],
    metrics: Any = None,
    *,
    batch_size: int | Literal["auto"] = "auto",
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    position: int = 0,
    tokenizer: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Measure prompts under several conditions, paired by prompt.

        compare(model, prompts, {"clean": [], "cut": [zero_bos_mlp(1)]})

    All metrics that `measure` would give, and always the next-token loss, the perplexity and the KL
    divergence from the model without interventions. Prompts run in the same batches under every condition;
    see `condition` and `change` to read the result.

    Args:
        conditions: a name → an intervention, several, or none of them (`[]`: the model as it is).
        metrics, batch_size, max_length, prepend_bos, position, tokenizer, progress: as `measure`.

    Warns:
        ObservationWarning: an encoder has no next-token loss.

    Raises:
        ValueError: no conditions, a name that is not text, or something that is not an intervention.
        As `measure`.

    Source: arXiv 2510.06477, ablations; loss and KL beside them: this library.

    >>> conditions = {"clean": [], "cut": mcr.zero_bos_mlp(0)}
    >>> both = mcr.compare(model, prompts, conditions, ["massive_activation_ratio"], progress=False)
    >>> both.massive_activation_ratio.max(["prompt", "depth"]).values.round(-1).tolist()
    [50.0, 0.0]
    """
    made, model = read_conditions(conditions), hooked(model, tokenizer)
    check_model(model)
    loss = ["next_token_loss", "perplexity", "kl_divergence"]
    if not is_causal(model):
        loss = ["kl_divergence"]
        warnings.warn(
            f"{model_name(model)} is an encoder: next-token loss and perplexity are left out",
            ObservationWarning,
            stacklevel=2,
        )
    unknown = () if is_causal(model) else ("next_token_loss", "perplexity")
    chosen = {m.name: m for m in [*select(metrics), *select(loss)] if m.name not in unknown}
    options = Options(list(chosen.values()), batch_size, max_length, prepend_bos, position, progress)
    return join_conditions(measure_conditions(model, prompts, made, options))


def dose_response(
    model: HookedModel,
    prompts: Any,
    site: str = "mlp_out",
    *,
    layers: int | Sequence[int],
    positions: Given = 0,
    factors: Sequence[float | int] = (1.0, 0.75, 0.5, 0.25, 0.0),
    metrics: Any = None,
    **options: Any,
) -> xr.Dataset:
    """Scale a write by λ, dose by dose: does the effect grow with the dose?

    A result of `compare` whose conditions are called "λ = 0.5" and so on, with the coordinate `factor` (λ) on
    the axis `condition`; λ = 1 is the model as it is, λ = 0 the zero ablation.

    Args:
        site, layers, positions: as `zero_ablation`.
        factors: the doses λ, each once.
        metrics, options: as `compare`.

    Raises:
        ValueError: no factors, or one twice; as `scale` and `compare`.

    Source: this library.
    """
    wrong = not isinstance(factors, Sequence | np.ndarray) or isinstance(factors, str) or not np.ndim(factors)
    doses = [] if wrong else [number("factors", factor) for factor in factors]
    if not doses or len(set(doses)) < len(doses):
        raise ValueError(f"factors={as_shown(factors)}: pass one or more different numbers")
    conditions: dict[str, Condition] = {
        f"λ = {dose:g}": scale(site, dose, layers=layers, positions=positions) for dose in doses
    }
    if len(conditions) < len(doses):
        raise ValueError(f"factors={as_shown(factors)}: two of them have the same first six digits")
    known = [name for name in inspect.signature(compare).parameters if name not in NAMED]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"dose_response knows no {unknown[0]}=; beside its own, it takes {', '.join(known)}")
    ds = compare(model, prompts, conditions, metrics, **options)
    about = {"units": "1", "long_name": "Dose λ: the write is scaled by it"}
    return ds.assign_coords(factor=("condition", doses, about))
