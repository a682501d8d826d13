"""Does the dose-response show every dose where it belongs, with the numbers of the result?"""

import json

import numpy as np
import pytest
import xarray as xr
from test_plots import USUAL, fake_result, means, panel_titles

from mcr_lens.conditions import join_conditions
from mcr_lens.plots.doses import plot_dose_response
from mcr_lens.schema import ResultSchemaError
from mcr_lens.statistics import confidence_interval
from mcr_lens.summaries import ShortPromptWarning, normalized_entropy, sink_rate

DOSES = (1.0, 0.5, 0.0, -0.5, 1.5)


def scaled(doses=DOSES, *, n_layers: int = 8, prompts: int = 5, names=(*USUAL, "next_token_loss"), **options):
    """The norm ratio grows with |λ|, the entropy at depth 2 falls with it, the loss rises without it."""
    parts = {}
    for dose in doses:
        ds = fake_result(n_layers, prompts=prompts, massive=False, names=names, **options)
        spread = np.linspace(0.9, 1.1, prompts)
        if "massive_activation_ratio" in ds:
            ds["massive_activation_ratio"][:, 2:4] = (2 + 400 * abs(dose)) * spread[:, None]
        if "matrix_entropy" in ds:
            ds["matrix_entropy"][:, 2 % (n_layers + 1)] *= 1 - 0.5 * abs(dose)
        if "sink_score" in ds:
            ds["sink_score"][:, 0, :2] = abs(dose) * spread[:, None]
        if "next_token_loss" in ds:
            ds["next_token_loss"][:] = (2 + abs(1 - dose)) * spread
        edit = {"kind": "scale", "site": "mlp_out", "layers": [0], "positions": [0], "factor": dose}
        parts[f"λ = {dose:g}"] = ds.assign_attrs(interventions=json.dumps([edit]))
    return join_conditions(parts).assign_coords(factor=("condition", list(doses)))


def bands(fig) -> list:
    return [trace for trace in fig.data if trace.fill]


def test_numbers_are_those_of_the_result_at_its_doses():
    ds = scaled()
    fig = plot_dose_response(ds)
    inorder = ds.sortby("factor")
    entropy = normalized_entropy(inorder).isel(depth=2)
    wanted = [
        inorder.massive_activation_ratio.max("depth"), entropy, sink_rate(inorder).mean("layer"),
        inorder.next_token_loss,
    ]  # fmt: skip
    assert len(means(fig)) == 4
    for line, band, array in zip(means(fig), bands(fig), wanted, strict=True):
        found = confidence_interval(array)
        np.testing.assert_array_equal(line.x, [-0.5, 0, 0.5, 1, 1.5])
        np.testing.assert_allclose(line.y, found["mean"])
        np.testing.assert_allclose(line.customdata[:, 0], found.low)
        np.testing.assert_allclose(band.y, found.high)


def test_the_order_of_the_doses_does_not_matter():
    one, other = plot_dose_response(scaled()), plot_dose_response(scaled(sorted(DOSES)))
    for a, b in zip(means(one), means(other), strict=True):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.y, b.y)


def test_the_depth_of_the_entropy_is_that_of_the_model_as_it_is():
    assert "<b>Entropy at depth 2 (lowest at λ = 1)</b>" in panel_titles(plot_dose_response(scaled()))
    without = plot_dose_response(scaled((0.0, 0.75)))
    assert "<b>Entropy at depth 2 (lowest at λ = 0.75)</b>" in panel_titles(without)


def test_cut_and_whole_are_marked_in_every_panel_and_in_sight():
    for doses in (DOSES, (0.5,), (3.0, 2.0)):
        fig = plot_dose_response(scaled(doses))
        marks = sorted((shape.x0, shape.x1) for shape in fig.layout.shapes)
        assert marks == [(0, 0)] * 4 + [(1, 1)] * 4
        low, high = fig.layout.xaxis.range
        assert low < min(0, *doses) and high > max(1, *doses)
    assert fig.layout.xaxis4.title.text == "dose λ (1: as the model is, 0: cut)"


def test_what_was_not_measured_is_left_out():
    fig = plot_dose_response(scaled(names=("sink_score", "next_token_loss")))
    assert [title.split(":")[0] for title in panel_titles(fig)] == [
        "<b>Mean sink rate",
        "<b>Next-token loss</b>",
    ]
    with pytest.raises(ValueError, match="none of massive_activation_ratio, matrix_entropy, sink_score"):
        plot_dose_response(scaled(names=("anisotropy",)))


def test_one_layer_one_prompt_one_dose():
    fig = plot_dose_response(scaled((1.0,), n_layers=1, prompts=1))
    assert len(means(fig)) == 4 and not bands(fig)
    assert not any("interval" in (trace.name or "") for trace in fig.data)


def test_what_is_not_finite_is_left_out_prompt_by_prompt():
    ds = scaled(prompts=3)
    ds["massive_activation_ratio"][:, 0] = np.nan
    ds["massive_activation_ratio"][0, 1, 2] = np.inf
    ds["next_token_loss"][0] = np.nan
    ratio, _, _, loss = means(plot_dose_response(ds))
    left = ds.massive_activation_ratio[0, [1, 2]].values
    left[0, 2] = left[0, 3]
    assert ratio.y[3] == pytest.approx(left.max(1).mean())
    assert np.isnan(loss.y[3]) and np.isfinite(np.delete(loss.y, 3)).all()


def test_the_subtitle_says_what_is_scaled():
    text = plot_dose_response(scaled()).layout.title.text.replace("<br>", " ")
    assert "5 prompts; scaled by λ: what the MLP writes, layer 0, position 0" in text
    ds = scaled()
    made = {name: [{"kind": "other"}] for name in ds.condition.values}
    bare = plot_dose_response(ds.assign_attrs(interventions=json.dumps(made))).layout.title.text
    assert "5 prompts<" in bare


def test_short_prompts_are_warned_about():
    with pytest.warns(ShortPromptWarning):
        plot_dose_response(scaled(n_tokens=6))


def test_hostile_names_are_text():
    fig = plot_dose_response(scaled(model="<a href='https://evil.example'>x</a>"))
    assert "<a" not in fig.layout.title.text


def test_refusals():
    ds = scaled()
    with pytest.raises(ResultSchemaError, match="no axis `condition`"):
        plot_dose_response(fake_result())
    with pytest.raises(ResultSchemaError, match=r"no doses .*pass what mcr_lens.dose_response returns"):
        plot_dose_response(ds.drop_vars("factor"))
    with pytest.raises(ResultSchemaError, match="does not come from mcr_lens"):
        plot_dose_response(xr.Dataset())
    with pytest.raises(ResultSchemaError, match="holds no prompts"):
        plot_dose_response(ds.isel(prompt=[]))
    for wrong in ([1.0, 1.0, 0.0, 0.5, 2.0], [np.nan, 1.0, 0.0, 0.5, 2.0]):
        with pytest.raises(ValueError, match="every dose must be a finite number and come once"):
            plot_dose_response(ds.assign_coords(factor=("condition", wrong)))
