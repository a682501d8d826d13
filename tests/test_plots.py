"""Figures from hand-made results: what stands where, what is refused, what is safe."""

import importlib
import math
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from mcr_lens._optional import require
from mcr_lens.metrics import get_metric
from mcr_lens.plots import plot_profile
from mcr_lens.reading import caution, number, reading, subject
from mcr_lens.results import to_dataset
from mcr_lens.schema import ResultSchemaError
from mcr_lens.statistics import confidence_interval
from mcr_lens.tables import profile_table

T, WIDTH, HEADS = 32, 64, 4
USUAL = (
    "bos_norm", "massive_activation_ratio", "matrix_entropy", "matrix_entropy_without_bos", "anisotropy",
    "sink_score", "mixing_score", "sink_identity_index", "sink_identity_mass", "mlp_bos_norm",
    "attn_bos_norm", "top_activation", "strongest_token",
)  # fmt: skip


def fake_result(
    n_layers: int = 8,
    *,
    prompts: int = 3,
    massive: bool = True,
    names: tuple[str, ...] = USUAL,
    bos: bool = True,
    n_tokens: int = T,
    text: str = "A quiet afternoon",
    token: str = "<bos>",
    **attrs: object,
) -> xr.Dataset:
    """A result whose block 1 writes a massive BOS (ratio 400), with valley and sinks; or without all that."""
    depth = np.arange(n_layers + 1)
    on = (depth >= 2) & (depth < n_layers) & massive
    spread = np.linspace(0.9, 1.1, prompts)[:, None]
    ratio = np.where(on, 400.0, 2.0) * spread
    index = {
        "bos_norm": 3 * ratio,
        "massive_activation_ratio": ratio,
        "matrix_entropy": np.where(on, 0.1, 0.8) * math.log(n_tokens) * np.ones_like(spread),
        "matrix_entropy_without_bos": 0.7 * math.log(n_tokens - 1) * np.ones_like(ratio),
        "sink_score": np.where(on[1:], 0.9, 0.1)[None, :, None] * np.ones((prompts, 1, HEADS)),
        "mlp_bos_norm": np.where(depth[1:] == 2, 90.0, 5.0) * np.ones_like(spread),
        "attn_bos_norm": 10.0 * np.ones((prompts, n_layers)),
    }
    sizes = {"prompt": prompts, "depth": n_layers + 1, "layer": n_layers, "head": HEADS, "top": 3, "rank": 8}
    metrics = [get_metric(name) for name in names]
    values = {
        m.name: np.asarray(index.get(m.name, np.full([sizes[a] for a in m.axes], 0.5))) for m in metrics
    }
    coords = {
        "n_tokens": [n_tokens] * prompts, "prompt_hash": [f"{i:04x}" for i in range(prompts)],
        "text": [f"{text} {i}" for i in range(prompts)], "position_token": [token] * prompts,
        "has_bos": [bos] * prompts, "bos_prepended": [bos] * prompts, "truncated": [False] * prompts,
        "padding": [0] * prompts,
    }  # fmt: skip
    about = {
        "model": "acme/tiny", "revision": "unknown", "dtype": "float32", "processing": "raw",
        "n_layers": n_layers, "n_heads": HEADS, "d_model": WIDTH, "position": 0, "interventions": "[]",
        "bos_token": "<bos>" if bos else "none: the tokenizer has no BOS of its own",
        "created": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return to_dataset(values, metrics, coords, {**about, **attrs})


def means(fig) -> list:
    """The mean lines, in the order of the panels."""
    return [trace for trace in fig.data if trace.hovertemplate]


def panel_titles(fig) -> list[str]:
    return [note.text.replace("<br>", " ") for note in fig.layout.annotations]


def test_usual_profile_has_ratio_entropy_and_sinks():
    fig = plot_profile(fake_result())
    ratio, entropy, without, sinks = means(fig)
    assert [t.split(":")[0] for t in panel_titles(fig)] == [
        "<b>Norm of BOS / median norm of the others</b>",
        "<b>Normalised matrix entropy</b>",
        "<b>Sink rate",
    ]
    np.testing.assert_allclose(ratio.y, [2, 2, *[400] * 6, 2])
    np.testing.assert_allclose(entropy.y, [0.8, 0.8, *[0.1] * 6, 0.8])
    np.testing.assert_allclose(without.y, 0.7)
    np.testing.assert_allclose(sinks.y, [0, *[1] * 6, 0])
    assert fig.layout.yaxis.type == "log"
    assert (entropy.line.dash, without.line.dash) == ("solid", "dash")


@pytest.mark.parametrize("n_layers", [1, 5, 8, 32, 80])
def test_blocks_stand_between_the_depths_they_connect(n_layers):
    for relative, scale in ((False, 1), (True, 1 / n_layers)):
        ratio, _, _, sinks = means(plot_profile(fake_result(n_layers), relative=relative))
        np.testing.assert_allclose(ratio.x, np.arange(n_layers + 1) * scale)
        np.testing.assert_allclose(sinks.x, (np.arange(n_layers) + 0.5) * scale)


@pytest.mark.parametrize("n_layers", [1, 5, 8, 32, 80, 126, pytest.param(700, marks=pytest.mark.slow)])
def test_few_enough_ticks_for_a_telephone(n_layers):
    axis = plot_profile(fake_result(n_layers), "bos_norm").layout.xaxis
    assert 1 <= n_layers / axis.dtick <= 10


def test_band_is_the_interval_of_the_mean():
    ds = fake_result(prompts=11)
    low, high, mean = plot_profile(ds, "massive_activation_ratio").data[:3]
    expected = confidence_interval(ds.massive_activation_ratio.astype(float))
    np.testing.assert_array_equal(low.y, expected["low"])
    np.testing.assert_array_equal(high.y, expected["high"])
    np.testing.assert_allclose(mean.y, ds.massive_activation_ratio.mean("prompt"))
    assert high.fill == "tonexty"


def test_one_prompt_has_no_band_and_no_legend_for_one():
    fig = plot_profile(fake_result(prompts=1))
    assert not any(trace.fill for trace in fig.data)
    assert not any("interval" in (trace.name or "") for trace in fig.data)


def test_heads_are_averaged_and_ranked_axes_give_the_largest():
    ds = fake_result()
    ds["top_activation"] = ds.top_activation * xr.DataArray([3.0, 2.0, 1.0], dims="top")
    sinks, top = means(plot_profile(ds, ["sink_score", "top_activation"]))
    np.testing.assert_allclose(sinks.y, ds.sink_score.mean(["prompt", "head"]))
    np.testing.assert_allclose(top.y, 1.5)
    assert "the largest" in panel_titles(plot_profile(ds, "top_activation"))[0]


@pytest.mark.parametrize(
    "name", ["normalized_entropy", "normalized_entropy_without_bos", "sink_rate", "mlp_write_share"]
)
def test_readings_can_be_named_like_variables(name):
    assert len(means(plot_profile(fake_result(), name))) == 1


def test_units_stand_at_the_axis():
    fig = plot_profile(fake_result(), ["matrix_entropy", "strongest_token", "anisotropy", "bos_norm"])
    titles = [fig.layout[axis].title.text for axis in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
    assert titles == ["nats", "token", "pure number", "pure number (log)"]


def test_what_was_not_measured_is_left_out():
    fig = plot_profile(fake_result(names=("sink_score",)))
    assert len(means(fig)) == 1
    assert not any("without" in (trace.name or "") for trace in fig.data)
    assert len(means(plot_profile(fake_result(names=("matrix_entropy_without_bos",))))) == 1


def test_an_ordinary_model_looks_ordinary():
    axis = plot_profile(fake_result(massive=False)).layout.yaxis
    assert axis.range[0] < 0 and axis.range[1] > 1  # from below 1 to above 10, whatever the numbers


def test_nan_and_infinity_are_gaps():
    ds = fake_result(prompts=2)
    ds["massive_activation_ratio"][:, 3] = np.inf
    ds["massive_activation_ratio"][:, 4] = np.nan
    ratio = means(plot_profile(ds))[0]
    assert np.isnan(ratio.y[3:5]).all() and np.isfinite(np.delete(ratio.y, [3, 4])).all()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ("matrix_entrpy", "no variable 'matrix_entrpy': did you mean 'matrix_entropy'"),
        ("zzz", "no variable 'zzz': it holds bos_norm, massive_activation_ratio"),
        ([], "variables is empty; name at least one"),
        ("text", "no variable 'text'"),
    ],
)
def test_refusals_name_what_came_and_what_is_there(variables, message):
    with pytest.raises(ValueError, match=message):
        plot_profile(fake_result(), variables)


