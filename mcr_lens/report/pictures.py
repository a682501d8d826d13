"""Which figures does a page show, in which order, and what is said where one cannot be drawn?"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from mcr_lens import plots
from mcr_lens.phases import Phases, detect_phases
from mcr_lens.plots.theme import template, without_title
from mcr_lens.report.story import Story
from mcr_lens.schema import ResultSchemaError

HEAD_MAPS = ("sink_score", "mixing_score", "sink_identity", "value_drain")
NEEDED_BY = {"sink_identity": ("sink_identity_index", "sink_identity_mass")}


@dataclass(frozen=True)
class Picture:
    """A figure as the page needs it: the drawing as JSON, and in words what its title would say."""

    name: str
    label: str
    caption: str
    height: int
    drawing: str


@dataclass
class Section:
    """A heading, sentences, figures; `missing` says how to get what is not there."""

    name: str
    title: str
    sentences: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    missing: str = ""


def profile(story: Story) -> Section:
    """The layer profile with its phases."""
    sentence, phases = _phases(story.clean)
    found = Section("profile", "Layer profile", [sentence])
    fig = plots.plot_profile(story.clean, phases=phases)
    found.pictures.append(picture("layer-profile", "Norm, entropy and sinks by depth", fig))
    return found


def heads(story: Story) -> Section:
    """What each head does, how attention splits by layer, and sinks at every threshold."""
    found = Section("heads", "Heads")
    ds = story.clean
    maps = [name for name in HEAD_MAPS if all(n in ds for n in NEEDED_BY.get(name, (name,)))]
    if maps:
        _add(found, "head-scores", "Scores by layer and head", lambda: plots.plot_heads(ds, maps))
    _add(found, "shares", "Where attention goes, by layer", lambda: plots.plot_attention_shares(ds))
    _add(found, "sink-curves", "Sink rate at every threshold", lambda: plots.plot_sink_curves(ds))
    return found


def theory(story: Story) -> Section:
    """The theorem's bounds around what was measured."""
    found = Section("theory", "What a massive row implies")
    _add(found, "bounds", "Measured values between their bounds", lambda: plots.plot_bounds(story.clean))
    return found


def ablation(story: Story) -> Section:
    """What is left when the write is cut, beside its controls."""
    found = Section("ablation", "What happens without the write")
    ds = story.conditions
    if ds is None:
        found.missing = (
            "No ablation was made. mcr_lens.diagnose(model, prompts), or mcr-lens diagnose in a shell, cuts "
            "the write that makes the massive activation, beside matched controls."
        )
        return found
    if "factor" in ds.coords:
        _add(found, "doses", "Effect by dose", lambda: plots.plot_dose_response(ds))
    draw = lambda: plots.plot_comparison(ds, baseline=story.baseline)  # noqa: E731
    _add(found, "comparison", "The same prompts under every condition", draw)
    return found


def close_up(story: Story) -> Section:
    """Token norms of one prompt; the attention patterns stand beside them on the page."""
    found = Section("attention", "One prompt from close by")
    ds = story.close_up
    if ds is None:
        found.missing = (
            "No prompt was looked at from close by. Pass close_up=mcr_lens.close_up(model, prompt, "
            "mcr_lens.notable_heads(ds)) to write_report for token norms and attention patterns."
        )
        return found
    _add(found, "token-norms", "Norm of every token at every depth", lambda: plots.plot_token_norms(ds))
    return found


def dimensions(story: Story) -> Section:
    """Which dimensions hold the massive activations."""
    found = Section("dimensions", "Massive dimensions")
    draw = lambda: plots.plot_massive_dimensions(story.clean)  # noqa: E731
    _add(found, "massive-dimensions", "Largest activations and their dimensions", draw)
    return found


def picture(name: str, label: str, fig: Any) -> Picture:
    """A figure without its title, which the page sets in its own type, and without its template."""
    about = without_title(fig)
    fig.update_layout(template=None)
    return Picture(name, label, about["subtitle"], int(fig.layout.height), safe_json(fig.to_json()))


def themes() -> str:
    """The light and the dark template, as JSON that can stand inside a script element."""
    both = {name: template(dark).to_plotly_json() for name, dark in (("light", False), ("dark", True))}
    return safe_json(json.dumps(both))


def safe_json(text: str) -> str:
    """JSON in which no text can close a script element or open another."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _add(section: Section, name: str, label: str, draw: Callable[[], Any]) -> None:
    """The figure, if the result holds what it draws."""
    try:
        section.pictures.append(picture(name, label, draw()))
    except ResultSchemaError as error:
        section.sentences.append(f"{label}: not drawn, {error}.")


def _phases(ds: xr.Dataset) -> tuple[str, Phases | None]:
    """The phases in a sentence, and themselves where they can be told."""
    try:
        phases = detect_phases(ds)
    except ValueError as error:
        return f"Phases: cannot be told, {error}.", None
    if not phases.found:
        return f"Three phases were not found: {phases.reason}.", phases
    spans = {"mix": phases.mix, "compress": phases.compress, "refine": phases.refine}
    named = ", ".join(
        f"{name} at depth{f's {s.start} to {s.stop - 1}' if len(s) > 1 else f' {s.start}'}"
        for name, s in spans.items()
    )
    return f"Phases: {named} (shaded).", phases
