"""What can be planted in a model, and what is true of it then?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mcr_lens.testing.families import VOCABULARY

BOS, DELIMITER = 0, 3
"""The token ids that stand for BOS and for a delimiter such as a full stop."""

LAYERS, WIDTH, HEADS = 6, 64, 4
LONGEST = 48
"""Prompts up to this length are what the plants are made for."""


@dataclass(frozen=True)
class Massive:
    """A massive activation: the MLP of a block writes one huge vector on every row of one token.

    Args:
        block: the block whose MLP writes it; the row is massive from depth `block` + 1 on.
        ratio: norm of that row over the median norm of the others, at depth `block` + 1; from 2 to 1,000.
        removed_by: the block whose MLP takes it out again (the last massive depth), or None: it stays.
        token: the token id that gets it, wherever it stands.
    """

    block: int
    ratio: float = 100.0
    removed_by: int | None = None
    token: int = BOS


@dataclass(frozen=True)
class Sinks:
    """Attention sinks: some heads of some layers attend to one token from wherever it can be seen.

    Args:
        layers: the layers; `heads` are sinks in each of them.
        heads: the heads.
        token: the token id they attend to.
        reads: what the keys are made from. "massive": the token's massive activation, so without it there is
            no sink. "identity": the token's own embedding, so nothing needs to be large.
        attention: what a query gives to one such token among 48.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    token: int = BOS
    reads: Literal["massive", "identity"] = "massive"
    attention: float = 0.9


@dataclass(frozen=True)
class CommonDirection:
    """Rank-one dominance without any massive row: the MLP of a block adds the same vector to all rows.

    Args:
        block: the block whose MLP adds it.
        share: of a row's squared norm that lies along it at depth `block` + 1: without a massive row, the
            anisotropy.
        removed_by: the block whose MLP takes it out again, or None: it stays.
    """

    block: int
    share: float = 0.95
    removed_by: int | None = None


Plant: TypeAlias = Massive | Sinks | CommonDirection

_LOOK = (2, 3, 4)
MECHANISMS: Mapping[str, tuple[Plant, ...]] = {
    "nothing": (),
    "massive": (Massive(1, removed_by=4),),
    "massive_sinks": (Massive(1, removed_by=4), Sinks(_LOOK, (0, 1, 2))),
    "identity_sinks": (Sinks(_LOOK, (0, 1, 2), reads="identity"),),
    "massive_stays": (Massive(1),),
    "two_massive": (
        Massive(1, removed_by=4),
        Massive(1, ratio=60.0, removed_by=4, token=DELIMITER),
        Sinks(_LOOK, (0, 1)),
        Sinks(_LOOK, (1, 2), token=DELIMITER),
    ),
    "common_direction": (CommonDirection(1, removed_by=4),),
}
"""Ready-made compositions for six layers and four heads.

- nothing: the background alone; the null every other one is held against.
- massive: a massive activation on BOS that comes and goes: a compression valley, no sinks.
- massive_sinks: the same, and heads that sink on BOS because of it.
- identity_sinks: sinks on BOS without any massive activation, and no valley.
- massive_stays: a massive activation that is never removed: no sinks, and entropy falls but does not return.
- two_massive: BOS and a delimiter are massive; one head sinks on BOS, one on the delimiter, one on both.
- common_direction: a valley that no massive row makes.
"""


@dataclass(frozen=True)
class Truth:
    """What is true of a planted model. Depths: 0 for the embeddings, l + 1 behind block l."""

    massive: Mapping[int, range]
    """Token id → the depths at which its rows are massive."""
    sinks: frozenset[tuple[int, int, int]]
    """(layer, head, token id) of every sink."""
    valley: bool
    """Does entropy fall and come back?"""
    valley_depths: range
    """The depths in between; empty without a valley."""
    valley_cause: str
    """"massive rows", "common direction", "both" or "none"."""


