"""Every metric as a few lines of numpy, from its definition: one prompt, one depth or layer, float64.

Written from the papers and the metrics' docstrings. Loops where a loop is plainest; nothing is shared,
nothing is fast.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Depth:
    """The residual stream of one prompt at one depth."""

    x: np.ndarray  # [T, d]
    p: int = 0  # the token taken for BOS

    @property
    def norms(self) -> np.ndarray:
        return np.sqrt((self.x**2).sum(1))

    @property
    def others(self) -> np.ndarray:
        return np.delete(self.norms, self.p)


@dataclass(frozen=True)
class Layer:
    """One attention layer and what it and the MLP write, for one prompt."""

    a: np.ndarray  # [H, T, T], attention
    seen: np.ndarray  # [T, T], True where query i may look at key j
    attention: np.ndarray  # [T, d]
    mlp: np.ndarray  # [T, d]
    value: np.ndarray  # [T, H, e]
    z: np.ndarray  # [T, H, e]
    output: np.ndarray  # [H, e, d]
    p: int = 0

    @property
    def length(self) -> int:
        return self.a.shape[-1]

    @property
    def queries(self) -> np.ndarray:
        """How many queries see each key."""
        return self.seen.sum(0)

    @property
    def later(self) -> list[int]:
        """The queries that see BOS, without BOS itself."""
        return [i for i in range(self.length) if i != self.p and self.seen[i, self.p]]


@dataclass(frozen=True)
class Output:
    """What the model says about one prompt."""

    logits: np.ndarray  # [T, V]
    tokens: np.ndarray  # [T]


def per_head(function):
    """Apply a function of one head's attention matrix to every head."""
    return lambda layer: np.array([function(layer, a) for a in layer.a])


def mean(numbers) -> float:
    numbers = list(numbers)
    return float(np.mean(numbers)) if numbers else np.nan


def entropy(shares) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


# The residual stream: which rows are large?


def largest(numbers, count):
    """The largest numbers and their places, filled up with NaN and −1."""
    places = np.argsort(-numbers, kind="stable")[:count]
    missing = count - len(places)
    return (
        np.concatenate([numbers[places], np.full(missing, np.nan)]),
        np.concatenate([places, np.full(missing, -1)]).astype(int),
    )


def single_activations(at: Depth):
    magnitude, place = largest(np.abs(at.x).ravel(), 3)
    return magnitude, place // at.x.shape[1], place % at.x.shape[1]


DEPTH = {
    "bos_norm": lambda at: at.norms[at.p],
    "other_norm_median": lambda at: np.median(at.others),
    "other_norm_mean": lambda at: np.mean(at.others),
    "other_norm_max": lambda at: np.max(at.others),
    "massive_activation_ratio": lambda at: at.norms[at.p] / np.median(at.others),
    "strongest_token": lambda at: np.argmax(at.norms),
    "top_norm": lambda at: largest(at.norms, 3)[0],
    "top_norm_token": lambda at: largest(at.norms, 3)[1],
    "frobenius_norm": lambda at: np.linalg.norm(at.x),
    "top_activation": lambda at: single_activations(at)[0],
    "top_activation_token": lambda at: single_activations(at)[1],
    "top_activation_dimension": lambda at: single_activations(at)[2],
    "median_activation": lambda at: np.median(np.abs(at.x)),
}


# The residual stream: how many directions does it use?


def shares(x) -> np.ndarray:
    """σⱼ² / Σ σ²: the share of every singular direction."""
    squares = np.linalg.svd(x, compute_uv=False) ** 2
    return squares / squares.sum()


def without_bos(at: Depth) -> np.ndarray:
    return np.delete(at.x, at.p, axis=0)


