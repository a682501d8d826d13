"""How does a story become HTML?"""

import json
import warnings
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import xarray as xr

from mcr_lens._optional import require
from mcr_lens.attention_views import circuitsvis_script, fragments
from mcr_lens.claims import say
from mcr_lens.reading import CUT_OFFS, caution, number, reading
from mcr_lens.report import pictures
from mcr_lens.report.story import Story
from mcr_lens.resampling import Interval
from mcr_lens.summaries import ShortPromptWarning
from mcr_lens.tables import profile_table

SHOWN = 20
"""How many prompts the page lists."""

ABOUT = ("schema", "interventions", "skipped_metrics")
"""Attributes that stand at the end of the provenance, because few readers ask for them."""


def render(story: Story) -> str:
    """The page of a story, complete.

    Raises:
        ResultSchemaError: none of the usual variables was measured.
        ValueError: nothing to draw.
        ImportError: plotly or jinja2 is not installed.
    """
    jinja2 = require("jinja2", extra="plots")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    ds, verdicts = story.clean, story.verdicts or {}
    with warnings.catch_warnings():  # short prompts are spoken of in words
        warnings.simplefilter("ignore", ShortPromptWarning)
        sections = {
            "profile": pictures.profile(story),
            "heads": pictures.heads(story),
            "theory": pictures.theory(story),
            "ablation": pictures.ablation(story),
            "attention": pictures.close_up(story),
            "dimensions": pictures.dimensions(story),
        }
    markup = require("markupsafe", extra="plots").Markup
    patterns = (
        None if story.close_up is None or "pattern" not in story.close_up else fragments(story.close_up)
    )
    return environment.from_string(_file("page.html.j2")).render(
        model=str(ds.attrs.get("model", "model")),
        facts=_facts(ds),
        summary=str(verdicts.get("summary", "")),
        claims=[_claim(claim) for claim in verdicts.get("claims", ())],
        cautions=caution(ds),
        sentences=reading(ds),
        cut_offs=CUT_OFFS,
        sections=sections,
        table=profile_table(ds),
        prompts=list(_prompts(ds)),
        many=ds.sizes["prompt"],
        provenance=_provenance(ds),
        glossary=[_term(str(name), array) for name, array in ds.data_vars.items()],
        style=markup(_file("page.css")),
        script=markup(_file("page.js")),
        plotly=markup(require("plotly.offline", extra="plots").get_plotlyjs()),
        patterns=None if patterns is None else markup(patterns.html),
        patterns_style=markup("" if patterns is None else patterns.style),
        patterns_scripts=[] if patterns is None else [markup(circuitsvis_script()), markup(patterns.script)],
        themes=markup(pictures.themes()),
        drawings={p.name: markup(p.drawing) for section in sections.values() for p in section.pictures},
    )


def _file(name: str) -> str:
    return files("mcr_lens.report").joinpath(name).read_text("utf-8")


def _claim(claim: Mapping[str, Any]) -> dict[str, str]:
    """A claim as JSON has it, in words."""
    effect, ends = claim.get("effect"), claim.get("ci")
    low, high = ends or (float("nan"), float("nan"))
    interval = (
        None if effect is None else Interval(effect, _real(low), _real(high), 0.95, int(claim.get("n", 0)))
    )
    return {
        "statement": str(claim["statement"]),
        "verdict": str(claim["verdict"]),
        "effect": "" if interval is None else say(interval),
        "measure": str(claim.get("measure", "")),
        "evidence": str(claim["evidence"]),
    }


def _real(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _facts(ds: xr.Dataset) -> str:
    """One line under the title: how many prompts, how long, which model size, when."""
    attrs, many = ds.attrs, ds.sizes["prompt"]
    facts = [f"{many} prompt{'' if many == 1 else 's'}"]
    if "n_tokens" in ds.coords and many:
        short, long = int(ds.n_tokens.min()), int(ds.n_tokens.max())
        facts[0] += f" of {short} tokens" if short == long else f" of {short} to {long} tokens"
    facts.append(f"{attrs['n_layers']} layers, {attrs['n_heads']} heads, width {attrs['d_model']}")
    facts += [str(attrs["dtype"])] if "dtype" in attrs else []
    facts += [f"measured {str(attrs['created'])[:10]}"] if "created" in attrs else []
    return " · ".join(facts)


def _prompts(ds: xr.Dataset) -> Iterator[dict[str, Any]]:
    for i in range(min(SHOWN, ds.sizes["prompt"])):
        row = ds.isel(prompt=i)
        yield {
            "number": i,
            "text": str(row.text.item()) if "text" in row.coords else "",
            "token": str(row.position_token.item()) if "position_token" in row.coords else "",
            "n_tokens": int(row.n_tokens) if "n_tokens" in row.coords else "",
            "truncated": bool(row.truncated) if "truncated" in row.coords else False,
            "has_bos": bool(row.has_bos) if "has_bos" in row.coords else False,
        }


def _provenance(ds: xr.Dataset) -> list[tuple[str, str]]:
    ordered = sorted(ds.attrs.items(), key=lambda item: item[0] in ABOUT)
    return [(str(key), value if isinstance(value, str) else _json(value)) for key, value in ordered]


def _json(value: Any) -> str:
    try:
        return json.dumps(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError):
        return str(value)


def _term(name: str, array: xr.DataArray) -> dict[str, str]:
    return {
        "name": name,
        "meaning": str(array.attrs.get("long_name", "")),
        "units": str(array.attrs.get("units", "")),
        "axes": ", ".join(map(str, array.dims)),
        "source": str(array.attrs.get("source", "")),
    }
