"""Where attention goes: do the shares agree with attention patterns taken apart by hand?"""

import numpy as np
import pytest
import xarray as xr
from test_plots import HEADS, USUAL, fake_result

from mcr_lens.conditions import join_conditions
from mcr_lens.phases import detect_phases
from mcr_lens.plots.shares import attention_shares, plot_attention_shares
from mcr_lens.schema import ResultSchemaError
from mcr_lens.statistics import confidence_interval

NAMES = (*USUAL, "identity_score", "previous_token_score", "row_mass", "sink_queries")
PARTS = ["sink", "self", "previous", "other"]


def patterns(T: int, shape: tuple[int, ...], *, window: int | None = None, lost: bool = False, seed: int = 0):
    """Random attention, causal, with a window, with rows that lack mass: [..., query, key]."""
    g = np.random.default_rng(seed)
    scores = np.exp(2 * g.normal(size=(*shape, T, T)))
    scores[..., 0] *= 5
    query, key = np.indices((T, T))
    scores *= (key <= query) & (query - key < (window or T))
    extra = 3 * g.random((*shape, T, 1)) if lost else 0.0
    return scores / (scores.sum(-1, keepdims=True) + extra)


def measured(A: np.ndarray, *, window: int | None = None, position: int = 0, **options) -> xr.Dataset:
    """The result of a model with these patterns [prompt, layer, head, query, key], by its definitions."""
    prompts, n_layers, _, T, _ = A.shape
    ds = fake_result(n_layers, prompts=prompts, n_tokens=T, names=NAMES, position=position, **options)
    n = min(window or T, T - position)
    column, own = A[..., position], np.diagonal(A, axis1=-2, axis2=-1)
    seeing = slice(position + 1, position + n)
    sink, identity = column[..., seeing].mean(-1), own[..., seeing].mean(-1)
    values = {
        "sink_score": column.sum(-1) / n, "sink_identity_mass": sink + identity,
        "sink_identity_index": sink / (sink + identity), "identity_score": own[..., 1:].mean(-1),
        "previous_token_score": np.diagonal(A, -1, -2, -1).mean(-1), "row_mass": A.sum((-2, -1)) / T,
    }  # fmt: skip
    for name, value in values.items():
        ds[name][:] = value
    ds["sink_queries"][:] = n
    return ds


def truth(A: np.ndarray, position: int = 0) -> dict[str, np.ndarray]:
    """The split of the queries t ≥ 1, counted one by one."""
    T = A.shape[-1]
    found = {part: np.zeros(A.shape[:-2]) for part in [*PARTS, "nowhere"]}
    for t in range(1, T):
        for k in range(T):
            part = "other"
            if k == t:
                part = "self"
            elif k == position:
                part = "sink"
            elif k == t - 1:
                part = "previous"
            found[part] += A[..., t, k] / (T - 1)
        found["nowhere"] += (1 - A[..., t, :].sum(-1)) / (T - 1)
    return found


