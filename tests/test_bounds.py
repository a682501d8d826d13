"""Are the bounds of Theorem 1 the right numbers, attained where they should be, and read with care?"""

import math

import numpy as np
import pytest
import torch
from handmade import result
from matrices import measured
from pure import evaluate

from mcr_lens import get_metric
from mcr_lens.results import load, save, tidy
from mcr_lens.schema import ResultSchemaError
from mcr_lens.theorem import ABOUT, NEEDED, bound_violations, bounds

pytestmark = pytest.mark.once


def read(*matrices, position: int = 0):
    """The bounds of matrices, by prompt; a single one comes as plain numbers."""
    b = bounds(measured(np.array(matrices, float), position=position)).squeeze("depth")
    return b if len(matrices) > 1 else b.squeeze("prompt")


def h(*shares: float) -> float:
    return -sum(p * math.log(p) for p in shares if p > 0)


def test_one_row_by_hand():
    """M = 100, and three rows of energy 4 at 60 degrees to BOS, so that α is one quarter."""
    x = np.zeros((4, 5))
    x[0, 0] = 10
    for i in (1, 2, 3):
        x[i, 0], x[i, i] = 1, math.sqrt(3)
    b = read(x)
    assert (b.bos_energy, b.rest_energy, b.rank_limit) == (100, pytest.approx(12), 4)
    assert b.bos_alignment == pytest.approx(1 / 4)
    assert b.energy_ratio == pytest.approx(100 / 12)
    p, c = 103 / 112, 100 / 12
    assert b.anisotropy_lower_bound == pytest.approx(p) == pytest.approx((c + 1 / 4) / (c + 1))
    assert b.strongest_energy_lower_bound == pytest.approx(103)
    assert b.bos_part == pytest.approx(100 / 103) and b.alignment_part == pytest.approx(3 / 103)
    assert b.dominance_lower_bound == pytest.approx((c + 1 / 4) / (1 - 1 / 4))
    assert b.entropy_upper_bound == pytest.approx(h(p, 1 - p) + (1 - p) * math.log(3))
    assert b.normalized_entropy_upper_bound == pytest.approx(b.entropy_upper_bound / math.log(4))


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (5, 12)])
def test_every_variable_against_numpy(shape):
    """Written out once more, from singular values and projections, for one random matrix with a long row."""
    x = np.random.default_rng(3).standard_normal(shape)
    x[2] *= 4
    b, total, r = read(x, position=2), (x**2).sum(), min(shape)
    p = np.linalg.svd(x, compute_uv=False) ** 2 / total
    share = ((x @ x[2]) ** 2).sum() / (x[2] @ x[2]) / total
    along = [((x @ row) ** 2).sum() / (row @ row) / total for row in x]
    order = np.argsort(-np.linalg.norm(x, axis=1))[:3]
    bases = [np.linalg.qr(x[order[:k]].T)[0] for k in (1, 2, 3)]
    large = [((x @ u) ** 2).sum() / total for u in bases]
    each = [large[0], large[1] - large[0], large[2] - large[1]]
    entropy, times = h(*p), int(1 / p[0])
    wanted = {
        "energy_ratio": (x[2] @ x[2]) / (total - x[2] @ x[2]),
        "rank_limit": r,
        "bos_part": (x[2] @ x[2]) / (share * total),
        "alignment_part": 1 - (x[2] @ x[2]) / (share * total),
        "strongest_energy": p[0] * total,
        "strongest_energy_lower_bound": share * total,
        "strongest_energy_slack": (p[0] - share) * total,
        "anisotropy_lower_bound": share,
        "anisotropy_slack": p[0] - share,
        "dominance": p[0] / p[1:].sum(),
        "dominance_lower_bound": share / (1 - share),
        "dominance_slack": (1 - share) / share - p[1:].sum() / p[0],
        "entropy_upper_bound": h(share, 1 - share) + (1 - share) * math.log(r - 1),
        "entropy_upper_slack": h(share, 1 - share) + (1 - share) * math.log(r - 1) - entropy,
        "entropy_lower_bound": h(*[p[0]] * times, 1 - times * p[0]),
        "entropy_lower_slack": entropy - h(*[p[0]] * times, 1 - times * p[0]),
        "leading_share": p.cumsum()[:3],
        "leading_share_slack": p.cumsum()[:3] - large,
        "top_rows_entropy_upper_bound": [
            h(s, 1 - s) + s * math.log(k) + (1 - s) * math.log(r - k) for k, s in enumerate(large, 1)
        ],
        "stepwise_entropy_upper_bound": [
            h(*each[:k], 1 - s) + (1 - s) * math.log(r - k) for k, s in enumerate(large, 1)
        ],
        "tightest_slack": p[0] - max(along),
        "tightest_entropy_upper_bound": h(max(along), 1 - max(along)) + (1 - max(along)) * math.log(r - 1),
    }
    for name in ("top_rows_entropy", "stepwise_entropy", "tightest_entropy"):
        wanted[f"{name}_slack"] = np.array(wanted[f"{name}_upper_bound"]) - entropy
    best = min(wanted[f"{n}_upper_bound"] for n in ("entropy", "tightest_entropy"))
    wanted["best_entropy_upper_bound"] = min(best, *wanted["stepwise_entropy_upper_bound"])
    wanted["best_entropy_slack"] = wanted["best_entropy_upper_bound"] - entropy
    wanted["normalized_entropy"] = entropy / math.log(r)
    for name in ("entropy_upper_bound", "entropy_lower_bound", "best_entropy_upper_bound"):
        wanted[f"normalized_{name}"] = wanted[name] / math.log(r)
    assert set(wanted) == set(ABOUT)
    for name, number in wanted.items():
        np.testing.assert_allclose(b[name], number, rtol=1e-10, atol=1e-13, err_msg=name)
    assert int(b.tightest_token) == int(np.argmax(along))


