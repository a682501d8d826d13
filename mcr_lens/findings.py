"""Whose token is it? Massive rows, sinks and the entropy valley, found at any position.

BOS is where one looks first, not where it must be: a first token without BOS, a delimiter or [SEP] can hold
a massive row or draw attention as well, and a valley need not come from a single row.
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, check_ratio, check_threshold, is_number
from mcr_lens.results import vocabulary_of
from mcr_lens.schema import require, require_single
from mcr_lens.summaries import ShortPromptWarning, mean_by_site, normalized_entropy

if TYPE_CHECKING:
    import pandas as pd


LONG = 3.0
"""A row of so many times the median norm is asked whether it makes the valley; others scatter below."""


def find_massive(ds: xr.Dataset, *, ratio: float = 10.0) -> "pd.DataFrame":
    """Rows of the residual stream whose norm is at least `ratio` times the median norm, at any position.

    ‖xᵢ‖ / median ‖xⱼ‖ (over the rows other than the measured position) among the three largest rows of each
    prompt and depth. One line per prompt and position: `prompt`, `position`, `token`, `first_depth` and
    `last_depth` where it is massive, `peak_depth` and the `ratio` there.

    Raises:
        ResultSchemaError: not a result, several conditions, or `top_norm`, `top_norm_token`,
            `other_norm_median` are missing.
        ValueError: a ratio that is not above 1.

    Source: this library, after arXiv 2402.17762 and arXiv 2510.06477.

    >>> rows = mcr.find_massive(ds)[["position", "token", "first_depth", "last_depth"]]
    >>> rows.drop_duplicates().values.tolist()
    [[0, '<bos>', 1, 2]]
    """
    require_single(ds, "top_norm", "top_norm_token", "other_norm_median", empty=True)
    check_ratio(ratio)
    times = (ds.top_norm / ds.other_norm_median).transpose("prompt", "depth", "top")
    times = times.astype(float)  # a ratio may be beyond what float32 holds
    lines = _lines(ds, "top_norm_token", times, ratio, ["prompt", "depth", "top"])
    columns = ["prompt", "position", "token", "first_depth", "last_depth", "peak_depth", "ratio"]
    if lines.empty:
        return lines.reindex(columns=columns)
    peaks = lines.loc[lines.groupby(["prompt", "position"])["value"].idxmax()]
    found = peaks.rename(columns={"depth": "peak_depth", "value": "ratio"})
    span = lines.groupby(["prompt", "position"])["depth"].agg(first_depth="min", last_depth="max")
    return found.merge(span, on=["prompt", "position"]).reindex(columns=columns)


def find_sinks(ds: xr.Dataset, *, threshold: float = 0.3) -> "pd.DataFrame":
    """Heads that give a key, at any position, at least `threshold` of the attention of the other queries.

    The score is the mean attention to the key over the other queries that see it (`top_sink_score`). One
    line per prompt, layer, head and key: `prompt`, `layer`, `head`, `position`, `token`, `score`.

    Warns:
        ShortPromptWarning: so few queries see a key that a head without a sink passes the threshold.

    Raises:
        ResultSchemaError: not a result, several conditions, or `top_sink_score`, `top_sink_token`
            are missing.
        ValueError: a threshold outside 0..1.

    Source: this library, after arXiv 2410.10781 and arXiv 2603.05498.

    >>> sorted(set(mcr.find_sinks(ds).layer))
    [1, 2, 3, 4]
    """
    require_single(ds, "top_sink_score", "top_sink_token", empty=True)
    check_threshold(threshold, zero=False)
    _warn_few_queries(ds, threshold)
    scores = ds.top_sink_score.transpose("prompt", "layer", "head", "top")
    lines = _lines(ds, "top_sink_token", scores, threshold, ["prompt", "layer", "head", "top"])
    columns = ["prompt", "layer", "head", "position", "token", "score"]
    return lines.rename(columns={"value": "score"}).reindex(columns=columns)


@dataclass(frozen=True)
class Place:
    """A token that is massive or drawn on in many prompts.

    `position` is None where the token stands at different positions in different prompts; `sites` are the
    depths (massive rows) or layers (sinks) where it is found, in at least half of the prompts that have it;
    `strength` is the mean of the largest ratio (or score) of each prompt; `share` the share of the prompts.

    >>> place, = mcr.phenomena(ds).massive
    >>> isinstance(place, mcr.Place), place.token, place.sites, place.share
    (True, '<bos>', (1, 2), 1.0)
    """

    position: int | None
    token: str
    sites: tuple[int, ...]
    strength: float
    share: float


@dataclass(frozen=True)
class Valley:
    """The lowest point of normalised entropy between two higher sides, averaged over prompts.

    `entropy` at `depth`; `before` and `after` are the largest values up to there and from there on. `depth`
    lies between the ends only if both are larger.

    >>> isinstance(mcr.entropy_valley(ds), mcr.Valley)
    True
    """

    depth: int
    entropy: float
    before: float
    after: float

    @property
    def drop(self) -> float:
        """How far the lowest point lies below the lower of its two sides."""
        return min(self.before, self.after) - self.entropy


@dataclass(frozen=True)
class Phenomena:
    """What was found, where: massive rows, sinks, a valley and what makes it.

    `valley` is None where there is none; then `valley_cause` is None too. Otherwise it is "massive rows",
    "long rows" (rows too short to be called massive and long enough to make the valley), or "common
    direction" (the rows point the same way, whatever their norms).

    >>> found = mcr.phenomena(ds)
    >>> isinstance(found, mcr.Phenomena), found.valley_cause
    (True, 'massive rows')
    """

    massive: tuple[Place, ...]
    sinks: tuple[Place, ...]
    valley: Valley | None
    valley_cause: str | None


def phenomena(
    ds: xr.Dataset, *, ratio: float = 10.0, threshold: float = 0.3, valley: float = 0.2
) -> Phenomena:
    """Massive rows, sinks and valley of a result, with the tokens they belong to.

    A place is reported where it is found in at least half of the prompts. A valley is a drop of normalised
    entropy of at least `valley` below both sides. It is made by rows if more than half of the drop is gone
    once the long ones (three times the median norm and more, up to three of them) are taken out of the
    matrix, with H = h(P) + (1 − P) H_rest and P their share of ‖X‖_F²: exact for one row, or rows of one
    direction, orthogonal to the others.

    Raises:
        ResultSchemaError: not a result with prompts, several conditions, or a variable that was not measured.
        ValueError: as `find_massive` and `find_sinks`.

    Source: this library, after arXiv 2510.06477; the split of the entropy follows its bound.

    >>> [place.token for place in mcr.phenomena(ds).sinks]
    ['<bos>']
    """
    require_single(ds, "matrix_entropy", "frobenius_norm")
    rows, heads = find_massive(ds, ratio=ratio), find_sinks(ds, threshold=threshold)
    if not is_number(valley) or not 0 < valley < 1:
        raise ValueError(
            f"valley={as_shown(valley)}: normalised entropy lies between 0 and 1; pass a number in between"
        )
    lowest = entropy_valley(ds)
    found = lowest if lowest is not None and lowest.drop >= valley else None
    return Phenomena(
        massive=_places(_by_depth(ds, rows), "depth", ds.sizes["prompt"]),
        sinks=_places(heads.rename(columns={"score": "strength"}), "layer", ds.sizes["prompt"]),
        valley=found,
        valley_cause=None if found is None else _cause(ds, found, ratio),
    )


def entropy_valley(ds: xr.Dataset) -> Valley | None:
    """The lowest mean normalised entropy and the sides it lies between; None where it is not defined.

    Raises:
        ResultSchemaError: not a result, several conditions, or the entropy was not measured.

    Source: arXiv 2510.06477 (compression valley).

    >>> mcr.entropy_valley(ds).depth
    1
    """
    require_single(ds, "matrix_entropy", empty=True)
    entropy = mean_by_site(normalized_entropy(ds))
    if np.isnan(entropy).all():
        return None
    depth = int(np.nanargmin(entropy))
    before, after = np.nanmax(entropy[: depth + 1]), np.nanmax(entropy[depth:])
    return Valley(depth, float(entropy[depth]), float(before), float(after))


def _lines(
    ds: xr.Dataset, where: str, strength: xr.DataArray, least: float, dims: list[str]
) -> "pd.DataFrame":
    """One line per place whose strength reaches `least`: its labels, position, token and strength."""
    import pandas as pd

    index = np.nonzero(np.nan_to_num(strength.values, nan=-np.inf) >= least)
    lines = pd.DataFrame({dim: strength[dim].values[i] if dim in strength.coords else i
                          for dim, i in zip(dims, index, strict=True)})  # fmt: skip
    lines["position"] = ds[where].transpose(*dims).values[index].astype(int)
    lines["token"] = token_texts(ds, where, dims)[index]
    lines["value"] = strength.values[index].astype(float)
    return lines


def token_texts(ds: xr.Dataset, name: str, dims: list[str]) -> np.ndarray:
    """The tokens that stand at the positions of one variable, as text; "" where they are not known.

    Raises:
        ResultSchemaError: not a result, or the variable was not measured.

    Source: this library.
    """
    require(ds, name)
    if f"{name}_id" not in ds:
        return np.full([ds.sizes[d] for d in dims], "", dtype=object)
    ids = ds[f"{name}_id"].transpose(*dims).values
    texts = vocabulary_of(ds)
    unique, inverse = np.unique(ids, return_inverse=True)
    known = np.array([texts.get(int(i), "") for i in unique], dtype=object)
    return known[inverse.reshape(ids.shape)]


def _by_depth(ds: xr.Dataset, rows: "pd.DataFrame") -> "pd.DataFrame":
    """One line per prompt, position and depth between the first and the last where the row is massive."""
    lines = rows.rename(columns={"ratio": "strength"})
    lines["depth"] = [list(range(a, b + 1)) for a, b in zip(rows.first_depth, rows.last_depth, strict=True)]
    return lines.explode("depth")


def _places(lines: "pd.DataFrame", site: str, n_prompts: int) -> tuple[Place, ...]:
    """Positions found in half of the prompts, then tokens found in half of them wherever they stand."""
    found: list[Place] = []
    for key in ("position", "token"):
        for label, part in lines.groupby(key, sort=True):
            value: Any = label
            if key == "token" and (value == "" or any(p.token == value for p in found)):
                continue
            position = int(value) if key == "position" else None
            place = _place(part, site, n_prompts, position, str(part.token.mode().iloc[0]))
            if place is not None:
                found.append(place)
    return tuple(found)


def _place(
    lines: "pd.DataFrame", site: str, n_prompts: int, position: int | None, token: str
) -> Place | None:
    prompts = lines.prompt.nunique()
    if 2 * prompts < n_prompts:
        return None
    by_site = lines.groupby(site).prompt.nunique()
    strongest: Any = lines.groupby("prompt").strength.max()
    sites: Any = by_site.index[2 * by_site >= prompts]
    return Place(
        position=position,
        token=token,
        sites=tuple(int(s) for s in sites),
        strength=float(strongest.mean()),
        share=prompts / n_prompts,
    )


def _cause(ds: xr.Dataset, valley: Valley, ratio: float) -> str:
    at = ds.sel(depth=valley.depth)
    times = at.top_norm / at.other_norm_median
    share = (at.top_norm**2).where(times >= LONG, 0).sum("top") / at.frobenius_norm**2
    share = share.clip(0, 1 - 1e-12)
    binary = -(share * np.log(share.where(share > 0, 1)) + (1 - share) * np.log1p(-share))
    rest = (at.matrix_entropy - binary) / (1 - share)
    whole = normalized_entropy(ds).sel(depth=valley.depth)
    scale = (at.matrix_entropy / whole).where(whole > 0, np.log(np.minimum(at.n_tokens, ds.attrs["d_model"])))
    regained = float((rest / scale).mean()) - valley.entropy
    if regained <= valley.drop / 2:
        return "common direction"
    return "massive rows" if 2 * float((times >= ratio).any("top").mean()) >= 1 else "long rows"


def _warn_few_queries(ds: xr.Dataset, threshold: float) -> None:
    fewest = ds.sink_queries.min("layer") if "sink_queries" in ds else ds.n_tokens
    fewest = int(fewest.min()) if ds.sizes["prompt"] else 0
    # The least seen candidate is seen by half of them: a previous-token head gives it 1 / (n/2 − 1).
    if 0 < fewest < 2 * (1 / threshold + 1):
        warnings.warn(
            f"in some layers a key is seen by {fewest} queries at most, where a head that looks at the token "
            f"before it reaches {threshold} as well; use longer prompts or a higher threshold",
            ShortPromptWarning,
            stacklevel=3,
        )
