"""Several results in one profile: which line belongs to whom, on which axis, behind which phases?"""

import json
import subprocess
import sys

import numpy as np
import pytest
from test_plots import fake_result, means, panel_titles

from mcr_lens.conditions import join_conditions
from mcr_lens.phases import detect_phases
from mcr_lens.plots import plot_profile
from mcr_lens.plots.theme import PALETTE, legend_rows, template
from mcr_lens.schema import ResultSchemaError


def several(n: int = 2):
    names = ["clean", "cut", "other <b>token</b>", "d", "e", "f", "g", "h"][:n]
    return join_conditions({name: fake_result(massive=i != 1) for i, name in enumerate(names)})


def legend(fig) -> list[str]:
    return [trace.name for trace in fig.data if trace.showlegend and trace.x is not None and trace.name]


def test_conditions_are_overlaid_panel_by_panel():
    fig = plot_profile(several())
    by_panel = {}
    for trace in means(fig):
        by_panel.setdefault(trace.yaxis, []).append(trace)
    assert {len(traces) for traces in by_panel.values()} == {2} and len(by_panel) == 3
    for cut, clean in by_panel.values():  # the first of the results is drawn last, on top
        assert (clean.line.color, cut.line.color) == (PALETTE[0], PALETTE[1])
    ratios = [trace.y.max() for trace in by_panel["y"]]
    np.testing.assert_allclose(ratios, [2, 400])
    assert legend(fig)[:2] == ["clean", "cut"]


def test_every_way_of_giving_several_results_is_the_same_figure():
    one, two = fake_result(model="a"), fake_result(model="b", massive=False)
    listed = plot_profile([one, two])
    named = plot_profile({"a": one, "b": two})
    assert listed.to_json() == named.to_json()


def test_names_from_the_results_themselves():
    early, late = fake_result(revision="step1000"), fake_result(revision="step9000")
    assert legend(plot_profile([early, late]))[:2] == ["acme/tiny @ step1000", "acme/tiny @ step9000"]
    assert legend(plot_profile([fake_result(), fake_result()]))[:2] == ["acme/tiny (0)", "acme/tiny (1)"]


def test_models_of_different_depth_share_a_relative_axis():
    results = {"small": fake_result(4), "large": fake_result(80)}
    fig = plot_profile(results)
    assert {float(trace.x.max()) for trace in means(fig)} <= {1.0, 3.5 / 4, 79.5 / 80}
    assert "number of layers" in fig.layout.xaxis3.title.text
    with pytest.raises(ValueError, match="the models have 4, 80 layers; draw them with relative=True"):
        plot_profile(results, relative=False)


def test_more_results_than_colours_differ_in_dash():
    looks = [(t.line.color, t.line.dash) for t in means(plot_profile(several(8), "anisotropy"))]
    assert len(set(looks)) == 8


def test_selected_depths_and_layers_stay_where_they_were():
    ds = fake_result()
    ratio = means(plot_profile(ds.isel(depth=slice(3, 6)), "massive_activation_ratio"))[0]
    np.testing.assert_array_equal(ratio.x, [3, 4, 5])
    sinks = means(plot_profile(ds.isel(layer=[2, 5]), "sink_rate"))[0]
    np.testing.assert_array_equal(sinks.x, [2.5, 5.5])
    np.testing.assert_array_equal(sinks.customdata[:, 0], [2, 5])


def test_phases_are_shaded_half_way_between_depths():
    ds = fake_result()
    phases = detect_phases(ds)
    assert phases.found
    fig = plot_profile(ds)
    spans = {s.name: (s.x0, s.x1) for s in fig.layout.shapes}
    assert spans == {
        "mix": (0, phases.compress.start - 0.5),
        "compress": (phases.compress.start - 0.5, phases.compress.stop - 0.5),
        "refine": (phases.refine.start - 0.5, 8),
    }
    assert len(fig.layout.shapes) == 9 and {s.layer for s in fig.layout.shapes} == {"below"}
    assert fig.to_json() == plot_profile(ds, phases=phases).to_json()
    relative = plot_profile(ds, relative=True)
    assert max(s.x1 for s in relative.layout.shapes) == 1


def test_no_phases_where_there_are_none_or_nobody_asks():
    assert not plot_profile(fake_result(), phases=None).layout.shapes
    assert not plot_profile(fake_result(massive=False)).layout.shapes
    assert not plot_profile(fake_result(names=("sink_score",))).layout.shapes
    assert not plot_profile(fake_result(1)).layout.shapes
    assert not plot_profile(several()).layout.shapes
    with pytest.raises(ValueError, match="the phases are of 9 depths and the result has 33"):
        plot_profile(fake_result(32), phases=detect_phases(fake_result(8)))


def test_refusals():
    with pytest.raises(ValueError, match="results: got an empty list; pass at least one result"):
        plot_profile([])
    with pytest.raises(ValueError, match=r"results: got an empty map; pass a map such as"):
        plot_profile({})
    with pytest.raises(ValueError, match=r"results: got the name 3 is not a text"):
        plot_profile({3: fake_result()})
    with pytest.raises(ResultSchemaError, match=r"several conditions \(clean, cut\)"):
        plot_profile([several(), fake_result()])
    with pytest.raises(ResultSchemaError, match=r"expected a Dataset from mcr_lens\.measure, got int"):
        plot_profile([3])


def test_names_of_results_are_escaped_everywhere():
    fig = plot_profile(several(3))
    shown = [*legend(fig), *(trace.hovertemplate for trace in means(fig)), *panel_titles(fig)]
    assert any("&lt;b&gt;token" in text for text in shown)
    assert not any("<b>token" in text for text in shown)


def test_light_and_dark_differ_in_their_template_alone():
    light, dark = (json.loads(plot_profile(fake_result(), dark=d).to_json()) for d in (False, True))
    assert light["layout"].pop("template") != dark["layout"].pop("template")
    assert light == dark


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_its_background(dark):
    layout = template(dark).layout

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        light, dim = sorted((luminance(a), luminance(b)), reverse=True)
        return (light + 0.05) / (dim + 0.05)

    assert contrast(layout.font.color, layout.paper_bgcolor) >= 7
    assert contrast(layout.hoverlabel.font.color, layout.hoverlabel.bgcolor) >= 7
    assert min(contrast(color, layout.paper_bgcolor) for color in PALETTE) >= 2  # lines are two pixels wide


def test_room_for_the_legend_grows_with_its_names():
    assert legend_rows([]) == 0
    assert legend_rows(["clean", "cut"]) == 1
    assert legend_rows(["a name that takes up a line of its own, nearly"] * 3) == 3
    few, many = plot_profile(several(2)), plot_profile(several(8))
    assert many.layout.margin.b > few.layout.margin.b
    inner = {fig.layout.height - fig.layout.margin.t - fig.layout.margin.b for fig in (few, many)}
    assert len(inner) == 1


def test_figures_need_neither_torch_nor_transformer_lens():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformer_lens'] = None; "
        "sys.modules['transformers'] = None; import mcr_lens.plots, mcr_lens.report, mcr_lens; "
        "[getattr(mcr_lens, n) for n in dir(mcr_lens) if n.startswith('plot_')]; mcr_lens.write_report"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
