"""Do the explorer's figures follow its controls, only those that must, and does it speak in sentences?"""

import asyncio
import copy
import json
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from traces import hook_census

import mcr_lens as mcr
from mcr_lens import exploration, explorer
from mcr_lens.explorer import Explorer, explore

pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")
pytestmark = pytest.mark.demo

PROMPT = "The river had frozen in the night."
OTHER = "She counted the coins twice, and went to open the shop."
PROFILE, HEADS, PATTERN = "profile", "heads", "pattern"
FIGURES = {PROFILE, HEADS, PATTERN}


@pytest.fixture(scope="module")
def demo():
    return mcr.load_model("demo", verbose=False)


@pytest.fixture
def seen(demo):
    """An explorer at a place where every control has somewhere to go."""
    return explore(demo, PROMPT, interventions={"own": mcr.zero_bos_mlp(0)})


def drawn(seen):
    """What every figure shows, without the names that plotly gives its traces."""
    found = {}
    for name, figure in seen.figures.items():
        content = copy.deepcopy(figure.to_dict())
        for trace in content["data"]:
            trace.pop("uid", None)
        found[name] = repr(content)
    return found


def changed(before, seen):
    after = drawn(seen)
    return {name for name in FIGURES if before[name] != after[name]}


@pytest.fixture
def runs(monkeypatch):
    """Counts what the explorer asks of the model."""
    counted = Counter()
    for name in ("measure", "close_up"):
        function = getattr(exploration, name)

        def counting(*args, _name=name, _function=function, **kwargs):
            counted[_name] += 1
            return _function(*args, **kwargs)

        monkeypatch.setattr(exploration, name, counting)
    return counted


def lines(figure):
    """The lines of a profile by panel: y axis → list of curves."""
    found = {}
    for trace in figure.data:
        if trace.mode and "lines" in trace.mode and trace.y is not None and None not in trace.y:
            found.setdefault(trace.yaxis or "y", []).append(np.asarray(trace.y, float))
    return found


def heat(figure):
    return np.array(figure.data[-1].z, dtype=float)


def test_the_first_look_shows_what_was_measured(demo, seen):
    ds = mcr.measure(demo, PROMPT, progress=False)
    norms = lines(seen.figures[PROFILE])["y"]
    assert len(norms) == 1
    np.testing.assert_allclose(norms[0], ds.massive_activation_ratio[0], rtol=1e-5)
    np.testing.assert_allclose(lines(seen.figures[PROFILE])["y2"][0], mcr.normalized_entropy(ds)[0])
    np.testing.assert_allclose(heat(seen.figures[HEADS]), ds.sink_score[0], rtol=1e-5)
    closeup = exploration.close_up(demo, PROMPT, [(0, 0)])
    np.testing.assert_allclose(heat(seen.figures[PATTERN]), closeup.pattern[0, 0], rtol=1e-5)
    assert seen.choice == exploration.Choice(PROMPT, 0, 0, "sink_score", 0, "none")
    assert seen.error is None and seen.message.value == ""


@pytest.mark.once
@pytest.mark.parametrize(
    ("control", "value", "figures", "measured", "looked"),
    [
        ("layer", 2, {HEADS, PATTERN}, 0, 1),
        ("head", 3, {HEADS, PATTERN}, 0, 0),
        ("metric", "mixing_score", {PROFILE, HEADS}, 1, 0),
        ("metric", "anisotropy", {PROFILE}, 1, 0),
        ("position", 4, FIGURES, 1, 0),
        ("intervention", "zero MLP", FIGURES, 1, 1),
        ("intervention", "own", FIGURES, 1, 1),
        ("prompt", OTHER, FIGURES, 1, 1),
    ],
)
def test_a_control_changes_its_figures_and_no_others(seen, runs, control, value, figures, measured, looked):
    before, title = drawn(seen), seen.title.value
    first = getattr(seen, control).value
    getattr(seen, control).value = value
    assert changed(before, seen) == figures
    assert dict(runs) == {k: n for k, n in (("measure", measured), ("close_up", looked)) if n}
    assert getattr(seen.choice, control) == value and seen.title.value != title
    runs.clear()
    getattr(seen, control).value = first
    assert drawn(seen) == before and seen.title.value == title
    assert not runs, "going back measures nothing"