@pytest.mark.parametrize(
    ("times", "nats", "normalised"), [(100, 0.100, 0.022), (50, None, 0.073), (2, None, 0.995)]
)
def test_ceiling_of_a_massive_row_among_a_hundred(times, nats, normalised):
    """A hundred orthogonal tokens, BOS so many times as long: where the ceiling on the entropy lies."""
    x = np.eye(100)
    x[0, 0] = times
    b = read(x)
    assert b.normalized_entropy_upper_bound == pytest.approx(normalised, abs=5e-4)
    if nats is not None:
        assert b.entropy_upper_bound == pytest.approx(nats, abs=5e-4)


@pytest.mark.parametrize("length", [0.01, 0.5, 1.0, 3.0, 1e3])
def test_attained_by_one_row_and_equal_orthogonal_others(length):
    """Nothing can be said better: every bound by one row is an equality, also with p far below 1/r."""
    x = np.eye(12)
    x[0, 0] = length
    b = read(x)
    assert (b.anisotropy_lower_bound < 1 / 12) == (length < 1)
    assert b.entropy_upper_slack == pytest.approx(0, abs=1e-12)
    if length >= 1:
        for name in ("strongest_energy", "anisotropy", "dominance", "best_entropy", "tightest_entropy"):
            assert b[f"{name}_slack"] == pytest.approx(0, abs=1e-9), name


@pytest.mark.parametrize("k", [1, 2, 3])
def test_attained_by_several_rows(k):
    """k equal massive rows, equal orthogonal others: the bound by k rows is an equality, by fewer not."""
    x = np.eye(10)
    x[3 : 3 + k] *= 20
    b = read(x)
    assert b.top_rows_entropy_slack[k - 1] == pytest.approx(0, abs=1e-12)
    assert b.stepwise_entropy_slack[k - 1] == pytest.approx(0, abs=1e-12)
    assert b.leading_share_slack.values == pytest.approx(np.zeros(3), abs=1e-12)
    assert (b.top_rows_entropy_slack[: k - 1] > 0.1).all()
    assert (b.stepwise_entropy_slack[: k - 1] > 0.1).all()
    assert b.best_entropy_slack == pytest.approx(0, abs=1e-12)
    assert (b.entropy_upper_slack > 0.1) and int(b.tightest_token) == 3


def test_rows_of_different_size_are_kept_apart():
    """Rows of 30 and 5 times the others: as one lump they say less than the first alone, stepwise all."""
    x = np.eye(10)
    x[0] *= 30
    x[1] *= 5
    b = read(x)
    assert b.top_rows_entropy_upper_bound[1] > 3 * b.top_rows_entropy_upper_bound[0]
    assert b.stepwise_entropy_slack[1] == pytest.approx(0, abs=1e-12)
    assert b.stepwise_entropy_slack[0] > 0.01


