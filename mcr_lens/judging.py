"""What do the measurements of a diagnosis say of each part of the paper's claim?

Each judge reads numbers and says what they decide; those on what is there stand here, those on what makes
what in `causes`. Cut-offs are arguments of `judge`: the same measurements can be judged again with others.
"""

import math
import warnings

import numpy as np

from mcr_lens import causes
from mcr_lens._checks import as_shown, check_threshold, is_number
from mcr_lens.claims import Claim, Statement, mean_of, say
from mcr_lens.evidence import HALF, SINK_SHARE, Evidence, Findings, drop, over_prompts, rows
from mcr_lens.findings import find_massive
from mcr_lens.reading import number
from mcr_lens.resampling import Interval, bootstrap
from mcr_lens.summaries import ShortPromptWarning, sink_rate

NO_OP = 0.2
"""A value is drained below a fifth of the norm of the others (arXiv 2606.08105; near 1 it is a broadcast)."""


def judge(
    findings: Findings, *, ratio: float = 10.0, threshold: float = 0.3, valley: float = 0.2
) -> list[Claim]:
    """Judge every claim on what was measured, in the order of the paper's argument.

    Args:
        findings: the measurements of a diagnosis.
        ratio: a row is massive from this many times the median norm of the others on.
        threshold: a head is a sink from this mean attention on.
        valley: normalised entropy that far below both sides is a valley.

    Raises:
        ResultSchemaError: findings that lack a variable.
        ValueError: a cut-off out of range.

    Source: arXiv 2510.06477 for the claims; verdicts and cut-offs: this library.
    """
    check_cut_offs(ratio=ratio, threshold=threshold, valley=valley)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", ShortPromptWarning)
        sink_rate(findings.clean, threshold)
    short = [str(w.message) for w in raised if issubclass(w.category, ShortPromptWarning)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortPromptWarning)  # the claim on sinks says it
        e = Evidence(
            findings, ratio=ratio, threshold=threshold, valley=valley, short=short[0] if short else ""
        )
        for judged in JUDGES:
            made = judged(e)
            e.claims[made.name] = made
    return list(e.claims.values())


def check_cut_offs(*, ratio: float, threshold: float, valley: float) -> None:
    """Refuse cut-offs that nothing could pass, or everything, before anything is measured.

    Raises:
        ValueError: which one, and what is allowed.
    """
    if not is_number(ratio) or not 1 < ratio < math.inf:
        raise ValueError(
            f"ratio={as_shown(ratio)}: a massive row is longer than the others; pass a number above 1"
        )
    check_threshold(threshold, zero=False)
    if not is_number(valley) or not 0 < valley < 1:
        raise ValueError(
            f"valley={as_shown(valley)}: normalised entropy lies between 0 and 1; pass a number in between"
        )


def massive(e: Evidence) -> Claim:
    """Is the row of BOS massive at the depth where its ratio peaks?"""
    claim = Statement("massive_activation", f"{e.name} carries a massive activation")
    ratios = rows(e.findings.clean.massive_activation_ratio)
    if not np.isfinite(ratios).any():
        return claim.untestable("the prompts have a single token, so there is nothing to compare it with")
    depth = int(np.nanargmax(over_prompts(ratios)))
    effect = mean_of(ratios[:, depth])
    said = f"its norm peaks at {say(effect)} times the median norm of the others, at depth {depth}"
    if e.findings.null is not None:
        others = e.findings.null.massive_activation_ratio.sel(depth=depth)
        said += (
            f"; other tokens there: {number(float(others.mean()), -2)}, at most {number(float(others.max()))}"
        )
    return claim.decided(effect, e.ratio, said, "norm ratio")


def only_row(e: Evidence) -> Claim:
    """In how many prompts is no other row massive, at any depth?"""
    claim = Statement("one_row", f"{e.name} is the only massive row")
    found, n = find_massive(e.findings.clean, ratio=e.ratio), e.findings.clean.sizes["prompt"]
    others = found[found.position != e.findings.clean.attrs["position"]]
    if e.verdict("massive_activation") != "holds" and not e.seen.massive:
        return claim.untestable(f"no massive activation is shown at {e.name}")
    effect = mean_of(1.0 - np.isin(np.arange(n), others.prompt.to_numpy()))
    said = f"it is in {number(100 * effect.value, 3)} % of the prompts"
    if not others.empty:
        known = others.groupby("token").ratio.agg(["size", "max"]).sort_values("size", ascending=False)
        names = [f"{token!r} (ratio up to {row['max']:.3g})" for token, row in known.head(3).iterrows()]
        said += f"; massive as well: {', '.join(names)}"
    return claim.decided(effect, HALF, said, "share of the prompts")


