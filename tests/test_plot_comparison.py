"""Does the figure of an ablation show effect and price, and keep in sight what coincides?"""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from test_plots import USUAL, fake_result, means

from mcr_lens.conditions import condition, join_conditions
from mcr_lens.plots import plot_profile
from mcr_lens.plots.conditions import plot_comparison
from mcr_lens.schema import ResultSchemaError
from mcr_lens.statistics import paired_difference

EFFECTS = {"clean": 0.0, "cut": 0.5, "other token": 0.0, "random direction": 0.2}


def compared(
    n_layers: int = 8, *, prompts: int = 6, names=tuple(EFFECTS), loss: bool = True, **attrs
) -> xr.Dataset:
    """The cut takes the phenomenon away, the other token does nothing, the random direction little."""
    parts = {}
    for name in names:
        ds = fake_result(
            n_layers, prompts=prompts, massive="cut" not in name,
            names=(*USUAL, "next_token_loss") if loss else USUAL, **attrs,
        )  # fmt: skip
        if "random" in name:
            ds["massive_activation_ratio"] = ds.massive_activation_ratio * 0.6
        if loss:
            noise = np.linspace(0, 0.1, prompts) ** 2
            ds["next_token_loss"][:] = np.linspace(2, 3, prompts) + EFFECTS.get(name, 1.0) + noise
            if name == "clean":
                ds["next_token_loss"][:] = np.linspace(2, 3, prompts)
        parts[name] = ds
    return join_conditions(parts)


def legend(fig) -> list[str]:
    return [trace.name for trace in fig.data if trace.showlegend]


def bars(fig):
    return next((trace for trace in fig.data if trace.type == "bar"), None)


def lines(fig, name: str) -> list:
    return [trace for trace in means(fig) if trace.legendgroup == f"series {name}"]


def notes(fig) -> list[str]:
    return [note.text for note in fig.layout.annotations]


@pytest.mark.parametrize("n_layers", [1, 8, 80])
def test_lines_are_those_of_the_profile(n_layers):
    ds = compared(n_layers)
    fig, profile = plot_comparison(ds), plot_profile(ds)
    labels = {"other token": "other token (≈ clean)"} | ({"cut": "cut (≈ clean)"} if n_layers == 1 else {})
    for name in EFFECTS:
        drawn, wanted = lines(fig, labels.get(name, name)), lines(profile, name)
        assert len(drawn) == len(wanted) == 3
        for one, other in zip(drawn, wanted, strict=True):
            np.testing.assert_array_equal(one.x, other.x)
            np.testing.assert_array_equal(one.y, other.y)


def test_the_baseline_is_the_wide_line_below_the_others():
    fig = plot_comparison(compared())
    assert legend(fig)[0] == "clean"
    for row in ("y", "y2", "y3"):
        drawn = [trace for trace in means(fig) if trace.yaxis == row]
        assert [t.legendgroup for t in drawn].index("series clean") == 0
        assert drawn[0].line.width > 2 * max(trace.line.width for trace in drawn[1:])


def test_a_condition_that_coincides_is_named_and_dashed_on_top():
    fig = plot_comparison(compared(names=(*EFFECTS, "cut again")))
    assert legend(fig)[:5] == [
        "clean",
        "cut",
        "other token (≈ clean)",
        "random direction",
        "cut again (≈ cut)",
    ]
    dashes = {t.legendgroup.removeprefix("series "): t.line.dash for t in means(fig)}
    assert dashes["cut"] == dashes["random direction"] == "solid"
    assert len({"solid", dashes["other token (≈ clean)"], dashes["cut again (≈ cut)"]}) == 3
    order = [t.legendgroup for t in means(fig) if t.yaxis == "y"]
    assert order.index("series cut") < order.index("series cut again (≈ cut)")


def test_many_conditions_have_lines_of_their_own():
    ds = compared(names=("clean", *(f"cut {i}" for i in range(14))))
    scale = xr.DataArray(np.linspace(1, 9, 15), dims="condition")
    ds["massive_activation_ratio"] = ds.massive_activation_ratio * scale
    found = {(trace.line.color, trace.line.dash) for trace in means(plot_comparison(ds))}
    assert len(found) == 15