def truth_of(*plants: Plant, layers: int = LAYERS) -> Truth:
    """What plants make true of a model, as far as their ratios and shares are far from 1 and 0."""
    low = {p: depths_of(p, layers) for p in plants if not isinstance(p, Sinks)}
    depths = range(min(s.start for s in low.values()), max(s.stop for s in low.values())) if low else range(0)
    valley = bool(low) and depths.stop <= layers  # what stays to the last depth leaves no other side
    causes = {_CAUSES[type(p)] for p in low} if valley else {"none"}
    return Truth(
        massive={p.token: span for p, span in low.items() if isinstance(p, Massive)},
        sinks=frozenset(
            (layer, head, p.token)
            for p in plants
            if isinstance(p, Sinks)
            for layer in p.layers
            for head in p.heads
        ),
        valley=valley,
        valley_depths=depths if valley else range(0),
        valley_cause=causes.pop() if len(causes) == 1 else "both",
    )


_CAUSES: Mapping[type, str] = {Massive: "massive rows", CommonDirection: "common direction"}


def depths_of(p: Massive | CommonDirection, layers: int) -> range:
    """The depths at which the row is massive, or the direction common."""
    return range(p.block + 1, layers + 1 if p.removed_by is None else p.removed_by + 1)


def check(plants: tuple[Plant, ...], layers: int, width: int, heads: int) -> None:
    """Refuse plants that do not fit a model of this size, or each other.

    Raises:
        ValueError: which one, and what is allowed.
    """
    if heads < 2 or heads % 2 or width % heads:
        raise ValueError(f"heads={heads}, width={width}: pass an even number of heads that divides the width")
    writes = [p.token if isinstance(p, Massive) else p for p in plants if not isinstance(p, Sinks)]
    if len(set(writes)) < len(writes):
        raise ValueError("two plants write the same: pass one Massive per token, and no plant twice")
    tokens = {p.token for p in plants if not isinstance(p, CommonDirection)}
    if len(tokens) > 8 or not tokens <= set(range(VOCABULARY)):
        raise ValueError(f"tokens {sorted(tokens)}: pass up to 8 different ones, from 0 to {VOCABULARY - 1}")
    for layer in range(layers):
        many, most = sum(isinstance(p, Sinks) and layer in p.layers for p in plants), width // heads // 4
        if many > most:
            raise ValueError(f"{many} Sinks in layer {layer}: heads of this width hold {most}")
    for p in plants:
        if isinstance(p, Sinks):
            _check_sinks(p, [m for m in plants if isinstance(m, Massive)], layers, heads)
        else:
            _check_write(p, layers)
            _check_overlap(p, [c for c in plants if isinstance(c, CommonDirection)], layers)


def _check_write(p: Massive | CommonDirection, layers: int) -> None:
    last = layers - 1
    if not 0 <= p.block <= last or not (p.removed_by is None or p.block < p.removed_by <= last):
        raise ValueError(f"{p}: blocks run from 0 to {last}, and removed_by comes after block")
    if isinstance(p, Massive) and p.ratio < 2:
        raise ValueError(f"{p}: a ratio below 2 is not massive")
    if isinstance(p, CommonDirection) and not 0 < p.share < 1:
        raise ValueError(f"{p}: pass a share between 0 and 1")


def _check_overlap(p: Massive | CommonDirection, common: list[CommonDirection], layers: int) -> None:
    # What a norm leaves of anything else in a massive row is too little to take it out by.
    for c in common if isinstance(p, Massive) else []:
        if c.block <= p.block and c.removed_by in depths_of(p, layers):
            raise ValueError(
                f"{c} would be taken out where {p} is massive, and stay in that row; do it later"
            )


def _check_sinks(p: Sinks, massive: list[Massive], layers: int, heads: int) -> None:
    if not set(p.layers) <= set(range(layers)) or not set(p.heads) <= set(range(heads)):
        raise ValueError(f"{p}: layers run from 0 to {layers - 1}, heads from 0 to {heads - 1}")
    if not 0 < p.attention < 1:
        raise ValueError(f"{p}: pass an attention between 0 and 1")
    if p.reads == "massive" and not any(
        m.token == p.token and set(p.layers) <= set(depths_of(m, layers)) for m in massive
    ):
        raise ValueError(
            f"{p}: token {p.token} is not massive in all of these layers; plant Massive for it in an "
            "earlier block, or pass reads='identity'"
        )
