"""What a page tells: which parts belong to a result, in which order, what is said where one is missing."""

import json
import re

import numpy as np
import pytest
import xarray as xr
from html_page import Page
from test_plots import fake_result
from test_report import HOSTILE, page, verdict_on

from mcr_lens.conditions import join_conditions
from mcr_lens.report import write_report
from mcr_lens.schema import ResultSchemaError

pytestmark = pytest.mark.once

ORDER = ("verdict", "reading", "profile", "heads", "theory", "ablation", "attention", "dimensions", "numbers",
         "prompts", "provenance", "glossary")  # fmt: skip


def whole(**options) -> xr.Dataset:
    """A result with every variable that the page draws."""
    from handmade import result

    return result(seed=3, n_tokens=(20, 24, 30)).assign_attrs(**options)


def ablated(ds: xr.Dataset) -> xr.Dataset:
    cut = ds.copy(deep=True).assign_attrs(interventions='[{"kind": "zero_ablation"}]')
    cut["massive_activation_ratio"] = cut.massive_activation_ratio * 0.5
    return join_conditions({"clean": ds, "cut": cut})


def looked_at(ds: xr.Dataset, tokens=("<bos>", "a", "b"), **attrs) -> xr.Dataset:
    """A close-up as `close_up` makes it, of one head under two conditions."""
    n, layers = len(tokens), int(ds.attrs["n_layers"])
    pattern = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    names, places = ["clean", "cut"], np.arange(n)
    norms = np.ones((2, layers + 1, n)) * (1 + places)
    about = {"units": "1", "long_name": "x", "source": "y"}
    return xr.Dataset(
        {
            "token_norm": (("condition", "depth", "position"), norms, about),
            "pattern": (("condition", "shown", "query", "key"), np.stack([pattern[None]] * 2), about),
        },
        coords={
            "condition": names, "depth": np.arange(layers + 1), "position": places, "query": places,
            "key": places, "token": ("position", np.array(tokens, dtype=object)), "layer": ("shown", [1]),
            "head": ("shown", [0]),
        },
        attrs={
            **{key: ds.attrs[key] for key in ("model", "n_layers", "d_model", "n_heads", "schema")},
            "prompt": " ".join(tokens), "n_tokens": n, "shown_tokens": n, "attention": "causal",
            "interventions": json.dumps({"clean": [], "cut": [{"kind": "zero_ablation"}]}), **attrs,
        },
    )  # fmt: skip


def figures(found: Page) -> list[str]:
    return [attrs["id"] or "" for tag, attrs in found.tags if attrs.get("class") == "plot"]


def test_a_whole_story_in_order(tmp_path):
    ds = whole()
    written = write_report(
        ds, tmp_path / "r.html", diagnosis=verdict_on(ds), conditions=ablated(ds), close_up=looked_at(ds)
    )
    found = Page(written.read_text("utf-8"))
    ids = [attrs["id"] for _, attrs in found.tags if attrs.get("id") in ORDER]
    assert ids == list(ORDER)
    links = [attrs["href"] for tag, attrs in found.tags if tag == "a"]
    assert links == [f"#{name}" for name in ORDER]
    assert figures(found) == [
        "layer-profile", "head-scores", "shares", "sink-curves", "bounds", "comparison", "token-norms",
        "massive-dimensions",
    ]  # fmt: skip
    assert any("CircuitsVis" in script and len(script) > 1_000_000 for script in found.scripts)
    assert "not drawn" not in found.text and "No ablation was made" not in found.text


def test_every_drawing_is_json_for_its_figure(tmp_path):
    html = write_report(whole(), tmp_path / "r.html").read_text("utf-8")
    drawings = re.findall(
        r'<script type="application/json" id="([\w-]+)-drawing">(.*?)</script>', html, flags=re.S
    )
    assert [name for name, _ in drawings] == figures(Page(html))
    for _, text in drawings:
        drawing = json.loads(text)
        assert drawing["data"] and not drawing["layout"].get("template")
    themes = json.loads(re.findall(r'id="themes">(.*?)</script>', html, flags=re.S)[0])
    assert themes["light"] != themes["dark"]


def test_what_was_not_done_says_how_to_get_it(tmp_path):
    text = page(whole(), tmp_path).text
    assert "No ablation was made. mcr_lens.diagnose(model, prompts)" in text
    assert "No prompt was looked at from close by. Pass close_up=mcr_lens.close_up(model, prompt" in text


def test_what_was_not_measured_is_named(tmp_path):
    text = page(fake_result(names=("massive_activation_ratio", "sink_score")), tmp_path).text
    assert "Measured values between their bounds: not drawn, the result has no bos_energy" in text
    assert "Largest activations and their dimensions: not drawn, the result has no top_activation" in text
    assert "Phases" in text


