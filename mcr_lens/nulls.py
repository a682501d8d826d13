"""Against what is a number large? The same metrics at ordinary tokens, and in models with random weights."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from mcr_lens._checks import as_shown, as_tuple, check_seed
from mcr_lens.batches import Batch, forward_arguments, in_batches
from mcr_lens.hookpoints import HookedModel, check_eval, model_name
from mcr_lens.measurement import measure, warn_of_last
from mcr_lens.metrics._registry import Metric, get_derived
from mcr_lens.observer import Observer
from mcr_lens.plan import make_plan
from mcr_lens.prompts import items_of, read_prompts
from mcr_lens.provenance import LOADED, describe
from mcr_lens.results import vocabulary_of, with_vocabulary
from mcr_lens.schema import require_variables, validate
from mcr_lens.twins import Kind, random_twin


def other_positions(
    model: HookedModel,
    prompts: Any,
    metrics: Any = None,
    *,
    count: int = 8,
    seed: int = 0,
    position: int = 0,
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """The same metrics with ordinary tokens in the place of BOS: how large is a ratio or sink score there?

    For every prompt `count` other positions k ≤ T/2 are drawn, each of them once before any comes twice; a
    later key is seen by so few queries that its score means little. One forward pass per prompt, one prompt
    at a time, whatever `count` is.

    Returns:
        The metrics, with an axis `draw` behind `prompt`, and the coordinate `drawn_position` [prompt, draw].
        Compare with `null_share`, or by hand with a result of `measure` at `position`.

    Args:
        metrics: as in `measure`, but only those that look at a position; None for all of these.
        count: draws per prompt.
        seed: of the draws; the same seed, the same positions.
        position: what the numbers are to be held against, and is never drawn; 0 for BOS.
        max_length, prepend_bos, progress: as in `measure`.

    Raises:
        ValueError: a metric that does not look at a position, a count below 1, a prompt with a single token,
            or a model in training mode.
        As `measure` for the rest.

    Source: this library.
    """
    _check_count("count", count)
    check_seed(seed)
    check_eval(model)
    chosen = _at_a_position(model, metrics, position)
    rows = read_prompts(model, prompts, prepend_bos=prepend_bos, max_length=max_length)
    short = [i for i, row in enumerate(rows) if len(row.ids) <= max(1, position)]
    if short:
        raise ValueError(
            f"prompt {short[0]} has {len(rows[short[0]].ids)} tokens: there is no token at {position}, or no "
            "other one to hold it against; leave it out"
        )
    generator = np.random.default_rng(seed)
    drawn = np.stack([_draw(len(row.ids), position, count, generator) for row in rows])
    arguments = forward_arguments(model, needs_logits=False)

    def run(batch: Batch) -> xr.Dataset:
        number, prompt = batch.numbers[0], batch.prompts[0]
        watches = {int(k): Observer(model, chosen, position=int(k)) for k in drawn[number]}
        about = {"text": prompt.text, "prepended": prompt.prepended, "truncated": prompt.truncated}
        for watch in watches.values():
            watch._release = True
            watch.expect(batch.tokens, about=[{"prompt": number, **about}])
        hooks = [hook for watch in watches.values() for hook in watch.fwd_hooks]
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            model(batch.tokens, **arguments)
        parts = {k: watch.result() for k, watch in watches.items()}
        return _stacked([parts[int(k)] for k in drawn[number]], "draw").assign_coords(prompt=[number])

    found = [one for _, one in in_batches(model, rows, 1, run, progress=progress)]
    ds = _stacked(found, "prompt").sortby("prompt").transpose("prompt", "draw", ...)
    ds.attrs |= describe(model, position=position) | {"null": "other positions", "null_seed": seed}
    ds = ds.assign_coords(draw=np.arange(count), drawn_position=(("prompt", "draw"), drawn))
    ds.drawn_position.attrs = {"units": "token", "long_name": "Position taken for BOS"}
    warn_of_last(ds, (ds.drawn_position == ds.n_tokens - 1).any("draw"))
    return ds


def random_weights(
    model: HookedModel,
    prompts: Any,
    metrics: Any = None,
    *,
    seeds: int | Sequence[int] = (0,),
    kind: Kind = "initialised",
    batch_size: int | Literal["auto"] = "auto",
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    position: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """The same metrics, prompts and architecture with random weights: what is there without training?

    Returns:
        What `measure` returns for each `random_twin`, with an axis `seed` in front.

    Args:
        seeds: one twin for each; they are made one after the other.
        kind: as in `random_twin`.
        metrics, batch_size, max_length, prepend_bos, position, progress: as in `measure`.

    Raises:
        ValueError: no seeds, or one that comes twice.
        As `random_twin` and `measure` for the rest.

    Source: this library.
    """
    numbers = as_tuple(seeds)
    for number in numbers:
        check_seed(number)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={as_shown(seeds)}: pass one or more different seeds")
    items = items_of(prompts)  # read once for each seed
    found = [
        measure(
            random_twin(model, number, kind=kind), items, metrics, batch_size=batch_size,
            max_length=max_length, prepend_bos=prepend_bos, position=position, progress=progress,
        )
        for number in numbers
    ]  # fmt: skip
    name = LOADED.get(model, {}).get("model", model_name(model))
    ds = _stacked(found, "seed").assign_coords(seed=list(numbers))
    ds.attrs |= {"model": f"{name} ({kind} weights)", "null": f"{kind} weights"}
    return ds


def null_share(ds: xr.Dataset, null: xr.Dataset, name: str) -> xr.DataArray:
    """Share of the null's values that are at or above the measured one, on the axes of the variable.

    #{n : nullₙ ≥ value}/N, over the N draws or seeds; average over `prompt` yourself. 0 says that none of the
    N was as large, not that none could be: look at `null_size` in its attributes. NaN where the value is, or
    where the null has one.

    Args:
        ds: what `measure` returned.
        null: of the same prompts, from `other_positions` or `random_weights`.
        name: the variable, one that both hold.

    Raises:
        ResultSchemaError: not a result, or the variable was not measured.
        ValueError: a null of other prompts, or one without its own axis.

    Source: this library.
    """
    for given in (ds, null):
        require_variables(validate(given), name)
    own = [str(axis) for axis in null[name].dims if axis not in ds[name].dims]
    if len(own) != 1:
        raise ValueError(
            f"the null has {len(own)} axes of its own for {name!r}, and one is needed; pass what "
            "other_positions or random_weights returned"
        )
    if ds.prompt_hash.values.tolist() != null.prompt_hash.values.tolist():
        raise ValueError("the null was measured on other prompts; measure both on the same ones, in order")
    value, values = ds[name].reset_coords(drop=True), null[name].reset_coords(drop=True)
    share = (values >= value).mean(own[0]).where(value.notnull() & values.notnull().all(own[0]))
    about = {"units": "1", "source": "this library", "null": null.attrs.get("null", own[0])}
    label = f"Share of the null at or above: {ds[name].attrs.get('long_name', name)}"
    share = share.transpose(*ds[name].dims).rename(f"{name}_null_share")
    return share.assign_attrs(long_name=label, null_size=null.sizes[own[0]], **about)


def _at_a_position(model: HookedModel, metrics: Any, position: int) -> list[Metric]:
    """The metrics that change with `position`, as far as the model has them."""
    chosen = make_plan(model, metrics, position=position).metrics
    found = [m for m in chosen if _looks(m)]
    rest = [m.name for m in chosen if not _looks(m)]
    if metrics is not None and rest:
        raise ValueError(
            f"{', '.join(rest)} is the same whichever token is taken for BOS, so other positions are no null "
            "for it; leave it out of metrics"
        )
    return found


def _looks(item: Any) -> bool:
    known = get_derived()
    return "position" in item.options or any(_looks(known[i]) for i in item.inputs if i in known)


def _draw(length: int, position: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Positions up to the middle, without the one to compare with; all once before one comes again."""
    others = np.array([k for k in range(length // 2 + 1) if k != position and k < length])
    rounds = -(-count // len(others))
    return np.concatenate([generator.permutation(others) for _ in range(rounds)])[:count]


def _stacked(parts: list[xr.Dataset], axis: str) -> xr.Dataset:
    """Results one behind the other along an axis, with the spelling of all their tokens."""
    vocabulary = {i: text for ds in parts for i, text in vocabulary_of(ds).items()}
    bare = [ds.drop_dims("token_id") if "token_id" in ds.dims else ds for ds in parts]
    varying = [c for c in ("position_token",) if axis == "draw" and c in bare[0].coords]
    joined = xr.concat(
        bare, dim=axis, join="exact", combine_attrs="override", data_vars="all",
        coords="different" if axis == "prompt" else varying, compat="equals",
    )  # fmt: skip
    return with_vocabulary(joined, vocabulary)


def _check_count(what: str, number: Any) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{what}={as_shown(number)}: pass a number of draws, 1 or more")