@pytest.mark.once
def test_the_layer_moves_an_intervention_and_not_one_that_has_its_own(seen, runs):
    seen.intervention.value = "zero MLP"
    before = drawn(seen)
    runs.clear()
    seen.layer.value = 3
    assert changed(before, seen) == FIGURES and runs == {"measure": 1, "close_up": 1}
    assert "zero MLP, in layer 3 at position 0" in seen.title.value
    seen.intervention.value = "own"
    before = drawn(seen)
    runs.clear()
    seen.layer.value = 5
    assert changed(before, seen) == {HEADS, PATTERN} and runs == {"close_up": 1}
    assert "own, in layer 0" in seen.title.value


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("zero MLP", lambda: mcr.zero_ablation("mlp_out", layers=1, positions=2)),
        ("zero attention", lambda: mcr.zero_ablation("attn_out", layers=1, positions=2)),
        ("random direction of MLP", lambda: mcr.random_direction("mlp_out", layers=1, positions=2)),
        ("scale MLP by 0.5", lambda: mcr.scale("mlp_out", 0.5, layers=1, positions=2)),
        ("own", lambda: mcr.zero_bos_mlp(0)),
    ],
)
@pytest.mark.once
def test_an_intervention_shows_before_and_after(demo, seen, name, edit):
    seen.layer.value, seen.head.value, seen.position.value = 1, 2, 2
    seen.intervention.value = name
    ds = mcr.compare(demo, PROMPT, {"clean": [], name: edit()}, position=2, progress=False)
    after = mcr.condition(ds, name)
    norms = lines(seen.figures[PROFILE])["y"]
    assert len(norms) == 2
    # The model as it is lies on top, so it was drawn last.
    np.testing.assert_allclose(norms[::-1], ds.massive_activation_ratio[:, 0], rtol=1e-5)
    np.testing.assert_allclose(heat(seen.figures[HEADS]), after.sink_score[0], rtol=1e-5)
    closeup = exploration.close_up(demo, PROMPT, [(1, 2)], conditions={name: edit()})
    np.testing.assert_allclose(heat(seen.figures[PATTERN]), closeup.pattern[1, 0], rtol=1e-5)


@pytest.mark.once
def test_a_function_gets_layer_and_position(demo):
    asked = []

    def halved(layer, position):
        asked.append((layer, position))
        return [mcr.scale("mlp_out", 0.5, layers=layer, positions=position)]

    seen = explore(demo, PROMPT, interventions={"halved": halved})
    seen.layer.value, seen.position.value, seen.intervention.value = 4, 1, "halved"
    assert set(asked) == {(4, 1)} and "halved, in layer 4 at position 1" in seen.title.value


def test_the_map_frames_the_chosen_head_and_a_click_chooses_another(seen, runs):
    from plotly.callbacks import Points

    def framed():
        (cell,) = seen.figures[HEADS].layout.shapes
        return (cell.y0 + cell.y1) / 2, (cell.x0 + cell.x1) / 2

    assert framed() == (0, 0)
    (trace,) = seen.figures[HEADS].select_traces({"type": "heatmap"})
    trace._dispatch_on_click(Points(point_inds=[[6, 1]], xs=[1], ys=[6]), None)
    assert (seen.layer.value, seen.head.value) == (6, 1) and framed() == (6, 1)
    assert runs == {"close_up": 1}, "both change at once"
    trace._dispatch_on_click(Points(point_inds=[], xs=[], ys=[]), None)
    assert framed() == (6, 1)


@pytest.mark.once
def test_positions_are_the_tokens_of_the_prompt(seen):
    assert len(seen.position.options) == len(PROMPT) + 1
    assert seen.position.options[:3] == (("0  <bos>", 0), ("1  T", 1), ("2  h", 2))
    assert seen.position.options[4] == ("4  ␣", 4)
    seen.position.value = 30
    seen.prompt.value = "A short one."
    assert seen.position.value == 12 and seen.choice.position == 12, "the last one that there is"


