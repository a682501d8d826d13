"""How much of the compression must follow from the BOS row alone, and how much room do the bounds leave?"""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, is_number
from mcr_lens.schema import ResultSchemaError, require_single

if TYPE_CHECKING:
    import pandas as pd

NEEDED = (
    "bos_energy", "rest_energy", "bos_alignment", "tightest_token", "tightest_share", "top_rows_share",
    "top_rows_dimension", "matrix_entropy", "anisotropy", "singular_values",
)  # fmt: skip
"""What `bounds` reads from a result; all of it is measured by default."""

THEOREM, COROLLARY, OURS = "arXiv 2510.06477, Theorem 1", "arXiv 2510.06477, Corollary 2", "this library"

ABOUT = {
    "energy_ratio": ("BOS over the rest, c = M/R", "1", THEOREM),
    "rank_limit": ("Largest possible rank, r = min(T, d)", "1", COROLLARY),
    "bos_part": ("Share of the bound on σ₁² that is BOS, M / (M + αR)", "1", OURS),
    "alignment_part": ("Share of the bound on σ₁² that is alignment, αR / (M + αR)", "1", OURS),
    "strongest_energy": ("Energy of the strongest direction, σ₁²", "1", THEOREM),
    "strongest_energy_lower_bound": ("Bound on σ₁², M + αR", "1", THEOREM),
    "strongest_energy_slack": ("σ₁² above its bound", "1", THEOREM),
    "anisotropy_lower_bound": ("Bound on p₁, p = (c + α)/(c + 1)", "1", COROLLARY),
    "anisotropy_slack": ("p₁ above its bound", "1", COROLLARY),
    "dominance": ("Spectral dominance, σ₁² / Σ_{j ≥ 2} σⱼ²", "1", COROLLARY),
    "dominance_lower_bound": ("Bound on spectral dominance, (c + α)/(1 − α)", "1", COROLLARY),
    "dominance_slack": ("1 / bound − 1 / spectral dominance", "1", COROLLARY),
    "entropy_upper_bound": ("Bound on the entropy, h(p) + (1 − p) ln(r − 1)", "nats", COROLLARY),
    "entropy_upper_slack": ("Entropy below its upper bound", "nats", COROLLARY),
    "entropy_lower_bound": ("Least entropy that p₁ allows, h(p₁) from one half on", "nats", OURS),
    "entropy_lower_slack": ("Entropy above its lower bound", "nats", OURS),
    "leading_share": ("Share of the k' strongest directions, Σ_{j ≤ k'} pⱼ", "1", OURS),
    "leading_share_slack": ("Share of the k' strongest directions above that of the rows", "1", OURS),
    "top_rows_entropy_upper_bound": ("Bound on the entropy by the 1, 2, 3 largest rows", "nats", OURS),
    "top_rows_entropy_slack": ("Entropy below the bound by the 1, 2, 3 largest rows", "nats", OURS),
    "stepwise_entropy_upper_bound": ("Bound on the entropy by 1, 2, 3 rows one after another", "nats", OURS),
    "stepwise_entropy_slack": ("Entropy below the bound by rows one after another", "nats", OURS),
    "tightest_slack": ("p₁ above the largest share along one row", "1", OURS),
    "tightest_entropy_upper_bound": ("Bound on the entropy by the tightest row", "nats", OURS),
    "tightest_entropy_slack": ("Entropy below the bound by the tightest row", "nats", OURS),
    "best_entropy_upper_bound": ("Lowest of the upper bounds on the entropy", "nats", OURS),
    "best_entropy_slack": ("Entropy below the lowest upper bound", "nats", OURS),
    "normalized_entropy": ("Entropy over ln r", "1", "arXiv 2510.06477, Fig. 1 (reconstruction: normaliser)"),
    "normalized_entropy_upper_bound": ("Upper bound on the entropy over ln r", "1", COROLLARY),
    "normalized_entropy_lower_bound": ("Lower bound on the entropy over ln r", "1", OURS),
    "normalized_best_entropy_upper_bound": ("Lowest upper bound on the entropy over ln r", "1", OURS),
}
"""Label, units and source of every variable that `bounds` adds."""