@pytest.mark.parametrize(
    "shares", [(1.0,), (0.9, 0.1), (0.5, 0.5), (0.4, 0.4, 0.2), (1 / 3, 1 / 3, 1 / 3), (0.2,) * 5]
)
def test_least_entropy_is_attained(shares):
    """As many equal shares as fit, and what is left: below that no spectrum with this p₁ can go."""
    x = np.zeros((6, 6))
    np.fill_diagonal(x, np.sqrt([*shares, *[0] * (6 - len(shares))]))
    b = read(x)
    assert b.entropy_lower_bound == pytest.approx(h(*shares), abs=1e-12)
    assert b.entropy_lower_slack == pytest.approx(0, abs=1e-12)


def test_least_entropy_is_binary_from_one_half_on():
    """h(p₁), as long as one share is more than all others together."""
    b = read(np.diag([4.0, 1, 1, 1]))
    assert b.entropy_lower_bound == pytest.approx(h(16 / 19, 3 / 19))
    assert b.entropy_lower_slack > 0.1


# The edges of the definitions.


def test_zero_bos_row():
    """No direction: p = 0, and the entropy may be ln r, more than the formula's ln(r − 1) would allow."""
    x = np.concatenate([np.zeros((1, 4)), np.eye(4)])
    b = read(x)
    assert (b.bos_alignment, b.anisotropy_lower_bound, b.strongest_energy_lower_bound) == (0, 0, 0)
    assert (b.energy_ratio, b.dominance_lower_bound, b.dominance_slack) == (0, 0, math.inf)
    assert np.isnan(b.bos_part) and np.isnan(b.alignment_part)
    assert b.matrix_entropy == pytest.approx(math.log(4))
    assert b.entropy_upper_bound == pytest.approx(math.log(4))
    assert b.tightest_share == pytest.approx(1 / 4) and int(b.tightest_token) == 1
    assert bound_violations(measured(x[None])).empty


@pytest.mark.parametrize("x", [[[3.0, 4.0]], [[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]])
def test_nothing_but_bos(x):
    """R = 0: c and the bound on the dominance are infinite, p = 1, no entropy; α is a share of nothing."""
    b = read(x)
    assert np.isnan(b.bos_alignment)
    assert np.isinf(b.energy_ratio) and np.isinf(b.dominance_lower_bound)
    assert (b.anisotropy_lower_bound, b.bos_part, b.alignment_part) == (1, 1, 0)
    assert b.strongest_energy_slack == pytest.approx(0, abs=1e-12)
    for name in ("entropy_upper_bound", "entropy_lower_bound", "best_entropy_upper_bound", "matrix_entropy"):
        assert b[name] == 0
        assert f"normalized_{name}" not in b or b[f"normalized_{name}"] == 0
    assert b.top_rows_dimension.values.tolist() == ([1, -1, -1] if len(x) == 1 else [1, 1, 1])
    assert np.isnan(b.stepwise_entropy_upper_bound.values).tolist() == [False, len(x) == 1, len(x) == 1]
    assert bound_violations(measured([x])).empty


def test_collinear_rows():
    """α = 1: rank one whatever the lengths, and the bounds know."""
    x = np.outer([5.0, 1, -2, 0.1], [1.0, 2, 3])
    b = read(x)
    assert b.bos_alignment == pytest.approx(1) and b.bos_alignment <= 1
    assert b.dominance_lower_bound > 1e14
    assert b.entropy_upper_bound == pytest.approx(0, abs=1e-13)
    assert b.alignment_part == pytest.approx(5.01 / 30.01)
    assert b.top_rows_dimension.values.tolist() == [1, 1, 1]
    assert bound_violations(measured(x[None])).empty


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1)])
def test_rank_limit_of_one(shape):
    """r = 1: no entropy, and nothing divided by ln 1."""
    b = read(np.random.default_rng(0).standard_normal(shape))
    assert (b.rank_limit, b.normalized_entropy, b.normalized_entropy_upper_bound) == (1, 0, 0)
    assert b.entropy_upper_bound == pytest.approx(0, abs=1e-13)
    assert b.anisotropy_lower_bound == pytest.approx(1)


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (8, 2)])
def test_rows_that_span_everything(shape):
    """k' = r: P = 1, nothing is left over, and H ≤ ln k'."""
    x = np.random.default_rng(1).standard_normal(shape)
    b, r = read(x), min(shape)
    assert b.top_rows_dimension.values.tolist() == [1, 2, 3 if r == 3 else 2]
    assert b.top_rows_share[r - 1] == pytest.approx(1)
    assert b.top_rows_entropy_upper_bound[r - 1] == pytest.approx(math.log(r))
    assert bound_violations(measured(x[None])).empty


