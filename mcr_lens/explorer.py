"""What happens if I change this? Controls and three figures for one prompt, in Jupyter."""

import asyncio
import html
import threading
from collections.abc import Callable, Mapping
from typing import Any

from mcr_lens._optional import require
from mcr_lens.closeup import CLEAN
from mcr_lens.exploration import Choice, Exploration
from mcr_lens.explorer_figures import empty, frame_head, new_figure, plot_pattern, redraw, visible
from mcr_lens.hookpoints import HookedModel
from mcr_lens.plots.heads import plot_heads
from mcr_lens.plots.profile import plot_profile

PROMPT = "The river had frozen in the night, and nobody wanted to be the first to cross it."

METRIC = "sink_score"


def explore(
    model: HookedModel,
    prompt: str = PROMPT,
    *,
    interventions: Mapping[str, Any] | None = None,
    dark: bool = False,
) -> "Explorer":
    """Look at one prompt from all sides, in Jupyter: type, choose, and the figures follow.

        explore(model, interventions={"two at once": zero_bos_mlp([1, 2])})

    Controls for prompt, layer, head, metric, position (the token taken for BOS) and intervention; profile,
    map of heads and the head's attention pattern. With an intervention, the profile shows the model before
    and after it, the map and the pattern show it after. A click on the map chooses that head.

    Args:
        model: what `load_model` returns.
        prompt: the text to begin with; for a model without tokenizer, token ids with spaces between.
        interventions: more of them by name. An intervention, or several, as they are: they say themselves in
            which layers. Or a function of the chosen layer and position that returns one.
        dark: figures for a dark notebook.

    Raises:
        ImportError: ipywidgets, anywidget or plotly is not installed.
        TypeError: not a TransformerLens model, or a prompt that is not text.
        ValueError: something among `interventions` that is not one. What goes wrong later is said in the
            widget, in one sentence.

    Source: this library.

    >>> from importlib.util import find_spec
    >>> shown = mcr.explore(model, "Snow fell.") if find_spec("anywidget") else None
    >>> shown is None or isinstance(shown, mcr.Explorer)
    True
    """
    for package in ("ipywidgets", "anywidget", "plotly"):
        require(package, extra="notebook")
    if not isinstance(prompt, str):
        raise TypeError(f"prompt must be text to begin with, got {type(prompt).__name__}")
    return Explorer(Exploration(model, interventions), prompt, dark=dark)