def bounds(ds: xr.Dataset) -> xr.Dataset:
    """What a massive BOS row implies about the spectrum, next to what was measured, by prompt and depth.

    With M = ‖x₀‖², R = Σ_{i ≠ 0} ‖xᵢ‖², α the share of R along x₀, c = M/R, p = (c + α)/(c + 1) and
    h the binary entropy in nats:

        σ₁² ≥ M + αR                                    `strongest_energy`
        p₁ = σ₁²/‖X‖_F² ≥ p                             `anisotropy`
        σ₁² / Σ_{j ≥ 2} σⱼ² ≥ (c + α)/(1 − α)           `dominance`
        H ≤ h(p) + (1 − p) ln(r − 1)                    `entropy_upper_bound`, for every p
        H ≥ −n p₁ ln p₁ − (1 − n p₁) ln(1 − n p₁)       `entropy_lower_bound`, n = ⌊1/p₁⌋

    On the axis `top`, with an orthonormal basis of the span of the k = 1, 2, 3 largest rows (k' directions,
    dⱼ the share of ‖X‖_F² along each, P = Σⱼ dⱼ):

        Σ_{j ≤ k'} pⱼ ≥ P                               `leading_share`
        H ≤ h(P) + P ln k' + (1 − P) ln(r − k')         `top_rows_entropy_upper_bound`
        H ≤ −Σⱼ dⱼ ln dⱼ − (1 − P) ln (1 − P)
            + (1 − P) ln(r − k')                        `stepwise_entropy_upper_bound`

    The last keeps the rows apart: it is never above the one before, and another row never raises it. With
    the best row in place of BOS, the bounds on p₁ and H are `tightest_*`; `best_entropy_upper_bound` is the
    lowest of all. r is min(T, d): the bounds hold for the rank of X and for whatever is larger, and the rank
    of measured states is a matter of rounding.

    A slack is the room that is left, in the units of its quantity; below zero beyond rounding it would
    contradict the theorem, which `bound_violations` looks for. The slack of `dominance` is that of its
    reciprocal, which stays finite for rank one.

    Where x₀ = 0 there is no direction: p = 0, its two parts are NaN, the slack of the dominance is infinite
    and the entropy bound is ln r. Where R = 0, α is NaN, c and the bound on dominance are infinite, p = 1.
    Where X = 0 nothing is defined and all is NaN, as are the k rows of a prompt with fewer tokens.

    Raises:
        ResultSchemaError: not a result, a variable of `NEEDED` is missing or has lost an axis or singular
            values that a bound needs, or it has several conditions.

    Source: arXiv 2510.06477, Theorem 1 and Corollary 2 (in nats); this library for the lower bound, for
    several rows (Ky Fan, Schur-Horn) and for p below 1/r.

    >>> limits = mcr.bounds(ds)
    >>> bool((limits.anisotropy_lower_bound <= limits.anisotropy + 1e-9).all())
    True
    """
    require_single(ds, *NEEDED, empty=True, picked=["depth"])
    bos, rest, alpha, n_tokens = _bare(ds, "bos_energy", "rest_energy", "bos_alignment", "n_tokens")
    rank = n_tokens.clip(max=ds.attrs["d_model"])
    total, aligned = bos + rest, _chosen(rest != 0, alpha * rest, 0.0)
    reached = bos + aligned
    share, remainder = reached / total, _chosen(rest != 0, (1 - alpha) * rest, 0.0) / total
    first, entropy, values = _bare(ds, "anisotropy", "matrix_entropy", "singular_values")
    sigma = values**2
    rows, size, row = _bare(ds, "top_rows_share", "top_rows_dimension", "tightest_share")
    most = int(size.max()) if size.size else 0
    if most > ds.sizes["rank"]:
        raise ResultSchemaError(
            f"the result holds {ds.sizes['rank']} singular values, and a bound for {most} rows needs {most}; "
            "keep the axis `rank` whole"
        )
    leading = _leading(sigma / total, size).where(rows.notnull())
    by_bos = _most_entropy(share, remainder, (bos != 0).astype(int), rank)
    by_tightest = _most_entropy(row, 1 - row, xr.ones_like(rank), rank)
    by_rows = _most_entropy(rows, 1 - rows, size, rank)
    stepwise = _each(rows) + _most_entropy(0 * rows, 1 - rows, size, rank)
    best = stepwise.min("top")
    for other in (by_bos, by_tightest):
        best = _chosen(~(other < best) & best.notnull(), best, other)
    lowest = _least_entropy(first)
    found = {
        "energy_ratio": bos / rest,
        "rank_limit": rank,
        "bos_part": bos / reached,
        "alignment_part": aligned / reached,
        "strongest_energy": sigma.isel(rank=0),
        "strongest_energy_lower_bound": reached,
        "strongest_energy_slack": sigma.isel(rank=0) - reached,
        "anisotropy_lower_bound": share,
        "anisotropy_slack": first - share,
        "dominance": first / (1 - first),
        "dominance_lower_bound": share / remainder,
        "dominance_slack": remainder / share - (1 - first) / first,
        "entropy_upper_bound": by_bos,
        "entropy_upper_slack": by_bos - entropy,
        "entropy_lower_bound": lowest,
        "entropy_lower_slack": entropy - lowest,
        "leading_share": leading,
        "leading_share_slack": leading - rows,
        "top_rows_entropy_upper_bound": by_rows,
        "top_rows_entropy_slack": by_rows - entropy,
        "stepwise_entropy_upper_bound": stepwise,
        "stepwise_entropy_slack": stepwise - entropy,
        "tightest_slack": first - row,
        "tightest_entropy_upper_bound": by_tightest,
        "tightest_entropy_slack": by_tightest - entropy,
        "best_entropy_upper_bound": best,
        "best_entropy_slack": best - entropy,
        "normalized_entropy": _over_log(entropy, rank),
        "normalized_entropy_upper_bound": _over_log(by_bos, rank),
        "normalized_entropy_lower_bound": _over_log(lowest, rank),
        "normalized_best_entropy_upper_bound": _over_log(best, rank),
    }
    kept = [name for name in (*NEEDED, "tightest_token_id") if name in ds and name != "singular_values"]
    return _with_labels(ds.drop_vars([name for name in ds.data_vars if name not in kept]), found)


