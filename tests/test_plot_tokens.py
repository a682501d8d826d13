"""Do the pictures of one prompt show its tokens, its norms and its patterns, and nothing that is hidden?"""

import numpy as np
import pytest
import xarray as xr
from test_plots import fake_result

from mcr_lens.plots.tokens import plot_pattern, plot_token_norms, visible
from mcr_lens.schema import ResultSchemaError

WORDS = ("<bos>", " The", "\n\n", "<a href='https://evil.example'>x</a>", "river")
CONDITIONS = ("clean", "cut <b>")


def close(n_layers: int = 3, words=WORDS, *, patterns: bool = True, attention: str = "causal", **attrs):
    """A close-up of two heads under two conditions, without a model."""
    g, n = np.random.default_rng(0), len(words)
    norms = g.uniform(1, 3, (2, n_layers + 1, n))
    norms[0, 1:, 0] *= 300
    weights = g.uniform(size=(2, 2, n, n)) * (np.tri(n) if attention == "causal" else 1)
    weights /= weights.sum(-1, keepdims=True)
    weights[1] *= 0.5
    ds = xr.Dataset(
        {"token_norm": (("condition", "depth", "position"), norms)},
        coords={
            "condition": list(CONDITIONS), "depth": np.arange(n_layers + 1), "position": np.arange(n),
            "token": ("position", np.array(words, object)),
        },
        attrs={"model": "acme/tiny", "n_layers": n_layers, "prompt": " The\n\nriver", "n_tokens": n,
               "attention": attention, **attrs},
    )  # fmt: skip
    if not patterns:
        return ds
    ds["pattern"] = (("condition", "shown", "query", "key"), weights)
    return ds.assign_coords(
        query=np.arange(n), key=np.arange(n), layer=("shown", [2, 0]), head=("shown", [1, 3])
    )


def heat(fig):
    (trace,) = fig.data
    return trace


@pytest.mark.parametrize("n_layers", [1, 8, 80])
def test_norms_by_position_and_depth(n_layers):
    ds = close(n_layers)
    for place, name in enumerate(CONDITIONS):
        fig = plot_token_norms(ds, name)
        wanted = ds.token_norm[place].transpose("position", "depth").values
        np.testing.assert_allclose(heat(fig).z, np.log10(wanted))
        np.testing.assert_array_equal(heat(fig).x, ds.depth)
        np.testing.assert_array_equal(heat(fig).y, ds.position)
        np.testing.assert_allclose(heat(fig).customdata[..., 1].astype(float), wanted)
        ratio = wanted / np.median(wanted, axis=0)
        np.testing.assert_allclose(heat(fig).customdata[..., 2].astype(float), ratio)
        assert n_layers / fig.layout.xaxis.dtick <= 10


def test_the_order_of_the_axes_does_not_matter():
    ds = close()
    turned = ds.transpose("key", "position", "query", "depth", "shown", "condition")
    np.testing.assert_array_equal(heat(plot_token_norms(ds)).z, heat(plot_token_norms(turned)).z)
    np.testing.assert_array_equal(heat(plot_pattern(ds)).z, heat(plot_pattern(turned)).z)


def test_the_colour_bar_is_in_norms():
    ds = close()
    ds["token_norm"][0, 2, 0] = 20_000
    ds["token_norm"][0, 2, 1] = 0.05
    bar = heat(plot_token_norms(ds)).colorbar
    assert list(bar.ticktext) == ["0.1", "1", "10", "100", "1,000", "10,000"]
    np.testing.assert_allclose(bar.tickvals, [-1, 0, 1, 2, 3, 4])


def test_every_token_is_spelled_from_top_to_bottom():
    axis = plot_token_norms(close()).layout.yaxis
    assert list(axis.ticktext) == ["&lt;bos&gt;", "␣The", "↵↵", "&lt;a␣href='ht…", "river"]
    assert list(axis.tickvals) == [0, 1, 2, 3, 4]
    assert axis.range[0] > axis.range[1]


def test_long_lists_get_taller():
    few, many = (plot_token_norms(close(words=WORDS * times)) for times in (1, 20))
    assert many.layout.height - few.layout.height == 17 * 95
    sides = []
    for times in (1, 5, 20):
        layout = plot_pattern(close(words=WORDS * times)).layout
        sides.append(layout.height - layout.margin.t - layout.margin.b)
    assert sides == [284, 420, 420]  # as wide as a telephone, and no taller than a screen


def test_what_has_no_logarithm_is_a_gap():
    ds = close()
    ds["token_norm"][0, 1] = [0, np.nan, np.inf, 4, 2]
    z = heat(plot_token_norms(ds)).z[:, 1]
    assert np.isnan(z).tolist() == [True, True, True, False, False]
    ratio = heat(plot_token_norms(ds)).customdata[:, 1, 2].astype(float)
    np.testing.assert_allclose(ratio, [0, np.nan, np.nan, 2, 1])
    ds["token_norm"][:] = 0
    assert np.isnan(heat(plot_token_norms(ds)).z).all()
    ds["token_norm"][:] = np.nan
    assert np.isnan(heat(plot_token_norms(ds)).z).all()
    ds["token_norm"][:] = 7.0
    assert list(heat(plot_token_norms(ds)).colorbar.ticktext) == ["7"]


