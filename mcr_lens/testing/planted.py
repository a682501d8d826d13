"""Tiny models into whose weights a phenomenon was written, so that the right answer is known.

A tool that reports attention sinks, a massive activation or a compression valley may see what is not there,
miss what is, or name the wrong cause, and no trained model says which. Here the answer is part of the
model: `planted_model("massive_sinks", "llama3")` gives a Hugging Face model and what is true of it, against
a random background that shows none of it. `plant` composes your own.

>>> planted = planted_model("massive_sinks", "llama3")
>>> planted.truth.massive, planted.truth.valley_cause  # BOS is massive at depths 2 to 4
({0: range(2, 5)}, 'massive rows')
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mcr_lens.testing._surgery import Rows, Surgeon, prepare, reserve
from mcr_lens.testing._weights import LAYOUTS
from mcr_lens.testing.families import VOCABULARY, tiny_model
from mcr_lens.testing.plants import BOS as BOS
from mcr_lens.testing.plants import DELIMITER as DELIMITER
from mcr_lens.testing.plants import HEADS, LAYERS, LONGEST, WIDTH, check
from mcr_lens.testing.plants import MECHANISMS as MECHANISMS
from mcr_lens.testing.plants import CommonDirection as CommonDirection
from mcr_lens.testing.plants import Massive as Massive
from mcr_lens.testing.plants import Plant as Plant
from mcr_lens.testing.plants import Sinks as Sinks
from mcr_lens.testing.plants import Truth as Truth
from mcr_lens.testing.plants import truth_of as truth_of


@dataclass(frozen=True)
class PlantedModel:
    """A Hugging Face model, what was planted in it and what is therefore true."""

    model: Any
    family: str
    plants: tuple[Plant, ...]
    truth: Truth
    bos: int = BOS
    delimiter: int = DELIMITER


def planted_model(mechanism: str, family: str, *, seed: int = 0) -> PlantedModel:
    """A tiny model with one of the ready-made `MECHANISMS`, and the truth about it.

    Raises:
        KeyError: an unknown mechanism or family.

    Source: this library.
    """
    if mechanism not in MECHANISMS:
        raise KeyError(f"unknown mechanism {mechanism!r}: pass one of {', '.join(MECHANISMS)}")
    plants = MECHANISMS[mechanism]
    return PlantedModel(plant(family, *plants, seed=seed), family, plants, truth_of(*plants, layers=LAYERS))


def planted_prompts(
    count: int = 4, *, seed: int = 0, shortest: int = 16, longest: int = LONGEST
) -> list[Tensor]:
    """Rows of token ids: BOS, then random ids, among them one delimiter in the second quarter.

    >>> [len(row) for row in planted_prompts(2, shortest=16, longest=16)]
    [16, 16]
    """
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    prompts = []
    for _ in range(count):
        length = number(shortest, longest + 1)
        row = torch.randint(DELIMITER + 1, VOCABULARY, (length,), generator=generator)
        row[0] = BOS
        row[number(length // 4, length // 2)] = DELIMITER
        prompts.append(row)
    return prompts


def plant(
    family: str, *plants: Plant, seed: int = 0, layers: int = LAYERS, width: int = WIDTH, heads: int = HEADS
) -> Any:
    """A tiny random Hugging Face model of a family, with these plants in its weights.

    The rest of the model stays random: diffuse attention and a stream that uses most directions. Prompts
    begin with BOS and have up to 48 tokens, as those of `planted_prompts`. Two coordinates of the residual
    stream are reserved for each thing planted.

    Args:
        family: "gpt2", "neox", "llama2", "llama3" or "qwen2".
        plants: in any order. What a ratio or a share is held against changes if another plant writes later.
        seed: another seed, other random weights and other coordinates.
        layers, width, heads: the size.

    Raises:
        KeyError: a family that cannot be planted.
        ValueError: a plant that does not fit the model, or sinks on a row that is not massive there.

    Source: this library, after arXiv 2510.06477.
    """
    if family not in LAYOUTS:
        raise KeyError(f"family {family!r} cannot be planted: pass one of {', '.join(LAYOUTS)}")
    check(plants, layers, width, heads)
    layout = LAYOUTS[family]
    model = tiny_model(family, seed=seed, **layout.settings(layers, width, heads))
    weights = layout.weights(model)
    tokens = sorted({p.token for p in plants if not isinstance(p, CommonDirection)})
    # Common directions first: they change the norms that a ratio is held against.
    writes = sorted((p for p in plants if not isinstance(p, Sinks)), key=lambda p: isinstance(p, Massive))
    generator = torch.Generator().manual_seed(seed)
    names = ["constant", *tokens, *writes]  # a token's number stands for its flag
    found = reserve(names, width, generator)
    prepare(weights, found, found["constant"], {token: found[token] for token in tokens})
    surgeon = Surgeon(model, weights, _probes(tokens))
    for block in range(layers):
        slot = 0
        for p in plants:
            if isinstance(p, Sinks) and block in p.layers:
                source = found[p.token if p.reads == "identity" else _massive(p.token, plants)]
                logit = math.log(p.attention / (1 - p.attention) * (LONGEST - 1))
                rows = surgeon.probes == p.token
                surgeon.sink(block, p.heads, slot, source, found["constant"], logit, rows)
                slot += 1
        for p in writes:
            _write(surgeon, p, block, found)
    return model


def _write(surgeon: Surgeon, p: Massive | CommonDirection, block: int, found: Mapping[Any, Tensor]) -> None:
    """What the MLP of this block has to do with a plant: make it, take it out, or nothing."""
    mine, everywhere = found[p], torch.ones_like(surgeon.probes, dtype=torch.bool)
    rows = surgeon.probes == p.token if isinstance(p, Massive) else everywhere
    source = found[p.token if isinstance(p, Massive) else "constant"]
    if block == p.block:
        surgeon.write(block, source, mine, lambda x: _size(p, x, rows), rows)
    if block == p.removed_by:
        surgeon.write(block, mine, mine, lambda x: -float((x @ mine)[rows].median()), rows)


def _size(p: Massive | CommonDirection, x: Rows, rows: Tensor) -> float:
    """How much of a direction makes the ratio, or the share, that was asked for."""
    norms = x.norm(dim=-1)
    if isinstance(p, CommonDirection):
        return float((p.share / (1 - p.share)) ** 0.5 * norms.median())
    others = torch.stack([n[~r].median() for n, r in zip(norms, rows, strict=True)]).mean()
    return float(((p.ratio * others).square() - norms[rows].square().mean()).clamp_min(0).sqrt())


def _massive(token: int, plants: tuple[Plant, ...]) -> Massive:
    return next(p for p in plants if isinstance(p, Massive) and p.token == token)


def _probes(tokens: list[int]) -> Tensor:
    """Prompts to measure on: four of 32 tokens, with every planted token in each."""
    rows = torch.stack(planted_prompts(4, seed=1, shortest=32, longest=32))
    for i, token in enumerate(t for t in tokens if t not in (BOS, DELIMITER)):
        rows[:, -2 - 2 * i] = token
    return rows