def bound_violations(ds: xr.Dataset, *, rounding: float | None = None) -> "pd.DataFrame":
    """Where a result contradicts the theorem beyond rounding: one line per bound, prompt and depth.

    Columns `bound`, `prompt`, `depth`, `rows` (k, for the bounds by several rows), `slack` and `tolerance`
    (slack < −tolerance, or NaN though X is not zero); no line means that everything holds, as it must: a
    line is a fault of the numbers, such as states that overflowed or variables of different runs.

    Args:
        rounding: the error e of a share pⱼ = σⱼ²/‖X‖_F². By default T + d + 8 times the precision of float64:
            a Gram matrix is made of inner products of length max(T, d), the eigenvalues of a matrix of side
            min(T, d) carry as many rounding errors of σ₁², and a few come from roots and quotients. The
            reciprocal of the dominance then carries e/p², once for each side, and an entropy re ln r + h(re)
            (Fannes' inequality, with r shares that are e apart), also once for each side.

    Raises:
        ResultSchemaError: as `bounds`.
        ValueError: a negative rounding error.

    Source: this library.

    >>> mcr.bound_violations(ds).empty
    True
    """
    import pandas as pd

    if rounding is not None and not (is_number(rounding) and rounding >= 0):
        raise ValueError(
            f"rounding={as_shown(rounding)}: pass the error of a share of the energy, such as 1e-12"
        )
    found = bounds(ds)
    bos, rest, share, rank, n_tokens, size = _bare(
        found, "bos_energy", "rest_energy", "anisotropy_lower_bound", "rank_limit", "n_tokens",
        "top_rows_dimension",
    )  # fmt: skip
    total, steps = bos + rest, n_tokens + ds.attrs["d_model"] + 8
    error = steps * np.finfo(np.float64).eps if rounding is None else xr.full_like(steps, rounding, float)
    apart = (rank * error).clip(max=0.5)
    for_entropy = 2 * (apart * np.log(rank) + _spread(apart) + _spread(1 - apart))
    tolerances = {
        "strongest_energy": error * total,
        "anisotropy": error,
        "dominance": 2 * error / share**2,
        "entropy_upper": for_entropy,
        "entropy_lower": for_entropy,
        "leading_share": 3 * error,
        "top_rows_entropy": for_entropy,
        "stepwise_entropy": for_entropy,
        "tightest": error,
        "tightest_entropy": for_entropy,
    }
    lines = []
    for name, tolerance in tolerances.items():
        slack = found.variables[f"{name}_slack"]
        there = (total > 0) | total.isnull()
        if "top" in slack.dims:
            there = there & (size >= 0)
        wrong = (there & ((slack < -tolerance) | slack.isnull())).transpose(*slack.dims)
        limit = tolerance.set_dims(dict(slack.sizes))
        for at in np.argwhere(wrong.values):
            place = dict(zip(slack.dims, at.tolist(), strict=True))
            labels = {d: found[d].values[i] if d in found.coords else i for d, i in place.items()}
            rows = labels.pop("top") + 1 if "top" in labels else pd.NA
            numbers = {"slack": float(slack[place]), "tolerance": float(limit[place])}
            lines.append({"bound": name, **labels, "rows": rows, **numbers})
    columns = ["bound", "prompt", "depth", "rows", "slack", "tolerance"]
    return pd.DataFrame(lines, columns=columns).astype({"rows": "Int64"})