def test_one_token():
    ds = close(words=("<bos>",))
    assert heat(plot_token_norms(ds)).z.shape == (1, 4)
    np.testing.assert_allclose(heat(plot_pattern(ds)).z, [[1.0]])


def test_hidden_keys_are_gaps_and_zeros_are_not():
    ds = close()
    ds["pattern"][0, 0, 3, 1] = 0.0
    z = heat(plot_pattern(ds)).z
    np.testing.assert_array_equal(np.isnan(z), ~np.tri(5, dtype=bool))
    np.testing.assert_allclose(z[np.tri(5, dtype=bool)], ds.pattern[0, 0].values[np.tri(5, dtype=bool)])
    assert z[3, 1] == 0 and heat(plot_pattern(ds)).zmin == 0
    both = close(attention="bidirectional")
    np.testing.assert_array_equal(heat(plot_pattern(both)).z, both.pattern[0, 0])
    both["pattern"][0, 0, 0, 4] = np.nan
    assert np.isnan(heat(plot_pattern(both)).z).sum() == 1


def test_heads_and_conditions_are_picked_and_named():
    ds = close()
    fig = plot_pattern(ds, 1, "cut <b>")
    lower = np.tri(5, dtype=bool)
    np.testing.assert_allclose(heat(fig).z[lower], ds.pattern[1, 1].values[lower])
    assert "block 0, head 3 of acme/tiny" in fig.layout.title.text
    assert "cut &lt;b&gt;: “" in fig.layout.title.text


def test_conditions_share_their_colours():
    ds = close()
    ends = {heat(plot_pattern(ds, 0, name)).zmax for name in CONDITIONS}
    assert ends == {float(ds.pattern[:, 0].max())}


def test_patterns_are_square_with_readable_labels():
    for times in (1, 5, 13, 20):
        fig = plot_pattern(close(words=WORDS * times))
        x, y = fig.layout.xaxis, fig.layout.yaxis
        assert (x.scaleanchor, x.constrain, y.constrain) == ("y", "domain", "domain")
        assert min(5 * times, 12) <= len(x.ticktext) <= 284 / 11  # on a telephone
        assert list(x.ticktext) == list(y.ticktext)
        assert x.ticktext[0] == "&lt;bos&gt;"


@pytest.mark.parametrize("plot", [plot_token_norms, plot_pattern])
def test_hostile_tokens_prompts_and_names_are_text(plot):
    ds = close(model="<a href='https://evil.example'>m</a>", prompt="<img src=x onerror=alert(1)> <a>z</a>")
    fig = plot(ds)
    texts = [fig.layout.title.text, *fig.layout.yaxis.ticktext, *(fig.layout.xaxis.ticktext or ())]
    texts += [str(text) for text in np.ravel(heat(fig).customdata)]
    assert not any("<a" in text or "<img" in text for text in texts)


def test_hovering_names_tokens_and_numbers_of_positions():
    """Not %{y} and not %{x}: on an axis with labels these are the labels."""
    norms, pattern = heat(plot_token_norms(close())), heat(plot_pattern(close()))
    assert [*norms.customdata[4, 1, :1], norms.customdata[4, 1, 3]] == ["river", 4]
    assert list(pattern.customdata[4, 2]) == ["river", "↵↵", 4, 2]
    assert "%{y}" not in norms.hovertemplate + pattern.hovertemplate and "%{x}" not in pattern.hovertemplate


def test_a_cut_prompt_is_said():
    text = plot_token_norms(close(n_tokens=97)).layout.title.text.replace("<br>", " ")
    assert "clean: first 5 of 97 tokens of “The river”" in text
    assert "tokens of" not in plot_token_norms(close()).layout.title.text


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" the", "␣the"), ("\n", "↵"), ("\t\r", "⇥␍"), ("\xa0", "⍽"), ("", "∅"), ("\x00", "\\x00"),
     ("\u200b", "\\u200b"), ("Übung", "Übung"), ("日本", "日本"), ("\ud800", "\\ud800")],
)  # fmt: skip
def test_tokens_that_cannot_be_seen_are_seen(token, shown):
    assert visible(token) == shown


@pytest.mark.parametrize("plot", [plot_token_norms, plot_pattern])
def test_refusals(plot):
    with pytest.raises(
        ResultSchemaError, match=r"expected a close-up, got this Dataset; pass what mcr_lens\.close_up"
    ):
        plot(fake_result())
    with pytest.raises(ResultSchemaError, match="expected a close-up, got str"):
        plot("prompt")
    with pytest.raises(ValueError, match="condition 'other' is not in the close-up; it holds clean, cut"):
        plot(close(), condition="other")


def test_patterns_and_heads_that_are_not_there():
    with pytest.raises(
        ResultSchemaError, match=r"no pattern; call mcr_lens.close_up with heads=\[\(layer, head\)"
    ):
        plot_pattern(close(patterns=False))
    for shown in (2, -1, True, "0"):
        with pytest.raises(
            ValueError, match=r"is not a head .* it holds 0: block 2, head 1, 1: block 0, head 3"
        ):
            plot_pattern(close(), shown)


def test_light_and_dark_differ_in_the_template_alone():
    for plot in (plot_token_norms, plot_pattern):
        light, dark = plot(close()).to_dict(), plot(close(), dark=True).to_dict()
        assert light["layout"].pop("template") != dark["layout"].pop("template")
        np.testing.assert_equal(light, dark)