def test_nothing_at_all():
    """X = 0 has no spectrum: NaN, no violation, and its neighbours do not mind."""
    x = np.random.default_rng(2).standard_normal((2, 5, 4))
    alone = read(*x)
    x = np.concatenate([x, np.zeros((1, 5, 4))])
    b = read(*x)
    assert np.isnan(b.entropy_upper_bound[2]) and np.isnan(b.tightest_share[2])
    assert (int(b.tightest_token[2]), b.top_rows_dimension[2].values.tolist()) == (-1, [0, 0, 0])
    assert bound_violations(measured(x)).empty
    for name in b.data_vars:
        np.testing.assert_array_equal(b[name][:2], alone[name], err_msg=str(name))


def test_not_a_number_is_named():
    """NaN is nobody's proof: each bound of that prompt is listed, those of the others are not."""
    x = np.random.default_rng(2).standard_normal((3, 5, 4))
    x[1, 2, 3] = np.nan
    assert np.isnan(bounds(measured(x)).best_entropy_upper_bound.values[:, 0]).tolist() == [0, 1, 0]
    ds, broken = measured(x), bound_violations(measured(x))
    assert ds.tightest_token[1] == -1 and (ds.top_rows_dimension[1] == -1).all()
    assert set(broken.prompt) == {1} and set(broken.bound) >= {"anisotropy", "entropy_upper", "entropy_lower"}
    assert broken.slack.isna().all()


# The quantities underneath.


def test_energy_is_not_lost_next_to_a_massive_row():
    """c = 10²⁰: the little that is left still counts, digit by digit."""
    x = np.eye(5)
    x[0, 0] = 1e10
    b, left = read(x), 4e-20
    assert b.rest_energy == 4 and b.bos_energy == pytest.approx(1e20)
    assert b.dominance_lower_bound == pytest.approx(1e20 / 4)
    assert b.entropy_upper_bound == pytest.approx(left * (1 - math.log(left)) + left * math.log(4))


@pytest.mark.parametrize(("angle", "dimension"), [(1e-3, 2), (1e-7, 2), (1e-13, 1), (0.0, 1)])
def test_nearly_collinear_massive_rows(angle, dimension):
    """A second massive row adds a dimension if it leaves the first by more than rounding."""
    x = np.random.default_rng(4).standard_normal((7, 9))
    x[3] = 1e4 * x[1]
    x[1] = 1e4 * x[1] + 1e4 * angle * x[5]
    b = read(x)
    assert b.top_rows_dimension.values.tolist() == [1, dimension, dimension + 1]
    assert (b.top_rows_entropy_slack > -1e-11).all() and (b.leading_share_slack > -1e-13).all()


def test_tightest_row_need_not_be_bos_nor_the_longest():
    """Many rows along one direction outvote a longer row that stands alone; the first of equals is named."""
    x = np.zeros((12, 6))
    x[0, 0], x[1, 1], x[2:, 2] = 1.0, 2.5, 1.0
    b = read(x)
    assert int(b.tightest_token) == 2
    assert b.tightest_share == pytest.approx(10 / 17.25)
    assert b.tightest_slack == pytest.approx(0, abs=1e-12)
    assert b.best_entropy_upper_bound < b.entropy_upper_bound


def test_the_smaller_gram_matrix_makes_no_difference():
    """More tokens than dimensions, or fewer: the same share, by the definition."""
    for shape in ((9, 4), (4, 9)):
        x = torch.from_numpy(np.random.default_rng(6).standard_normal((1, *shape)))
        along = [float((x[0] @ (row / row.norm())).square().sum() / x.square().sum()) for row in x[0]]
        assert float(evaluate(get_metric("tightest_share"), {"resid": x})) == pytest.approx(max(along))
        assert int(evaluate(get_metric("tightest_token"), {"resid": x})) == int(np.argmax(along))