def _bare(ds: xr.Dataset, *names: str) -> list[xr.Variable]:
    """Variables without coordinates: to align what belongs together at every step takes ten times as long."""
    return [ds.variables[name] for name in names]


def _chosen(there: xr.Variable, one: xr.Variable, other: xr.Variable | float) -> xr.Variable:
    return one.where(there, other)  # type: ignore[arg-type]  # annotated by its default alone


def _spread(share: xr.Variable) -> xr.Variable:
    """−x ln x, 0 for 0."""
    return 0.0 - share * np.log(_chosen(share > 0, share, 1.0))


def _most_entropy(
    share: xr.Variable, remainder: xr.Variable, size: xr.Variable, rank: xr.Variable
) -> xr.Variable:
    """h(P) + P ln k' + (1 − P) ln(r − k'): P spread over k' directions, the remainder over r − k' others.

    Diagonal entries of XᵀX/‖X‖_F² in any orthonormal basis have at least the entropy of its eigenvalues.
    """
    inside, outside = share * np.log(size.clip(1)), remainder * np.log((rank - size).clip(1))
    return _spread(share) + _spread(remainder) + inside + outside


def _each(rows: xr.Variable) -> xr.Variable:
    """−Σⱼ dⱼ ln dⱼ over the first k rows, with dⱼ = Pⱼ − Pⱼ₋₁ what each adds to the rows before it."""
    before = rows.shift(top=1, fill_value=0.0)  # type: ignore[arg-type]
    return _spread((rows - before).clip(0)).cumsum("top", skipna=False)


def _leading(shares: xr.Variable, size: xr.Variable) -> xr.Variable:
    """Σ_{j ≤ k'} pⱼ for every k'; the largest row of X spans something unless X = 0."""
    sums = shares.cumsum("rank", skipna=False)
    return sums.isel(rank=(size - 1).clip(0).astype(int))


def _least_entropy(first: xr.Variable) -> xr.Variable:
    """The entropy of as many shares p₁ as fit into one, and what is left: none below p₁ has less."""
    first = first.where(first > 0)
    count = (1 / first) // 1
    return count * _spread(first) + _spread((1 - count * first).clip(0))


def _over_log(entropy: xr.Variable, rank: xr.Variable) -> xr.Variable:
    """Over ln r, and 0 (not 0/0) for r = 1; NaN stays NaN."""
    return (entropy / np.log(rank.where(rank > 1))).where(rank > 1, 0 * entropy)


def _with_labels(ds: xr.Dataset, found: dict[str, xr.Variable]) -> xr.Dataset:
    """The result with these variables, labelled, and without the axes on which nothing lies any more."""
    labels = ("long_name", "units", "source")
    ds = ds.assign(
        {n: (a.dims, a.values, dict(zip(labels, ABOUT[n], strict=True))) for n, a in found.items()}
    )
    used = {d for name in ds.data_vars for d in ds[name].dims} | {"prompt", "token_id"}
    return ds.drop_dims([d for d in ds.dims if d not in used])