def test_a_condition_that_differs_anywhere_does_not_coincide():
    ds = compared()
    ds["sink_score"][2, :, 4] = 0.0
    assert "other token" in legend(plot_comparison(ds))
    ds = compared()
    ds["matrix_entropy"][2, :, 4] = np.nan
    assert "other token" in legend(plot_comparison(ds))


def test_bars_are_paired_differences_of_the_loss():
    ds = compared()
    fig = plot_comparison(ds)
    before = condition(ds, "clean").next_token_loss
    for place, name in enumerate(list(EFFECTS)[1:]):
        wanted = paired_difference(condition(ds, name).next_token_loss, before)
        assert bars(fig).x[place] == float(wanted["mean"])
        assert bars(fig).error_x.array[place] == pytest.approx(float(wanted.high - wanted["mean"]))
        assert bars(fig).error_x.arrayminus[place] == pytest.approx(float(wanted["mean"] - wanted.low))
    assert "cut: <b>+0.504</b>" in " ".join(notes(fig))
    colors = {t.legendgroup.removeprefix("series "): t.line.color for t in means(fig)}
    assert list(bars(fig).marker.color) == [
        colors[n] for n in ("cut", "other token (≈ clean)", "random direction")
    ]


def test_another_baseline_turns_the_sign():
    fig = plot_comparison(compared(), baseline="cut")
    assert legend(fig)[0] == "cut"
    assert bars(fig).x[0] == pytest.approx(-0.5 - np.mean(np.linspace(0, 0.1, 6) ** 2))
    assert any(note.startswith("clean: <b>−0.504</b>") for note in notes(fig))
    assert "<b>What it costs: next-token loss − cut</b>" in notes(fig)


def test_without_loss_there_is_no_price():
    fig = plot_comparison(compared(loss=False))
    assert bars(fig) is None and len(list(fig.select_yaxes())) == 3
    ds = compared()
    ds["next_token_loss"][:] = np.nan
    assert bars(plot_comparison(ds)) is None


def test_one_prompt_has_a_price_without_interval():
    fig = plot_comparison(compared(prompts=1))
    assert "cut: <b>+0.500</b>" in notes(fig)


def test_a_loss_that_is_missing_is_said():
    ds = compared()
    ds["next_token_loss"][1] = np.nan
    assert "cut: <b>–</b>" in notes(plot_comparison(ds))


@pytest.mark.parametrize("many", [2, 4, 12])
def test_panels_do_not_overlap(many):
    names = ["clean", *(f"condition {i}" for i in range(1, many))]
    fig = plot_comparison(compared(names=names))
    domains = sorted(axis.domain for axis in fig.select_yaxes())
    assert domains[0][0] == 0 and domains[-1][1] == pytest.approx(1)
    inner = fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    for (_, top), (bottom, _) in pairwise(domains):
        assert (bottom - top) * inner > 50  # ticks, axis title, panel title
    assert (domains[0][1] - domains[0][0]) * inner == pytest.approx(40 * (many - 1))
    assert fig.layout.legend.y * fig.layout.height < fig.layout.margin.b


def test_hostile_names_are_text():
    fig = plot_comparison(
        compared(names=("clean", "<a href='https://evil.example'>cut</a>"), model="<b>m</b>")
    )
    texts = [fig.layout.title.text, *notes(fig), *legend(fig)]
    texts += [trace.hovertemplate for trace in means(fig)]
    assert not any("<a" in text or "<b>m" in text for text in texts)


def test_refusals():
    ds = compared()
    with pytest.raises(ResultSchemaError, match=r"no axis `condition`; pass what mcr_lens\.compare returns"):
        plot_comparison(fake_result())
    with pytest.raises(ResultSchemaError, match="does not come from mcr_lens"):
        plot_comparison(xr.Dataset())
    with pytest.raises(ValueError, match=r"baseline='λ = 1' is not a condition.*holds clean, cut"):
        plot_comparison(ds, baseline="λ = 1")
    with pytest.raises(ValueError, match="holds 'clean' alone; compare at least one other"):
        plot_comparison(ds.isel(condition=[0]))
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        plot_comparison(ds.isel(prompt=[]))
    with pytest.raises(ValueError, match="none of massive_activation_ratio"):
        plot_comparison(ds[["anisotropy", "next_token_loss"]])