@pytest.mark.once
def test_the_title_says_what_is_shown(seen):
    seen.prompt.value = "</p><script>alert(1)</script> & more"
    seen.layer.value, seen.head.value, seen.metric.value, seen.position.value = 2, 1, "mixing_score", 4
    seen.intervention.value = "zero attention"
    assert seen.title.value == (
        "<p>“&lt;/p&gt;&lt;script&gt;alert(1)&lt;/script&gt; &amp; more” · layer 2, head 1 · mixing_score · "
        "position 4  &gt; · zero attention, in layer 2 at position 4</p>"
    )


def fails(layer, position):
    raise ZeroDivisionError("in the user's <b>function</b>")


@pytest.mark.once
@pytest.mark.parametrize(
    ("control", "value", "sentence"),
    [
        ("prompt", "", "the prompt is empty; type some text"),
        ("prompt", "  ", "the prompt is empty; type some text"),
        ("prompt", "a \ud800 b", "prompt 0 is not valid text (a lone surrogate); clean it"),
        ("intervention", "too deep", "layer 99 does not exist: the model has layers 0..7"),
        ("intervention", "fails", "in the user&#x27;s &lt;b&gt;function&lt;/b&gt;"),
        ("intervention", "wrong", "&#x27;wrong&#x27; gave a str, not an intervention; it is called with"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(demo, capsys, control, value, sentence):
    given = {"too deep": mcr.zero_bos_mlp(99), "fails": fails, "wrong": lambda layer, position: "nothing"}
    seen = explore(demo, PROMPT, interventions=given)
    before, first = drawn(seen), getattr(seen, control).value
    getattr(seen, control).value = value
    assert seen.message.value.startswith(f'<p role="alert">Nothing is shown: {sentence}')
    assert "Traceback" not in seen.message.value and "\n" not in seen.message.value
    assert seen.choice is None and isinstance(seen.error, Exception)
    assert seen.title.value == "" and not any(figure.data for figure in seen.figures.values())
    seen.head.value = 1  # still nothing to show, and still said
    assert seen.choice is None and sentence in seen.message.value
    seen.head.value = 0
    getattr(seen, control).value = first
    assert seen.message.value == "" and seen.error is None and drawn(seen) == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.once
def test_warnings_become_notes_that_stay(seen):
    long = "a b " * 40
    seen.prompt.value = long
    note = "<p>Note: 1 of 1 prompts were longer than 128 tokens and were cut there; see the coordinate"
    assert note in seen.message.value
    seen.head.value = 2
    assert note in seen.message.value, "it still holds"
    seen.prompt.value = PROMPT
    assert seen.message.value == ""


@pytest.mark.once
def test_a_pattern_that_was_cut_says_so(demo, monkeypatch):
    monkeypatch.setattr(exploration, "SHOWN", 20)
    seen = explore(demo, PROMPT)
    assert "Note: the pattern shows the first 20 of 35 tokens." in seen.message.value
    assert len(seen.position.options) == 20 and heat(seen.figures[PATTERN]).shape == (20, 20)
    assert "max_tokens" not in seen.message.value


def test_measure_asks_the_model_again(seen, runs):
    before = drawn(seen)
    seen.run.click()
    assert runs == {"measure": 1, "close_up": 1} and drawn(seen) == before


def test_changes_from_other_threads_wait_for_the_notebook(demo, monkeypatch):
    """JupyterLab sends some of them over subshells, while a cell may be using the model."""
    threads, own = set(), set()

    def recorded(*args, _function=exploration.close_up, **kwargs):
        threads.add(threading.get_ident())
        return _function(*args, **kwargs)

    monkeypatch.setattr(exploration, "close_up", recorded)

    async def scenario():
        own.add(threading.get_ident())
        seen = explore(demo, PROMPT)
        before = drawn(seen)
        await asyncio.to_thread(setattr, seen.layer, "value", 2)
        await asyncio.to_thread(setattr, seen.prompt, "value", "")
        await asyncio.to_thread(setattr, seen.prompt, "value", PROMPT)
        await asyncio.to_thread(seen.run.click)
        assert seen.choice.layer == 2 and changed(before, seen) == {HEADS, PATTERN}
        writer = threading.Thread(target=setattr, args=(seen.layer, "value", 5))
        writer.start()
        writer.join()  # a cell that does not let the loop run
        assert seen.layer.value == 5 and seen.choice.layer == 2
        await asyncio.sleep(0)
        assert seen.choice.layer == 5

    with ThreadPoolExecutor(1) as apart:  # a browser in this process keeps a loop running in its thread
        apart.submit(asyncio.run, scenario()).result()
    assert threads == own and len(own) == 1


def test_a_model_without_tokenizer_takes_ids(llama):
    seen = explore(llama, "5 6 7, 8 9")
    assert seen.error is None and heat(seen.figures[PATTERN]).shape == (5, 5)
    assert [label for label, _ in seen.position.options][:2] == ["0  5", "1  6"]
    seen.prompt.value = "words"
    assert "has no tokenizer: type token ids, numbers with spaces between" in seen.message.value
    seen.prompt.value = "5 600"
    assert "the token id 600, outside the vocabulary" in seen.message.value


def test_every_control_has_a_name_and_an_explanation(seen):
    controls = [getattr(seen, name) for name in ("prompt", *exploration.Choice.__dataclass_fields__)]
    assert all(control.description and control.tooltip for control in [*controls, seen.run])


def test_it_is_shown_as_a_widget(seen):
    bundle = seen._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == seen.widget.model_id


def test_messages_to_the_browser_hold_no_nan(seen, demo):
    from plotly.serializers import custom_serializers

    seen.prompt.value = "A."
    seen.metric.value, seen.intervention.value = "value_drain", "zero MLP"
    for figure in seen.figures.values():
        for part in (figure._widget_data, [figure._widget_layout]):
            for values in part:
                sent = custom_serializers["to_json"](values, None)
                json.dumps(sent, allow_nan=False, default=lambda binary: bytes(binary).hex())


@pytest.mark.once
def test_a_view_that_is_opened_later_shows_the_same(seen):
    """As after the page was loaded again: it begins with what the kernel has written down."""
    seen.layer.value, seen.intervention.value = 1, "zero MLP"
    for figure in seen.figures.values():
        state = figure.get_state()
        assert [t["uid"] for t in state["_widget_data"]] == [t.uid for t in figure.data] != []
        assert state["_widget_layout"]["title"]["text"] == figure.layout.title.text
        assert state["_widget_layout"]["width"] == figure.layout.width
    assert seen.figures[HEADS].get_state("_widget_layout")["_widget_layout"]["shapes"][0]["y1"] == 1.5
    seen.prompt.value = ""
    assert not any(figure.get_state()["_widget_data"] for figure in seen.figures.values())


def test_the_model_is_left_as_it_was(demo):
    tokens = torch.tensor([[0, 12, 13, 14, 20]])

    def logits():
        with torch.no_grad():
            return demo(tokens, return_type="logits")

    before, hooks = logits(), hook_census(demo)
    seen = explore(demo, PROMPT, interventions={"fails": fails, "too deep": mcr.zero_bos_mlp(99)})
    for name in seen.intervention.options:
        seen.intervention.value = name
    assert torch.equal(logits(), before) and hook_census(demo) == hooks


@pytest.mark.once
def test_refusals(demo, monkeypatch):
    with pytest.raises(TypeError, match="prompt must be text to begin with, got list"):
        explore(demo, [1, 2])
    with pytest.raises(TypeError, match="expected a TransformerLens model, got str"):
        explore("demo")
    with pytest.raises(ValueError, match="interventions: got list; pass a map such as"):
        explore(demo, interventions=[mcr.zero_bos_mlp(1)])
    with pytest.raises(ValueError, match="'cut' is a str, neither an intervention nor a function of layer"):
        explore(demo, interventions={"cut": "zero"})
    with pytest.raises(ValueError, match="interventions: 'none' cannot be a name"):
        explore(demo, interventions={"none": mcr.zero_bos_mlp(1)})
    for package in ("ipywidgets", "anywidget", "plotly"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=rf'needs {package}.*pip install "mcr-lens\[notebook\]"'):
                explore(demo)


@pytest.mark.once
def test_importing_it_imports_no_widgets():
    import subprocess

    code = (
        "import sys, mcr_lens.explorer\n"
        "print([m for m in ('ipywidgets', 'anywidget', 'plotly', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_public_class():
    assert explorer.explore.__annotations__["return"] == "Explorer" and Explorer.__doc__
