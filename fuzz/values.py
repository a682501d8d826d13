"""Which values are thrown? Those that a parameter of this name takes, and those that none should get."""

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import models as tiny
import numpy as np
import torch
import xarray as xr
from world import LABELS, PAIRS, RECORDS, ROWS, SCORES, TEXT, TEXTS, World, renamed

import mcr_lens as mcr

Make = Callable[[Random, World], Any]

TEXTS_ODD = (
    "",
    " ",
    "\t ",
    "\0",
    "a\0b",
    "\ud800",
    "\U0001f600\u200d\U0001f525",
    "e\u0301" * 5,
    "\u202eabc",
    "ﷺ",
    "a" * 70,
    "x" * 5_000,
    "<bos>",
    "<bos><bos>",
    "%s {0} \\",
    "ünïcode",
    "'\"<script>",
    "../nowhere",
    "nan",
    "-1",
)

ANYTHING = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    10**6,
    2**31,
    2**63,
    10**30,
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.5,
    1e-320,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    1j,
    b"",
    b"bytes",
    (),
    [],
    {},
    set(),
    [None],
    [[]],
    {"a": 1},
    {1: 2},
    [0, 0],
    [-1],
    [math.nan],
    ["a", 1],
    range(3),
    slice(None),
    object(),
    int,
    len,
    np.int64(1),
    np.int8(-1),
    np.float32(0.3),
    np.nan,
    np.array(3),
    np.zeros((2, 0)),
    np.array(["a"]),
    np.array([True, False]),
    *TEXTS_ODD,
)


def anything(rng: Random, world: World) -> Any:
    """A value that few parameters take."""
    if rng.random() < 0.2:
        return rng.choice(TENSORS)()
    if rng.random() < 0.15:
        return dataset(rng, world)
    return rng.choice(ANYTHING)


TENSORS: tuple[Callable[[], torch.Tensor], ...] = (
    lambda: torch.tensor(ROWS),
    lambda: torch.zeros(0),
    lambda: torch.rand(2, 3),
    lambda: torch.tensor(math.nan),
    lambda: torch.ones(32),
    lambda: torch.full((32,), math.inf),
    lambda: torch.ones(2, 3).bool(),
    lambda: torch.ones(2, device="meta"),
    lambda: torch.ones(1, 65).long(),
)

RESULTS = ("ds", "small", "six", "compared", "doses", "steps")
READOUTS = ("lens", "choices", "probe", "pairs")
KINDS = (*RESULTS, *RESULTS, *READOUTS, "moments", "seen", "null")


def dataset(rng: Random, world: World, kinds: tuple[str, ...] = KINDS) -> xr.Dataset:
    """A Dataset of some kind, as it is or damaged a little."""
    ds = getattr(world, rng.choice(kinds))
    return rng.choice(DAMAGE)(rng, ds) if rng.random() < 0.35 else ds


def _nan(rng: Random, ds: xr.Dataset) -> xr.Dataset:
    name = rng.choice([n for n in ds.data_vars if ds[n].dtype.kind == "f"])
    return ds.assign({name: ds[name] * rng.choice(FACTORS)})


def _fewer(rng: Random, ds: xr.Dataset) -> xr.Dataset:
    axis = rng.choice(list(ds.dims))
    return ds.isel({axis: rng.choice([[], [0], 0, slice(None, None, -1)])})


def _dropped(rng: Random, ds: xr.Dataset) -> xr.Dataset:
    return ds.drop_vars(rng.choice([*ds.data_vars, *ds.coords]))


def _other_name(rng: Random, ds: xr.Dataset) -> xr.Dataset:
    return renamed(ds, **{str(rng.choice(list(ds.dims))): "renamed"})


def _attribute(rng: Random, ds: xr.Dataset) -> xr.Dataset:
    ds = ds.copy()
    if rng.random() < 0.5:
        ds.attrs.pop(rng.choice([*ds.attrs, "none"]), None)
    else:
        ds.attrs[rng.choice([*ds.attrs, "none"])] = rng.choice(["x", -1, 1.5, [1, 2]])
    return ds


def damages(ds: xr.Dataset) -> Iterator[xr.Dataset]:
    """Each axis empty, of one, gone, turned round and renamed; each variable gone, and of other numbers."""
    for axis in ds.dims:
        yield from (ds.isel({axis: part}) for part in ([], [0], 0, slice(None, None, -1)))
        yield renamed(ds, **{str(axis): "renamed"})
    for name in ds.variables:
        yield ds.drop_vars(name)
        if ds[name].dtype.kind == "f":
            yield from (ds.assign({name: ds[name] * factor}) for factor in FACTORS)