# Reading.


def test_axes_labels_and_files(tmp_path):
    """A result like any other: labelled, without axes that nothing lies on, saved, loaded and made long."""
    ds = result(n_tokens=(20, 12, 1))
    before = ds.copy(deep=True)
    b = bounds(ds)
    assert ds.identical(before)
    assert set(b.data_vars) == {*ABOUT, *NEEDED} - {"singular_values"}
    assert set(b.dims) == {"prompt", "depth", "top"} and b.rank_limit.dims == ("prompt",)
    assert b.attrs == ds.attrs and b.text.equals(ds.text)
    assert b.rank_limit.values.tolist() == [16, 12, 1]
    for name, array in b.data_vars.items():
        assert {"units", "long_name", "source"} <= set(array.attrs), name
        assert set(array.dims) <= {"prompt", "depth", "top"}
    assert b.entropy_upper_bound.units == "nats" and "Corollary 2" in b.entropy_upper_bound.source
    assert b.stepwise_entropy_upper_bound.source == "this library"
    assert load(save(b, tmp_path / "bounds.nc")).equals(b)
    assert len(tidy(b, "dominance_slack")) == 12


def test_one_depth_and_no_prompt():
    """What was selected before can be read as well."""
    ds = measured(np.random.default_rng(7).standard_normal((3, 6, 5)))
    assert float(bounds(ds.sel(depth=0).isel(prompt=[1])).dominance[0]) == float(bounds(ds).dominance[1, 0])
    assert bound_violations(ds.sel(depth=0)).empty
    assert bound_violations(ds.isel(prompt=[])).empty


def test_tampered_results_are_found():
    """A violation of 10⁻¹¹ is none of rounding: which bound, where, by how much."""
    ds = measured(np.random.default_rng(8).standard_normal((4, 9, 5)))
    assert list(bound_violations(ds)) == ["bound", "prompt", "depth", "rows", "slack", "tolerance"]
    ceiling = bounds(ds).stepwise_entropy_upper_bound
    ds.matrix_entropy[2] = ceiling[2, 0, 1] + 1e-11
    broken = bound_violations(ds).set_index("bound")
    assert set(broken.prompt) == {2} and set(broken.depth) == {0}
    row = broken[broken.rows == 2].loc["stepwise_entropy"]
    assert row.slack == pytest.approx(-1e-11, rel=1e-3) and 0 < row.tolerance < 2e-12
    assert bound_violations(ds, rounding=1e-6).bound.eq("stepwise_entropy").sum() <= 1
    for name, factor in [("anisotropy", 0.1), ("singular_values", 0.1), ("tightest_share", 3.0)]:
        fresh = measured(np.random.default_rng(8).standard_normal((4, 9, 5)))
        assert not bound_violations(fresh.assign({name: fresh[name] * factor})).empty, name


def test_what_is_refused():
    """In words: what is missing, what is too much, what is no number."""
    ds = measured(np.random.default_rng(9).standard_normal((2, 6, 5)))
    with pytest.raises(ResultSchemaError, match="has no bos_energy; measure again with metrics that include"):
        bounds(ds.drop_vars("bos_energy"))
    with pytest.raises(ResultSchemaError, match=r"has no top_rows_share, matrix_entropy; measure again"):
        bound_violations(ds.drop_vars(["top_rows_share", "matrix_entropy"]))
    with pytest.raises(ResultSchemaError, match=r"expected a Dataset from mcr_lens\.measure, got dict"):
        bounds({})  # pyright: ignore[reportArgumentType]
    several = ds.expand_dims(condition=["clean", "ablated"])
    for function in (bounds, bound_violations):
        with pytest.raises(
            ResultSchemaError, match=r"\(clean, ablated\); pick one .*condition\(ds, 'clean'\)"
        ):
            function(several)
    assert bounds(several.sel(condition="clean")).dominance.equals(
        bounds(ds).dominance.assign_coords(condition="clean")
    )
    for wrong in (-1e-9, math.nan):
        with pytest.raises(ValueError, match=r"rounding=.*pass the error of a share of the energy, such as"):
            bound_violations(ds, rounding=wrong)
