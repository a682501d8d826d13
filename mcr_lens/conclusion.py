"""What do the verdicts on a model say, taken together, in a few sentences?"""

from collections.abc import Mapping, Sequence

import xarray as xr

from mcr_lens.claims import Claim
from mcr_lens.evidence import HALF, SINK_SHARE
from mcr_lens.findings import LONG, Phenomena
from mcr_lens.reading import number, subject

LITTLE = 0.1
"""Below this share of an effect nothing is said of it."""


def conclude(claims: Mapping[str, Claim], clean: xr.Dataset, seen: Phenomena) -> str:
    """The verdicts in a few sentences that say nothing the claims do not.

    Args:
        claims: every claim of `judge`, by its name.
        clean: the result without interventions.
        seen: what `phenomena` finds in it at the same cut-offs, for tokens elsewhere.

    Source: this library.
    """
    name = subject(clean)
    texts = {
        "massive_activation": f"massive activation on {name}",
        "valley": "compression valley",
        "sinks": f"sinks on {name}",
    }
    there, lacking, undecided = (
        [claim for claim in texts if claims[claim].verdict == verdict]
        for verdict in ("holds", "fails", "untestable")
    )
    said = []
    if there:
        shown = [("" if claim == "sinks" else "a ") + texts[claim] for claim in there]
        said.append(f"This model shows {joined(shown)}.")
    elif not lacking:
        said.append("Nothing is shown.")
    rare = claims["sinks"].effect
    if "sinks" in lacking and rare is not None and rare.value > 0:
        texts["sinks"] += f" in {SINK_SHARE:.0%} of the heads of a layer, at most in {rare.value:.0%}"
    if lacking:
        said.append(f"It shows no {joined([texts[claim] for claim in lacking], 'or')}.")
        said[-1] = said[-1] if there else said[-1].replace("It", "This model", 1)
    said += _causes(claims, name, seen.valley_cause)
    position = int(clean.attrs.get("position", 0))
    # Where prompts are too short to speak of sinks on BOS, they are too short for other tokens.
    said += _elsewhere(seen, position, sinks=claims["sinks"].verdict != "untestable")
    if undecided:
        said.append(f"These prompts do not decide on {joined([texts[claim] for claim in undecided])}.")
    return " ".join(said)


def joined(texts: Sequence[str], word: str = "and") -> str:
    """Words in a row.

    >>> joined(["a", "b", "c"], "or")
    'a, b or c'
    """
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {word} {texts[-1]}"


def _causes(claims: Mapping[str, Claim], name: str, cause: str | None) -> list[str]:
    """What makes what."""
    v = {claim: found.verdict for claim, found in claims.items()}
    by_rows = v["valley_from_massive_rows"]
    if v["massive_activation"] == "untestable":
        return []
    if v["massive_activation"] == "fails":
        said = []
        peak = claims["massive_activation"].effect
        if peak is not None and peak.value >= LONG:
            said.append(
                f"The row of {name} is long (norm ratio {number(peak.value)}), but not massive by this "
                "cut-off; what it makes was not tested."
            )
        elif v["sinks"] == "holds":
            said.append(f"The sinks do not come from a massive activation on {name}.")
        if by_rows == "holds":
            said.append("The valley comes from massive rows.")
        elif by_rows == "fails" and cause == "common direction":
            said.append("The valley does not come from massive rows: the rows point the same way.")
        elif by_rows == "fails":
            said.append("The valley does not come from massive rows.")
        return said
    parts = {"valley_from_bos": "the valley", "sinks_from_massive": "the sinks"}
    made = [text for claim, text in parts.items() if v[claim] == "holds"]
    said = []
    if len(made) == 2:
        said.append("The massive activation makes both: one mechanism, as the paper says.")
    elif made:
        said.append(f"The massive activation makes {made[0]}.")
    lost = claims["sinks_from_massive"].effect
    if "the sinks" in made and lost is not None and lost.high < 1 - LITTLE:
        said.append(f"But {100 * (1 - lost.value):.0f} % of the sinks survive without it.")
    together = v["valley_from_bos"] == "fails" and by_rows == "holds"
    if together:
        said.append(f"The valley goes when all massive rows are cut, not with that of {name} alone.")
    for claim, text in parts.items():
        if v[claim] == "fails" and not (together and text == "the valley"):
            said.append(_not_made(claims[claim], text))
    shown = {"valley_from_bos": "valley", "sinks_from_massive": "sinks"}
    unknown = [parts[claim] for claim in parts if v[claim] == "untestable" and v[shown[claim]] == "holds"]
    if unknown:
        said.append(f"Whether the massive activation makes {joined(unknown)} was not decided.")
    return said


def _not_made(claim: Claim, text: str) -> str:
    """Why the massive activation does not count as the cause."""
    effect = claim.effect
    if effect is not None and effect.low >= HALF:
        return f"That the massive activation makes {text} is not shown: a control does as much."
    if effect is not None and effect.value >= LITTLE:
        share = number(100 * effect.value, 2)
        return f"The massive activation makes {share} % of {text}, the rest survives without it."
    return f"The massive activation does not make {text}: that is another mechanism."


def _elsewhere(seen: Phenomena, position: int, *, sinks: bool) -> list[str]:
    """Other tokens that do what BOS does, the three strongest of each kind."""
    found = []
    for what, places in (("massive rows", seen.massive), ("sinks", seen.sinks if sinks else ())):
        others = sorted((p for p in places if p.position != position), key=lambda p: -p.strength)
        names = [repr(p.token) if p.position is None else f"position {p.position}" for p in others]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            found.append(f"{what} on {', '.join(names[:3])}{more}")
    return [f"Other tokens: {'; '.join(found)}."] if found else []
