"""Which conditions belong beside an ablation, so that an effect can be called specific, or sufficient?"""

import random
from collections.abc import Sequence
from typing import Any, Literal

import xarray as xr

from mcr_lens._checks import as_shown, check_seed
from mcr_lens.ablations import inject, number, random_direction, zero_ablation, zero_bos_mlp
from mcr_lens.activations import record_activations
from mcr_lens.hookpoints import HookedModel, check_model
from mcr_lens.interventions import Intervention
from mcr_lens.positions import integers
from mcr_lens.prompts import read_prompts
from mcr_lens.schema import require_single

OTHER = {"mlp_out": "attn_out", "attn_out": "mlp_out"}
"""The other half of a block."""


def matched_controls(cut: Intervention, ds: xr.Dataset, *, seed: int = 0) -> dict[str, list[Intervention]]:
    """Ablations as large as `cut` that should do nothing if its effect is specific.

    For a zero ablation of "mlp_out" or "attn_out" at numbered positions, by name:

    - "other token": the same layers, as many random positions among those that every prompt has;
    - "other layer": the same positions, as many random layers;
    - "attention instead" (or "MLP instead"): the other half of the same blocks;
    - "random direction": the write keeps its norm and loses its direction. It shows whether the norm or the
      direction matters: what depends on the norm alone is as before.

    A control that the model or the prompts leave no room for is not there.

    Args:
        cut: what `zero_ablation` or `zero_bos_mlp` returns.
        ds: a result without interventions; it says how many layers there are and how long the prompts are.
        seed: of the draws.

    Raises:
        ResultSchemaError: not a result, several conditions, or one without prompts.
        ValueError: another kind of intervention.

    Source: this library, after arXiv 2604.14722 (matched controls).
    """
    check_seed(seed)
    require_single(ds)
    if not isinstance(cut, Intervention):
        raise ValueError(f"cut is a {type(cut).__name__}; pass one intervention, such as zero_bos_mlp(1)")
    positions = cut.positions
    if cut.edit.kind != "zero_ablation" or cut.site not in OTHER or not isinstance(positions, tuple):
        raise ValueError(
            f"controls are made for a zero ablation of mlp_out or attn_out at numbered positions, not for "
            f"{cut.describe()}"
        )
    draw = random.Random(int(seed))
    rest = [p for p in range(1, int(ds.n_tokens.min())) if p not in positions]
    layers = [n for n in range(int(ds.attrs["n_layers"])) if n not in cut.layers]
    controls: dict[str, list[Intervention]] = {}
    if len(rest) >= len(positions):
        chosen = sorted(draw.sample(rest, len(positions)))
        controls["other token"] = [zero_ablation(cut.site, layers=cut.layers, positions=chosen)]
    if len(layers) >= len(cut.layers):
        others = sorted(draw.sample(layers, len(cut.layers)))
        controls["other layer"] = [zero_ablation(cut.site, layers=others, positions=positions)]
    half = OTHER[cut.site]
    name = "attention instead" if half == "attn_out" else "MLP instead"
    controls[name] = [zero_ablation(half, layers=cut.layers, positions=positions)]
    controls["random direction"] = [
        random_direction(cut.site, layers=cut.layers, positions=positions, seed=seed)
    ]
    return controls


def induction(
    model: HookedModel,
    prompts: Any,
    *,
    layer: int,
    positions: int | Sequence[int],
    source: int = 0,
    factor: float = 1.0,
    prepend_bos: bool | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
) -> dict[str, list[Intervention]]:
    """Conditions that write a massive activation into other tokens: do a valley and sinks follow?

    The vector is what the MLP of `layer` writes at position `source` (BOS), averaged over the prompts and
    times `factor`. It is added to what that MLP writes at `positions`. By name, for `compare`:

    - "clean": the model as it is;
    - "cut": the MLP writes nothing at `source` (`zero_bos_mlp`);
    - "moved": cut there, and written into all of `positions` instead;
    - "added": written into all of `positions` beside the one that is there (several anchors).

    Read sinks at the new place with `compare(..., position=p)`, or wherever they are with `find_sinks`.

    Raises:
        ValueError: no such layer, `source` among `positions`, or a prompt that lacks one of them.

    Source: this library (sufficiency; arXiv 2510.06477 assumes one massive row).
    """
    for what, given in (("layer", layer), ("source", source)):
        if not isinstance(given, int) or isinstance(given, bool) or given < 0:
            raise ValueError(f"{what}={as_shown(given)}: pass one number counted from 0")
    check_model(model)
    factor = number("factor", factor)
    places = integers("positions", positions)
    if source in places:
        raise ValueError(f"positions={places}: {source} is the source itself; choose other tokens")
    lengths = [len(prompt.ids) for prompt in read_prompts(model, prompts, prepend_bos=prepend_bos)]
    if max(*places, source) >= min(lengths):
        raise ValueError(
            f"there is no position {max(*places, source)} in the shortest prompt, which has {min(lengths)} "
            "tokens; choose an earlier one or leave that prompt out"
        )
    rows = record_activations(
        model, prompts, "mlp_out", layers=layer, positions=source, prepend_bos=prepend_bos,
        batch_size=batch_size,
    )[layer]  # fmt: skip
    write = factor * rows.double().mean(0)
    cut = zero_bos_mlp(layer, position=source)
    put = inject("mlp_out", layers=layer, positions=places, vector=write)
    return {"clean": [], "cut": [cut], "moved": [cut, put], "added": [put]}