def test_a_comparison_is_told_as_its_clean_condition(tmp_path):
    ds = whole()
    both = page(ablated(ds), tmp_path)
    assert "comparison" in figures(both)
    alone = page(ds, tmp_path)
    assert (
        both.text.split("What the numbers say")[1].split("Layer profile")[0]
        == (alone.text.split("What the numbers say")[1].split("Layer profile")[0])
    )


def test_without_a_clean_condition_the_first_is_told(tmp_path):
    ds = ablated(whole()).assign_coords(condition=["before", "after"])
    ds.attrs["interventions"] = json.dumps({"before": [], "after": [{"kind": "zero_ablation"}]})
    assert "comparison" in figures(page(ds, tmp_path))


def test_verdicts_may_come_as_json(tmp_path):
    ds = whole()
    diagnosis = verdict_on(ds)
    told = json.loads(json.dumps(diagnosis.to_json()))
    one = write_report(ds, tmp_path / "1.html", diagnosis=diagnosis).read_text("utf-8")
    two = write_report(ds, tmp_path / "2.html", diagnosis=told).read_text("utf-8")
    assert one == two


def test_parts_of_another_story_are_refused(tmp_path):
    ds, other = whole(), whole(model="another/model")
    with pytest.raises(ResultSchemaError, match="the conditions are of another model than the result: model"):
        write_report(ds, tmp_path / "r.html", conditions=ablated(other))
    with pytest.raises(ResultSchemaError, match="the close-up is of another model than the result: model"):
        write_report(ds, tmp_path / "r.html", close_up=looked_at(other))
    with pytest.raises(ResultSchemaError, match="measured on other prompts than the result"):
        write_report(ds.isel(prompt=[0, 1]), tmp_path / "r.html", conditions=ablated(ds))
    with pytest.raises(ResultSchemaError, match=r"no token_norm in it; pass what mcr_lens.close_up returns"):
        write_report(ds, tmp_path / "r.html", close_up=ds)
    assert not list(tmp_path.iterdir())


def test_hostile_tokens_conditions_and_prompts_add_nothing(tmp_path):
    tame, wild = whole(), whole(model=HOSTILE)
    wild["text"] = ("prompt", [HOSTILE] * 3)

    def tags(ds: xr.Dataset, word: str) -> Page:
        both = ablated(ds).assign_coords(condition=["clean", word])
        both.attrs["interventions"] = json.dumps({"clean": [], word: []})
        seen = looked_at(ds, tokens=("<bos>", word, "b")).assign_coords(condition=["clean", word])
        seen.attrs["interventions"] = json.dumps({"clean": [], word: []})
        written = write_report(ds, tmp_path / "h.html", conditions=both, close_up=seen)
        return Page(written.read_text("utf-8"))

    ordinary, hostile = tags(tame, "cut"), tags(wild, HOSTILE)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in ordinary.tags]
    assert {n for _, attrs in hostile.tags for n in attrs} == {n for _, attrs in ordinary.tags for n in attrs}
    scripts = [s for s in hostile.scripts if len(s) < 1_000_000]
    assert not any("</script" in s or "<script" in s or "<img" in s for s in scripts)


def test_a_page_of_twelve_layers_stays_below_eight_megabytes(tmp_path):
    ds = whole()
    seen = looked_at(ds, tokens=tuple(f"token{i}" for i in range(40)))
    wide = seen.isel(shown=[0] * 8).assign_coords(layer=("shown", [1] * 8), head=("shown", list(range(8))))
    written = write_report(ds, tmp_path / "r.html", conditions=ablated(ds), close_up=wide)
    assert written.stat().st_size < 8e6


def test_a_figure_without_its_title_keeps_everything_else_in_place():
    from mcr_lens.plots import plot_token_norms
    from mcr_lens.plots.theme import without_title

    fig = plot_token_norms(looked_at(whole()))

    def above_the_lower_edge() -> list[float]:
        bars = [trace.colorbar.y for trace in fig.data]
        return [y * fig.layout.height for y in (*bars, fig.layout.legend.y)]

    before, height = above_the_lower_edge(), fig.layout.height
    inner = height - fig.layout.margin.t - fig.layout.margin.b
    about = without_title(fig)
    assert fig.layout.title.text is None and fig.layout.height < height
    assert about["title"] and "clean" in about["subtitle"]
    np.testing.assert_allclose(above_the_lower_edge(), before)
    assert fig.layout.height - fig.layout.margin.t - fig.layout.margin.b == inner