def test_refuses_what_has_no_profile():
    ds = fake_result()
    ds["loss"] = ("prompt", np.ones(3))
    ds["odd"] = (("prompt", "depth", "flavour"), np.ones((3, 9, 2)))
    with pytest.raises(ValueError, match="'loss' has no depth or layer axis"):
        plot_profile(ds, "loss")
    with pytest.raises(ValueError, match=r"'odd' has the axis 'flavour'.*ds.isel\(flavour=0\)"):
        plot_profile(ds, "odd")
    with pytest.raises(ValueError, match="none of massive_activation_ratio, matrix_entropy and sink_score"):
        plot_profile(fake_result(names=("anisotropy",)))
    with pytest.raises(ResultSchemaError, match="does not come from mcr_lens"):
        plot_profile(xr.Dataset())
    with pytest.raises(ValueError, match="holds no prompts"):
        plot_profile(ds.isel(prompt=[]))
    with pytest.raises(ResultSchemaError, match="no matrix_entropy"):
        plot_profile(fake_result(names=("sink_score",)), "normalized_entropy")


def test_names_cannot_put_links_into_a_figure():
    ds = fake_result(model='<a href="https://evil.example">x</a>')
    ds.anisotropy.attrs.update(long_name="<a href='https://evil.example'>y</a>", units="<b>u</b>")
    fig = plot_profile(ds, "anisotropy")
    texts = [fig.layout.title.text, *panel_titles(fig), fig.layout.yaxis.title.text]
    assert not any("<a" in text or "<b>u" in text for text in texts)