def directions(at: Depth) -> np.ndarray:
    centred = at.x - at.x.mean(0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(lengths > 0, lengths, 1)


def first_singular_values(at: Depth) -> np.ndarray:
    found = np.linalg.svd(at.x, compute_uv=False)[:8]
    return np.concatenate([found, np.zeros(8 - len(found))])


DEPTH |= {
    "matrix_entropy": lambda at: entropy(shares(at.x)),
    "effective_rank": lambda at: np.exp(entropy(shares(at.x))),
    "anisotropy": lambda at: shares(at.x)[0],
    "singular_values": first_singular_values,
    "matrix_entropy_without_bos": lambda at: entropy(shares(without_bos(at))),
    "effective_rank_without_bos": lambda at: np.exp(entropy(shares(without_bos(at)))),
    "anisotropy_without_bos": lambda at: shares(without_bos(at))[0],
    "direction_entropy": lambda at: entropy(shares(directions(at))),
}


# The residual stream: what does Theorem 1 need to know?


def along(x, direction) -> float:
    """‖X u‖² / ‖X‖_F² with u of length one; nothing lies along a row of zeros."""
    length = np.linalg.norm(direction)
    return sum((row @ direction / length) ** 2 for row in x) / (x**2).sum() if length else 0.0


def bos_alignment(at: Depth) -> float:
    """Σ ‖xᵢ‖² cos² θᵢ / R, from the angles to BOS."""
    cosines = without_bos(at) @ at.x[at.p] / (at.others * at.norms[at.p])
    return (at.others**2 * cosines**2).sum() / (at.others**2).sum()


def best_row(at: Depth):
    """The largest share along a row, and the first row that has it."""
    found = np.array([along(at.x, row) for row in at.x])
    return found.max(), int(np.flatnonzero(found >= found.max() - 1e-12)[0])


def spans(at: Depth):
    """Share and dimension of the span of the 1, 2, 3 largest rows, with a basis from their SVD."""
    found = []
    for k in (1, 2, 3):
        places = largest(at.norms, k)[1]
        if -1 in places:
            found.append((np.nan, -1))
            continue
        rows = at.x[places] / at.norms[places, None]
        _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
        basis = basis[sizes > 1e-10]
        found.append((sum(along(at.x, u) for u in basis), len(basis)))
    return np.array([share for share, _ in found]), np.array([size for _, size in found])


DEPTH |= {
    "bos_energy": lambda at: (at.x[at.p] ** 2).sum(),
    "rest_energy": lambda at: sum((row**2).sum() for row in without_bos(at)),
    "bos_alignment": bos_alignment,
    "tightest_share": lambda at: best_row(at)[0],
    "tightest_token": lambda at: best_row(at)[1],
    "top_rows_share": lambda at: spans(at)[0],
    "top_rows_dimension": lambda at: spans(at)[1],
}


# Attention: which key draws the queries that can see it?


def sink_score(at: Layer, a) -> float:
    """Σ_t A_tp / n_p."""
    return a[:, at.p].sum() / at.queries[at.p]


def strongest_sink_score(at: Layer, a) -> float:
    """max_k c_k / max_j n_j."""
    return max(a[:, k].sum() for k in range(at.length)) / at.queries.max()


def early_sink_score(at: Layer, a) -> float:
    """The same over the first half of the keys."""
    return max(a[:, k].sum() for k in range(max(1, at.length // 2))) / at.queries.max()


def top_sinks(at: Layer, a):
    """The three keys with most attention from the other queries that see them, (c_k − A_kk) / (n_k − 1)."""
    most = at.queries.max()
    found = [
        ((a[:, k].sum() - a[k, k]) / (n - 1), k) for k, n in enumerate(at.queries) if n > 1 and n >= most / 2
    ]
    found = sorted(found, key=lambda pair: -pair[0])[:3] + [(np.nan, -1)] * 3
    return np.array([score for score, _ in found[:3]]), np.array([k for _, k in found[:3]])


def to_sink(at: Layer, a) -> float:
    return mean(a[i, at.p] for i in at.later)


def to_itself(at: Layer, a) -> float:
    return mean(a[i, i] for i in at.later)


# Attention: over how many keys does a query spread?


def mixing_score(at: Layer, a) -> float:
    """Mean over the queries that see at least two keys of H(A_i) / ln nᵢ."""
    visible = at.seen.sum(1)
    return mean(entropy(a[i]) / np.log(visible[i]) for i in range(at.length) if visible[i] >= 2)


def colsum_concentration(at: Layer, a) -> float:
    """1 + Σ ĉ ln ĉ / ln T."""
    if at.length == 1:
        return 1.0
    return 1 - entropy(a.sum(0) / a.sum()) / np.log(at.length)


def value_drain(at: Layer) -> np.ndarray:
    """‖v_p‖ / median of the others, by head."""
    norms = np.linalg.norm(at.value, axis=-1)  # [T, H]
    return norms[at.p] / np.median(np.delete(norms, at.p, axis=0), axis=0)


def sink_output_share(at: Layer) -> np.ndarray:
    """Mean over the later queries that see BOS of ‖A_tp v_p W_O‖ / ‖z_t W_O‖, by head."""
    found = []
    for head in range(len(at.a)):
        through = at.output[head]
        parts = []
        for i in at.later:
            whole = np.linalg.norm(at.z[i, head] @ through)
            if whole > 0:
                parts.append(np.linalg.norm(at.a[head, i, at.p] * at.value[at.p, head] @ through) / whole)
        found.append(mean(parts))
    return np.array(found)


LAYER = {
    "mlp_bos_norm": lambda at: np.linalg.norm(at.mlp[at.p]),
    "attn_bos_norm": lambda at: np.linalg.norm(at.attention[at.p]),
    "sink_score": per_head(sink_score),
    "sink_queries": lambda at: at.queries[at.p],
    "strongest_sink_score": per_head(strongest_sink_score),
    "strongest_sink_token": per_head(lambda at, a: np.argmax(a.sum(0))),
    "early_sink_score": per_head(early_sink_score),
    "top_sink_score": per_head(lambda at, a: top_sinks(at, a)[0]),
    "top_sink_token": per_head(lambda at, a: top_sinks(at, a)[1]),
    "sink_identity_index": per_head(lambda at, a: to_sink(at, a) / (to_sink(at, a) + to_itself(at, a))),
    "sink_identity_mass": per_head(lambda at, a: to_sink(at, a) + to_itself(at, a)),
    "mixing_score": per_head(mixing_score),
    "mixing_score_raw": per_head(lambda at, a: mean(entropy(row) for row in a)),
    "colsum_concentration": per_head(colsum_concentration),
    "identity_score": per_head(lambda at, a: mean(a[i, i] for i in range(1, at.length))),
    "previous_token_score": per_head(lambda at, a: mean(a[i, i - 1] for i in range(1, at.length))),
    "row_mass": per_head(lambda at, a: mean(row.sum() for row in a)),
    "value_drain": value_drain,
    "sink_output_share": sink_output_share,
}


# The prediction.


def next_token_loss(at: Output) -> float:
    """Mean over t of −ln softmax(logits_t)[token_{t+1}]."""
    losses = []
    for t in range(len(at.tokens) - 1):
        row = at.logits[t] - at.logits[t].max()
        losses.append(np.log(np.exp(row).sum()) - row[at.tokens[t + 1]])
    return mean(losses)


def kl_divergence(clean, edited) -> float:
    """Mean over t of Σ_v p ln(p / q), p the prediction of the unedited model."""
    found = []
    for row, other in zip(clean, edited, strict=True):
        p, q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (row, other))  # logarithms
        found.append((np.exp(p) * (p - q)).sum())
    return mean(found)


def perplexity(at: Output) -> float:
    """exp of the loss; beyond float32, in which it is measured, infinite."""
    value = np.exp(min(next_token_loss(at), 700.0))
    return float("inf") if value > np.finfo(np.float32).max else value


OUTPUT = {
    "next_token_loss": next_token_loss,
    "perplexity": perplexity,
    "kl_divergence": lambda at: kl_divergence(at.logits, at.logits),  # nothing is edited there
}
