"""What makes the valley and the sinks in this model? The judges that read experiments."""

import math
from dataclasses import replace

import numpy as np
import xarray as xr

from mcr_lens.claims import Claim, Statement, mean_of, say, specific
from mcr_lens.conditions import condition
from mcr_lens.evidence import HALF, SINK_SHARE, Evidence, listed, over_prompts, ratio_of, rows
from mcr_lens.reading import number
from mcr_lens.resampling import Interval, bootstrap
from mcr_lens.summaries import normalized_entropy

COST = 1.05
"""A cut costs something from 5 % more perplexity on."""


def valley_from_bos(e: Evidence) -> Claim:
    """Which share of the drop does the cut regain, and do the controls regain any?"""
    claim = Statement("valley_from_bos", f"the row of {e.name} makes the valley")
    if e.verdict("valley") != "holds" or e.low is None:
        return claim.untestable("no valley is shown that could be explained")
    bare = rows(normalized_entropy(e.findings.clean, variable="matrix_entropy_without_bos"))
    effect, measure = e.regained(bare), "share of the drop regained"
    said = f"without its row in the matrix {say(effect)} of the drop is regained{e.guaranteed()}"
    cut = e.condition("cut")
    if cut is None and effect.high < HALF:
        return claim.decided(effect, HALF, said, measure)
    if cut is None:
        return claim.untestable(f"{said}; that is no experiment: {e.why('experiments')}")
    after = rows(normalized_entropy(cut))
    effect, means = e.regained(after), over_prompts(after)
    lowest = int(np.nanargmin(means))
    said = (
        f"cutting the MLP's write (block {listed(e.findings.cut_layers)}) regains {say(effect)} of the drop "
        f"at depth {e.low.depth}, and leaves the lowest entropy at depth {lowest} "
        f"({number(means[lowest], -2)}); {said}"
    )
    return specific(claim.decided(effect, HALF, said, measure), e.controls(e.regained_under))


def valley_from_rows(e: Evidence) -> Claim:
    """The same with the writes at all massive tokens cut."""
    claim = Statement("valley_from_massive_rows", "massive rows make the valley, wherever they stand")
    if e.verdict("valley") != "holds":
        return claim.untestable("no valley is shown that could be explained")
    if not e.seen.massive and e.verdict("massive_activation") == "untestable":
        return claim.untestable(f"whether the row of {e.name} is massive is not decided")
    if not e.seen.massive:
        causes = {
            "common direction": "; the rows point the same way",
            "long rows": "; rows too short to be called massive make it",
        }
        return claim.fails("no row is massive" + causes.get(str(e.seen.valley_cause), ""))
    every, measure = e.condition("all rows cut"), "share of the drop regained"
    if every is None and e.others:
        return claim.untestable(e.why("rows"))
    if every is None:
        alone = e.claims["valley_from_bos"]
        said = f"{e.name} is the only one, see there"
        return Claim(claim.name, claim.text, alone.verdict, said, alone.effect, measure)
    effect = e.regained_under(every)
    said = f"cutting the writes at all massive tokens regains {say(effect)} of the drop"
    decided, left = claim.decided(effect, HALF, said, measure), e.still_massive(every)
    if decided.verdict != "holds" and left:
        said += f"; in {number(100 * left, 3)} % of the prompts a row is massive all the same"
        return replace(decided, verdict="untestable", evidence=said)
    return decided


def valley_follows(e: Evidence) -> Claim:
    """Does the valley come back when the write goes to another token?"""
    claim = Statement("valley_follows", "written into another token instead, it makes the valley there")
    if e.verdict("valley_from_bos") != "holds" or e.low is None:
        return claim.untestable(f"the row of {e.name} is not shown to make a valley")
    if e.findings.moved is None:
        return claim.untestable(e.why("moved"))
    moved, depth = e.findings.moved, e.low.depth
    parts = [rows(normalized_entropy(condition(moved, c)))[:, depth] for c in ("clean", "cut", "moved")]

    def restored(*drawn: np.ndarray) -> float:
        clean, cut, there = (over_prompts(values) for values in drawn)
        return ratio_of(cut - there, cut - clean)

    effect = bootstrap(restored, *parts)
    said = f"moved to position {e.findings.moved_to}, it brings back {say(effect)} of what the cut undid"
    return claim.decided(effect, HALF, said, "share of the valley restored")