def by_mlp(e: Evidence) -> Claim:
    """Which share of the massive row do MLPs write?"""
    claim = Statement("written_by_mlp", "MLPs write it")
    if e.verdict("massive_activation") != "holds":
        return claim.untestable(f"no massive activation is shown at {e.name}")
    if e.findings.mlp_share is None:
        return claim.untestable(e.why("mlp_share"))
    share = rows(e.findings.mlp_share)  # [prompt, layer]
    if not share.shape[1]:
        return claim.fails("it is largest in the embedding, before anything is written")
    effect, each = mean_of(share.sum(1)), over_prompts(share)
    top = int(np.nanargmax(each))
    said = f"MLPs write {say(effect)} of the norm, that of block {top} {number(each[top], -2)}"
    if e.findings.neurons is not None:
        share = e.findings.neurons.share_of_write
        neuron, part = int(share.neuron[0]), number(100 * float(share[0]), 3)
        said += f" (its neuron {neuron} alone writes {part} % of that)"
    return claim.decided(effect, HALF, said, "share of the norm")


def has_valley(e: Evidence) -> Claim:
    """How far does entropy fall below both of its sides?"""
    claim = Statement("valley", "entropy falls and comes back: a compression valley")
    if e.low is None:
        return claim.untestable("entropy is not defined for these prompts")
    if int(e.findings.clean.n_tokens.max()) < 2:
        return claim.untestable("the prompts have a single token, whose entropy is 0 by definition")
    v = e.low
    effect = bootstrap(lambda h: drop(over_prompts(h)), e.entropy)
    said = (
        f"normalised entropy is lowest at depth {v.depth} ({number(v.entropy, -2)}), {say(effect)} below the "
        f"lower of its sides: {number(v.before, -2)} is the highest up to there, {number(v.after, -2)} from "
        "there on"
    )
    return claim.decided(effect, e.valley, said, "drop of normalised entropy below both sides")


def sinks(e: Evidence) -> Claim:
    """Which share of the heads sinks on BOS, in the layer that has most?"""
    claim = Statement("sinks", f"heads sink on {e.name}")
    means = over_prompts(e.rate)
    if np.isnan(means).all():
        return claim.untestable("sink scores are not defined for these prompts")
    if e.short:
        return claim.untestable(e.short)
    layer, many = int(np.nanargmax(means)), len(e.sink_layers)
    effect = mean_of(e.rate[:, layer])
    said = (
        f"{say(effect)} of the heads of block {layer} are sinks, the most of any; a quarter or more are in "
        f"{many} of {len(means)} blocks"
    )
    return claim.decided(effect, SINK_SHARE, said, "largest sink rate of a layer")


def three_phases(e: Evidence) -> Claim:
    """Are there three phases, and how much of the depth compresses?"""
    claim, p = Statement("three_phases", "depth divides into mix, compress and refine"), e.findings.phases
    if p is None:
        return claim.untestable(e.why("phases"))
    if p.n_prompts < 2:
        return claim.untestable("one prompt gives no interval")
    if not p.compress:
        return claim.fails(p.reason)
    low = high = math.nan
    if p.start_interval and p.stop_interval:
        low = max(0, p.stop_interval[0] - p.start_interval[1]) / p.n_depths
        high = (p.stop_interval[1] - p.start_interval[0]) / p.n_depths
    effect = Interval(len(p.compress) / p.n_depths, low, high, p.level, p.n_prompts)
    said = f"compression at depths {p.compress.start} to {p.compress.stop - 1} of {p.n_depths - 1}"
    said += "" if p.found else f"; {p.reason}"
    verdict, measure = "holds" if p.found else "fails", "share of the depths that compress"
    if p.found and e.verdict("valley") != "holds":
        verdict = e.verdict("valley")
        said += f"; but entropy is not shown to drop by {e.valley:g}"
    return Claim(claim.name, claim.text, verdict, said, effect, measure)


def no_op(e: Evidence) -> Claim:
    """How large is the value of BOS for the heads that sink on it?"""
    claim = Statement("sinks_are_no_ops", "attending to the sink is a no-op, not a broadcast")
    if e.verdict("sinks") != "holds":
        return claim.untestable("no sinks are shown")
    missing = [v for v in ("sink_output_share", "value_drain") if v not in e.findings.clean]
    if missing:
        return claim.untestable(f"{' and '.join(missing)} could not be measured in this model")
    heads = e.findings.clean.sink_score >= e.threshold
    drain, share = (
        mean_of(e.findings.clean[v].where(heads).mean(["layer", "head"]).values)
        for v in ("value_drain", "sink_output_share")
    )
    said = (
        f"in sink heads the value of {e.name} has {say(drain)} of the norm of the others' (near 0: no-op; "
        f"near 1: broadcast), and {say(share)} of what they write comes from it"
    )
    return claim.decided(drain, NO_OP, said, "value norm over that of the others", below=True)


JUDGES = (
    massive, only_row, by_mlp, has_valley, causes.valley_from_bos, causes.valley_from_rows,
    causes.valley_follows, sinks, causes.sinks_from_massive, causes.sinks_follow, no_op, three_phases,
    causes.cost,
)  # fmt: skip
"""In the order of the paper's argument; one may need the verdicts before it."""