CASES = [
    {}, {"T": 2}, {"T": 3}, {"window": 4}, {"lost": True}, {"lost": True, "window": 4},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shares_are_those_of_the_pattern_up_to_the_stated_overlap(case):
    case = {"T": 12, **case}
    A = patterns(shape=(3, 2, HEADS), **case)
    shares, true = attention_shares(measured(A, window=case.get("window"))), truth(A)
    for part in ("sink", "self", "nowhere"):
        np.testing.assert_allclose(shares[part], true[part], atol=1e-12)
    np.testing.assert_allclose(sum(shares[part] for part in [*PARTS, "nowhere"]), 1)
    excess = shares.previous - true["previous"]
    assert (excess > -1e-12).all() and (excess <= shares.overlap + 1e-12).all()
    np.testing.assert_allclose(excess, true["other"] - shares.other, atol=1e-12)
    assert (shares.overlap <= 1 / (case["T"] - 1) + 1e-12).all()
    if case["T"] == 2:  # one query, which sees BOS and itself: nothing is left open
        np.testing.assert_allclose(shares.overlap, 0, atol=1e-12)


def test_another_position_stands_for_bos():
    A = patterns(12, (2, 2, HEADS))
    shares, true = attention_shares(measured(A, position=3)), truth(A, position=3)
    for part in ("sink", "self"):
        np.testing.assert_allclose(shares[part], true[part], atol=1e-12)
    excess = shares.previous - true["previous"]
    assert (excess > -1e-12).all() and (excess <= shares.overlap + 1e-12).all()


def test_a_head_that_looks_elsewhere_has_no_sink_share():
    ds = measured(patterns(12, (2, 2, HEADS)))
    ds["sink_identity_mass"][:, 0, 0] = 0.0
    ds["sink_identity_index"][:, 0, 0] = np.nan
    assert (attention_shares(ds).sink[:, 0, 0] == 0).all()


def bars(fig) -> dict:
    return {trace.legendgroup: trace for trace in fig.data if trace.type == "bar"}


@pytest.mark.parametrize("n_layers", [1, 5, 80])
def test_bars_are_the_means_and_stack_to_one(n_layers):
    ds = measured(patterns(8, (3, n_layers, HEADS)))
    shares, drawn = attention_shares(ds), bars(plot_attention_shares(ds))
    assert list(drawn) == PARTS  # a softmax loses nothing
    for part, trace in drawn.items():
        np.testing.assert_allclose(trace.y, shares[part].mean(["prompt", "head"]))
        np.testing.assert_allclose(trace.x, np.arange(n_layers) + 0.5)
    np.testing.assert_allclose(sum(np.asarray(trace.y) for trace in drawn.values()), 1)


def test_hover_says_share_interval_and_overlap():
    ds = measured(patterns(8, (11, 3, HEADS)))
    shares, drawn = attention_shares(ds), bars(plot_attention_shares(ds))
    found = confidence_interval(shares.previous.mean("head")).isel(layer=1)
    overlap = float(shares.overlap.isel(layer=1).mean())
    assert drawn["previous"].hovertext[1] == (
        f"block 1, the token before<br><b>{100 * found['mean']:.1f} %</b> ({100 * found.low:.1f} % to "
        f"{100 * found.high:.1f} %)<br>up to {100 * overlap:.1f} % may be BOS"
    )
    assert "may be" not in drawn["sink"].hovertext[1]


def test_mass_that_goes_nowhere_has_a_share_of_its_own():
    fig = plot_attention_shares(measured(patterns(8, (3, 4, HEADS), lost=True)))
    drawn = bars(fig)
    assert list(drawn) == [*PARTS, "nowhere"] and drawn["nowhere"].name == "no token (learned sink)"
    rounded = measured(patterns(8, (3, 4, HEADS)))
    rounded["row_mass"][:] = 0.996  # a softmax in bfloat16
    assert list(bars(plot_attention_shares(rounded))) == PARTS
    np.testing.assert_allclose(sum(np.asarray(t.y) for t in bars(plot_attention_shares(rounded)).values()), 1)


def test_the_subtitle_states_the_largest_overlap():
    ds = measured(patterns(8, (3, 4, HEADS)))
    most = float(attention_shares(ds).overlap.mean(["prompt", "head"]).max())
    title = plot_attention_shares(ds).layout.title.text.replace("<br>", " ")
    assert f"up to {100 * most:.1f} % counted as the token before may be BOS" in title


def test_mixing_score_stands_below_or_is_said_to_be_missing():
    ds = measured(patterns(8, (3, 4, HEADS)))
    fig = plot_attention_shares(ds)
    (line,) = [t for t in fig.data if t.type == "scatter" and t.hovertemplate]
    np.testing.assert_allclose(line.y, ds.mixing_score.mean(["prompt", "head"]))
    assert line.yaxis == "y2"
    bare = plot_attention_shares(ds.drop_vars("mixing_score"))
    assert "mixing score: not measured" in bare.layout.annotations[0].text.replace("<br>", " ")
    assert "yaxis2" not in bare.layout and bare.layout.height < fig.layout.height


def test_phases_are_those_of_the_profile():
    ds = measured(patterns(8, (3, 8, HEADS)))
    found = detect_phases(ds)
    fig = plot_attention_shares(ds)
    spans = {s.name: (s.x0, s.x1) for s in fig.layout.shapes if s.showlegend}
    assert spans["compress"] == (found.compress.start - 0.5, found.compress.stop - 0.5)
    below = [(s.x0, s.x1) for s in fig.layout.shapes if not s.showlegend]
    assert sorted(below) == sorted(spans.values())
    assert min(s.y0 for s in fig.layout.shapes if s.showlegend) > 1  # shares do not hide it


def test_heads_and_prompts_without_numbers_are_left_out():
    ds = measured(patterns(8, (3, 4, HEADS)))
    ds["identity_score"][1, :, 2] = np.nan
    ds["row_mass"][:, 3] = np.nan
    drawn = bars(plot_attention_shares(ds))
    total = np.sum([trace.y for trace in drawn.values()], 0)
    np.testing.assert_allclose(total[:3], 1)
    assert np.isnan(total[3])


def test_refusals():
    ds = measured(patterns(8, (3, 4, HEADS)))
    with pytest.raises(ResultSchemaError, match=r"several conditions \(clean, ablated\); pick one with"):
        plot_attention_shares(join_conditions({"clean": ds, "ablated": ds}))
    with pytest.raises(ResultSchemaError, match="the result has no identity_score, row_mass; measure again"):
        plot_attention_shares(ds.drop_vars(["identity_score", "row_mass"]))
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        plot_attention_shares(ds.isel(prompt=[]))
    ds["identity_score"][:] = np.nan
    with pytest.raises(ValueError, match="no score is finite; measure longer prompts"):
        plot_attention_shares(ds)
    with pytest.raises(ValueError, match="every prompt has a single token, which attends to itself"):
        plot_attention_shares(ds.assign_coords(n_tokens=("prompt", [1, 1, 1])))


def test_names_cannot_put_links_into_a_figure():
    ds = measured(patterns(8, (3, 4, HEADS)), model='<a href="https://evil.example">x</a>')
    fig = plot_attention_shares(ds)
    fig.layout.meta = None  # data for whoever places the figure, not drawn
    assert "&lt;a" in fig.to_json() and "\\u003ca" not in fig.to_json()


def test_dark_changes_the_template_alone():
    ds = measured(patterns(8, (3, 4, HEADS)))
    light, dark = (plot_attention_shares(ds, dark=d) for d in (False, True))
    assert light.layout.template != dark.layout.template
    assert light.data == dark.data and light.layout.shapes == dark.layout.shapes