class Explorer:
    """The widget that `explore` returns; show it by its name at the end of a cell.

    Every control is an ipywidget that can be set from code (`explorer.layer.value = 3`): `prompt`, `layer`,
    `head`, `metric`, `position`, `intervention`. `figures` holds "profile", "heads" and "pattern", each a
    plotly `FigureWidget`, `choice` what they show (None: nothing, after an error), `error` what went wrong.
    """

    def __init__(self, exploration: Exploration, prompt: str, *, dark: bool = False) -> None:
        widgets = require("ipywidgets", extra="notebook")
        self._exploration, self._dark = exploration, dark
        cfg: Any = exploration.model.cfg
        self.prompt: Any = widgets.Text(
            prompt, description="Prompt", continuous_update=False, layout={"flex": "1 1 340px"},
            placeholder="type a prompt and press Enter", tooltip="Prompt: press Enter to measure it",
        )  # fmt: skip
        self.run: Any = widgets.Button(
            description="Measure", button_style="primary", tooltip="Measure the prompt"
        )
        self.layer: Any = self._number("Layer", cfg.n_layers, "Layer (block), counted from 0")
        self.head: Any = self._number("Head", cfg.n_heads, "Head of that layer, counted from 0")
        per_head = [name for name, m in exploration.metrics.items() if "head" in m.axes]
        others = [(name, name) for name in exploration.metrics if name not in per_head]
        self.metric: Any = widgets.Dropdown(
            options=[*((f"{name} (per head)", name) for name in per_head), *others], value=METRIC,
            description="Metric", tooltip="Metric of the map of heads and of the profile's last panel",
            layout={"width": "330px"},
        )  # fmt: skip
        self.position: Any = widgets.Dropdown(
            options=[("0", 0)], description="Position", tooltip="The token that is taken for BOS",
            layout={"width": "230px"},
        )  # fmt: skip
        self.intervention: Any = widgets.Dropdown(
            options=list(exploration.choices), description="Intervention",
            tooltip="What is changed in the chosen layer at the chosen position",
            style={"description_width": "90px"}, layout={"width": "330px"},
        )  # fmt: skip
        self.title: Any = widgets.HTML()
        self.message: Any = widgets.HTML()
        self.figures: dict[str, Any] = {name: new_figure() for name in ("profile", "heads", "pattern")}
        self.widget: Any = self._arranged(widgets)
        self.choice: Choice | None = None
        self.error: Exception | None = None
        self._drawn: dict[str, Any] = {}
        self._busy = False
        self._home = threading.get_ident()
        try:
            self._loop: Any = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self.run.on_click(lambda _: self._at_home(self._measure_anew))
        for control in (*self._controls, self.prompt):
            control.observe(lambda _: self._at_home(self._follow), "value")
        self._follow()

    @property
    def _controls(self) -> tuple[Any, ...]:
        return (self.layer, self.head, self.metric, self.position, self.intervention)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_(**kwargs)

    def _number(self, name: str, many: int, tooltip: str) -> Any:
        return require("ipywidgets", extra="notebook").BoundedIntText(
            0, min=0, max=many - 1, description=f"{name} (0–{many - 1})", tooltip=tooltip,
            style={"description_width": "90px"}, layout={"width": "170px"},
        )  # fmt: skip

    def _arranged(self, widgets: Any) -> Any:
        wrap = {"flex_flow": "row wrap", "width": "100%"}
        column = widgets.VBox([self.figures["heads"], self.figures["pattern"]])
        return widgets.VBox(
            [
                widgets.Box([self.prompt, self.run], layout=wrap),
                widgets.Box(self._controls, layout=wrap),
                self.title,
                self.message,
                widgets.Box([self.figures["profile"], column], layout=wrap),
            ]
        )

    def _at_home(self, act: Callable[[], None]) -> None:
        """Act in the thread of the notebook's cells, after the cell that runs there.

        JupyterLab hands some changes to other threads. Their hooks would meet a cell's forward pass.
        """
        if self._loop is None or threading.get_ident() == self._home:
            act()
        else:
            self._loop.call_soon_threadsafe(act)

    def _follow(self) -> None:
        """Make the figures show what the controls say, or nothing where that cannot be shown."""
        if self._busy:
            return
        self._busy = True  # the list of positions is changed below
        prompt = self.prompt.value
        try:
            self._name_positions(prompt)
            choice = Choice(
                prompt, self.layer.value, self.head.value, self.metric.value, self.position.value,
                self.intervention.value,
            )  # fmt: skip
            self._draw(choice)
            self.choice, self.error = choice, None
            self.title.value = f"<p>{self._describe(choice)}</p>"
            notes = "".join(f"<p>Note: {html.escape(note)}.</p>" for note in self._exploration.notes)
            self.message.value = notes and f'<div role="status">{notes}</div>'
        except Exception as error:  # of metrics and edits that users wrote, too
            self.choice, self.error = None, error
            self._blank()
            self.title.value = ""
            self.message.value = f'<p role="alert">Nothing is shown: {html.escape(_sentence(error))}</p>'
        finally:
            self._busy = False

    def _measure_anew(self) -> None:
        """What was kept may be of a model that has changed since."""
        self._exploration.forget()
        self._drawn = {}
        self._follow()

    def _name_positions(self, prompt: str) -> None:
        tokens = self._exploration.tokens(prompt)
        options = [(f"{i}  {visible(token)}", i) for i, token in enumerate(tokens)]
        if options != list(self.position.options):
            kept = min(self.position.value or 0, len(options) - 1)
            self.position.options = options
            self.position.value = kept

    def _describe(self, choice: Choice) -> str:
        token = self.position.options[choice.position][0]
        parts = (
            f"“{choice.prompt}”", f"layer {choice.layer}, head {choice.head}", choice.metric,
            f"position {token}", self._exploration.describe(choice),
        )  # fmt: skip
        return " · ".join(html.escape(part) for part in parts)

    def _draw(self, choice: Choice) -> None:
        exploration = self._exploration
        results = exploration.results(choice)
        closeup = exploration.pattern(choice)
        what = "head" in exploration.metrics[choice.metric].axes
        variable = choice.metric if what else METRIC
        name = list(results)[-1]  # under the intervention, where there is one
        measured = (choice.prompt, choice.position, choice.intervention, exploration.place(choice))
        self._redraw(
            "profile",
            (*measured, choice.metric),
            lambda: plot_profile(
                results if len(results) > 1 else results[CLEAN],
                ["massive_activation_ratio", "normalized_entropy", choice.metric],
                phases=None, dark=self._dark,
            ),
        )  # fmt: skip
        self._redraw(
            "heads", (*measured, variable), lambda: plot_heads(results[name], variable, dark=self._dark)
        )
        frame_head(self.figures["heads"], choice.layer, choice.head)
        for trace in self.figures["heads"].select_traces({"type": "heatmap"}):
            trace.on_click(lambda trace, points, state: self._at_home(lambda: self._choose(points)))
        self._redraw(
            "pattern",
            (*measured, choice.layer, choice.head),
            lambda: plot_pattern(closeup, condition=name, position=choice.position, dark=self._dark),
        )

    def _choose(self, points: Any) -> None:
        """A click on the map of heads: layer and head change together."""
        if not points.xs:  # plotly tells every trace of a click, also those that were missed
            return
        self._busy = True
        try:
            self.layer.value, self.head.value = int(points.ys[0]), int(points.xs[0])
        finally:
            self._busy = False
        self._follow()

    def _redraw(self, name: str, key: Any, plot: Any) -> None:
        """Bring a figure up to date, unless it shows this already."""
        if self._drawn.get(name) == key:
            return
        self._drawn.pop(name, None)  # so that it is drawn again if this fails
        redraw(self.figures[name], plot())
        self._drawn[name] = key

    def _blank(self) -> None:
        self._drawn = {}
        for figure in self.figures.values():
            empty(figure)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