def sinks_from_massive(e: Evidence) -> Claim:
    """Which share of the sinks goes with the cut, and with the controls?"""
    claim = Statement("sinks_from_massive", "the massive activation makes the sinks")
    if e.verdict("sinks") != "holds":
        return claim.untestable("no sinks are shown that could be explained")
    if e.verdict("massive_activation") == "fails":
        peak = e.claims["massive_activation"].effect
        known = "" if peak is None else f" (norm ratio {number(peak.value)}, cut-off {e.ratio:g})"
        return claim.fails(f"there are sinks on {e.name} and no massive activation there{known}")
    cut = e.condition("cut")
    if cut is None:
        return claim.untestable(e.why("experiments"))
    effect, after = e.lost_under(cut), over_prompts(e.rate_of(cut))
    gone = [n for n in e.sink_layers.tolist() if after[n] < SINK_SHARE]
    stay = [n for n in e.sink_layers.tolist() if after[n] >= SINK_SHARE]
    said = f"{say(effect)} of the sinks go with the cut: those of block {listed(gone)}"
    said += f"; those of block {listed(stay)} survive" if stay else ""
    turned = e.condition("random direction")
    if turned is not None:
        kept = number(1 - e.lost_under(turned).value, -2)
        said += f"; written in a random direction at the same norm, it keeps {kept} of them"
    decided = claim.decided(effect, HALF, said, "share of the sinks lost")
    return specific(decided, e.controls(e.lost_under))


def sinks_follow(e: Evidence) -> Claim:
    """Do the sinks go where the write goes?"""
    claim = Statement("sinks_follow", "written into another token instead, it draws the sinks there")
    if e.verdict("sinks_from_massive") != "holds":
        return claim.untestable("the massive activation is not shown to make sinks")
    if e.findings.moved is None:
        return claim.untestable(e.why("moved"))
    at = e.sink_layers

    def share(before: np.ndarray, unmoved: np.ndarray, moved: np.ndarray) -> float:
        there, already, had = (over_prompts(rate)[at].sum() for rate in (moved, unmoved, before))
        return ratio_of(there - already, had)

    unmoved, moved = (e.rate_of(condition(e.findings.moved, name)) for name in ("clean", "moved"))
    effect, already = bootstrap(share, e.rate, unmoved, moved), share(e.rate, 0 * unmoved, unmoved)
    said = (
        f"moved to position {e.findings.moved_to}, that token draws {say(effect)} of the sinks that "
        f"{e.name} had, beyond {number(already, -2)} that it draws in the model as it is"
    )
    return claim.decided(effect, HALF, said, "share of the sinks that follow")


def cost(e: Evidence) -> Claim:
    """How many times as high is perplexity with the cut, and with the controls?"""
    claim = Statement("ablation_costs", "the model needs it: the cut raises perplexity")
    cut, clean = e.condition("cut"), e.condition("clean")
    if cut is None or clean is None:
        return claim.untestable(e.why("experiments"))
    if "next_token_loss" not in cut:
        return claim.untestable("an encoder has no next-token loss")

    def times(ds: xr.Dataset) -> Interval:
        rise = mean_of(rows(ds.next_token_loss) - rows(clean.next_token_loss))
        value, low, high = (math.exp(min(x, 700.0)) for x in (rise.value, rise.low, rise.high))
        return Interval(value, low, high, rise.level, rise.n)

    effect, kl = times(cut), mean_of(rows(cut.kl_divergence))
    said = f"perplexity is {say(effect)} times as high; KL from the clean model {say(kl)} nats per token"
    decided = claim.decided(effect, COST, said, "factor of the perplexity")
    return specific(decided, e.controls(times), nothing=1.0)