def test_the_token_without_bos_is_not_called_bos():
    fig = plot_profile(fake_result(bos=False))
    assert panel_titles(fig)[0].startswith("<b>Norm of the first token")
    assert any(trace.name == "the same without the row of the first token" for trace in fig.data)


def test_plotly_is_imported_only_when_drawing():
    code = (
        "import sys, mcr_lens.plots, mcr_lens.report, mcr_lens.cli; "
        "bad = {'plotly', 'jinja2', 'transformer_lens'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_missing_package_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "plotly.subplots", raising=False)
    with pytest.raises(ImportError, match=r'needs plotly.*pip install "mcr-lens\[plots\]"'):
        plot_profile(fake_result())


def test_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        require("broken_one", extra="plots")


def test_words_for_a_model_with_the_phenomenon():
    massive, valley, sinks = reading(fake_result())
    assert "Massive activation at BOS: its norm peaks at 400 times" in massive
    assert "at depth 2 of 8" in massive
    assert "grows most in block 1, from 2.00 to 400" in massive and "MLP's share is 90 %" in massive
    assert "falls from 0.80 to 0.10 at depth 2 and comes back to 0.80" in valley
    assert valley.endswith("Without the row of BOS it is 0.70 at that depth.")
    assert sinks.startswith("Attention sinks in 6 of 8 layers")


def test_words_for_a_model_without_it():
    massive, valley, sinks = reading(fake_result(massive=False))
    assert massive == "No massive activation at BOS: the norm ratio peaks at 2.00 (at depth 0 of 8)."
    assert valley.startswith("No compression valley: normalised entropy stays between 0.80")
    assert sinks.startswith("No attention sinks: no head gives at least 0.3 of its attention to BOS")


def test_a_fall_without_return_is_no_valley():
    ds = fake_result()
    ds["matrix_entropy"][:] = np.linspace(0.9, 0.2, 9) * math.log(T)
    assert "No compression valley: normalised entropy is lowest at depth 8 (0.20)" in reading(ds)[1]


def test_some_sinks_are_not_a_layer_of_sinks():
    ds = fake_result(massive=False)
    ds["sink_score"][:, 3, 0] = 0.9
    assert "No layer where half of the heads are sinks" in reading(ds)[2]
    assert "peaks at 0.25 in block 3" in reading(ds)[2]


def test_words_leave_out_what_was_not_measured():
    assert len(reading(fake_result(names=("massive_activation_ratio", "anisotropy")))) == 1
    assert reading(fake_result(names=("anisotropy",))) == []


def test_who_stands_at_the_position():
    assert subject(fake_result()) == "BOS"
    assert subject(fake_result(bos=False)) == "the first token"
    assert subject(fake_result(position=3)) == "position 3"
    assert caution(fake_result()) == []
    assert caution(fake_result(bos=False)) == ["In these prompts position 0 is the first token, not a BOS."]
    mixed = fake_result()
    mixed["has_bos"] = ("prompt", [True, False, True])
    assert caution(mixed) == ["1 of 3 prompts do not begin with BOS; there, position 0 is the first token."]
    assert "token at position 3" in caution(fake_result(position=3))[0]
    assert "was changed" in caution(fake_result(interventions='[{"kind": "zero_ablation"}]'))[0]
    assert "even a head that attends to all keys" in caution(fake_result(n_tokens=5))[0]


def test_table_puts_each_block_next_to_what_it_wrote():
    table = profile_table(fake_result())
    state = {c.long: c.values for c in table.state}
    block = {c.long: c.values for c in table.block}
    assert state["norm ratio"][2] == pytest.approx(400) and state["norm ratio"][1] == pytest.approx(2)
    assert block["MLP write at BOS"][2] == 90 and np.isnan(block["MLP write at BOS"][0])
    assert {len(c.values) for c in (*table.state, *table.block)} == {9}
    with pytest.raises(ResultSchemaError, match="none of the variables of the table"):
        profile_table(fake_result(names=("strongest_token",)))


def test_numbers_for_reading():
    assert number(0.0) == "0.00" and number(999.4) == "999" and number(12345.6) == "12,346"
    assert number(1.0, -3) == "1.000" and number(float("nan"), -3) == "–"