FACTORS = (np.nan, np.inf, 0.0, -1.0, 1e300)

DAMAGE = (_nan, _fewer, _dropped, _other_name)
"""Losing or changing attributes is left to `_attribute`, which only the readers of files get: see `files`."""


def text(rng: Random, _: World) -> str:
    """Something to read."""
    return rng.choice([*TEXTS, TEXT, *TEXTS_ODD])


def prompts(rng: Random, world: World) -> Any:
    """One or several prompts, text or ids."""
    kind = rng.random()
    if kind < 0.4:
        return [text(rng, world) for _ in range(rng.randint(1, 4))]
    if kind < 0.6:
        return rng.sample(TEXTS, rng.randint(2, 6))
    if kind < 0.9:
        return [[rng.randint(0, 127) for _ in range(rng.randint(1, 20))] for _ in range(rng.randint(1, 4))]
    return rng.choice([text(rng, world), torch.tensor(ROWS), np.array(ROWS)])


def intervention(rng: Random, _: World) -> Any:
    """An edit of any kind."""
    site, layer, at = rng.choice(SITES), rng.randint(0, 4), rng.choice(PLACES)
    return rng.choice([
        lambda: mcr.zero_ablation(site, layers=layer, positions=at),
        lambda: mcr.scale(site, rng.choice([0, 0.5, -2, 1e30]), layers=layer, positions=at),
        lambda: mcr.clamp_norm(site, rng.choice([0, 1.5]), layers=layer, positions=at),
        lambda: mcr.random_direction(site, layers=layer, positions=at, seed=rng.randint(0, 3)),
        lambda: mcr.mean_ablation(site, layers=layer, positions=at, prompts=ROWS),
        lambda: mcr.inject(site, layers=layer, positions=at, norm=rng.choice([0, 3.0])),
        lambda: mcr.remove_direction(site, [1.0] * rng.choice([8, 32]), layers=layer, positions=at),
    ])()  # fmt: skip


def zeroed(rng: Random, _: World) -> Any:
    """An ablation that has controls."""
    return mcr.zero_ablation(
        rng.choice(SITES[:2]), layers=rng.randint(0, 3), positions=rng.choice((0, [0, 2]))
    )


SITES = ("mlp_out", "attn_out", "z", "resid")
PLACES = (0, 1, [0, 2], None, slice(1, None), "bos", 40, mcr.at_tokens(5), mcr.at_tokens("a"))


def conditions(rng: Random, world: World) -> Any:
    """Conditions by name."""
    return {"clean": [], rng.choice(["cut", "", "clean ", "\U0001f600"]): [intervention(rng, world)]}


def array(rng: Random, world: World) -> xr.DataArray:
    """A variable of some Dataset."""
    ds = dataset(rng, world)
    return ds[rng.choice(list(ds.variables))]


def of(*values: Any) -> Make:
    """One of these."""
    return lambda rng, _: rng.choice(values)


def models(rng: Random, world: World) -> Any:
    """A model that nothing is wrong with."""
    return getattr(world, rng.choice(World.MODELS))


def a_number(low: float, high: float) -> Make:
    """Between two others."""
    return lambda rng, _: rng.uniform(low, high)


def tokenizer(rng: Random, _: World) -> Any:
    """None, mostly; tokenizers without BOS, or that add it themselves."""
    return rng.choice(
        [None, None, None, tiny.tokenizer(), tiny.tokenizer(bos=False), tiny.tokenizer(prepends=True)]
    )


def labels(rng: Random, _: World) -> Any:
    """A label for each of six texts, mostly."""
    return rng.choice([LABELS, [0, 1] * 3, LABELS[:4], ["x"] * 6, ["x", "y", "z"] * 2])


def lens(rng: Random, world: World) -> Any:
    """A tuned lens, its file, or none."""
    return rng.choice([None, None, world.tuned, world.lens_file])


RECORDS_AND_ITEMS = (RECORDS, [mcr.ChoiceItem(("a", "a"), (" b", " c"), 0)], RECORDS[:1])
PAIRS_AND_SCORES = (PAIRS, SCORES)
