"""How does a result become one page that can be kept, sent and printed?

The page is a single file: style and plotly.js stand inside it, and its content-security policy forbids
every request.
"""

import json
import os
import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from mcr_lens._files import replacing
from mcr_lens._optional import require
from mcr_lens.claims import Claim, say
from mcr_lens.plots import plot_profile
from mcr_lens.reading import CUT_OFFS, caution, number, reading
from mcr_lens.results import require_single
from mcr_lens.summaries import ShortPromptWarning
from mcr_lens.tables import profile_table

if TYPE_CHECKING:
    from mcr_lens.diagnosis import Diagnosis

SHOWN = 20
"""How many prompts the page lists."""

ABOUT = ("schema", "interventions", "skipped_metrics")
"""Attributes that stand at the end of the provenance, because few readers ask for them."""


def write_report(
    ds: xr.Dataset, path: str | os.PathLike[str], *, diagnosis: "Diagnosis | None" = None
) -> Path:
    """Write a result as one self-contained HTML page, all of it or nothing.

    Args:
        ds: a result of `measure`.
        path: the file.
        diagnosis: what `diagnose` returns; its verdicts come first on the page.

    Raises:
        ResultSchemaError: not a result, several conditions, no prompts, or none of the usual variables
            was measured.
        ValueError: nothing to draw.
        FileNotFoundError: the folder does not exist.
        ImportError: plotly or jinja2 is not installed.
        OSError: the file cannot be written.

    Source: this library.
    """
    require_single(ds)
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; name a file in it, such as {target / 'report.html'}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a folder; create it first")
    page = _page(ds, diagnosis).encode("utf-8", "replace")
    with replacing(target) as part:
        part.write_bytes(page)
    return target


def _page(ds: xr.Dataset, diagnosis: "Diagnosis | None") -> str:
    jinja2 = require("jinja2", extra="plots")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    template = environment.from_string(files("mcr_lens").joinpath("report.html.j2").read_text("utf-8"))
    markup = require("markupsafe", extra="plots").Markup
    return template.render(
        model=str(ds.attrs.get("model", "model")),
        facts=_facts(ds),
        summary="" if diagnosis is None else diagnosis.summary,
        claims=[] if diagnosis is None else [_claim(claim) for claim in diagnosis.claims],
        cautions=caution(ds),
        sentences=reading(ds),
        cut_offs=CUT_OFFS,
        figure=markup(_figure(ds)),  # plotly's own HTML, with < and > escaped in its JSON
        table=profile_table(ds),
        prompts=list(_prompts(ds)),
        many=ds.sizes["prompt"],
        provenance=_provenance(ds),
        glossary=[_term(str(name), array) for name, array in ds.data_vars.items()],
    )


def _figure(ds: xr.Dataset) -> str:
    """The profile and, before it, plotly.js itself."""
    with warnings.catch_warnings():  # short prompts are spoken of in words
        warnings.simplefilter("ignore", ShortPromptWarning)
        fig: Any = plot_profile(ds)
    # The page has the model's name already, so the figure's title and its room go.
    fig.update_layout(title=None, margin_t=fig.layout.margin.t - 44, height=fig.layout.height - 44)
    return fig.to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="profile",
        config={"responsive": True, "displaylogo": False},
    )


def _claim(claim: Claim) -> dict[str, str]:
    effect = claim.effect
    return {
        "statement": claim.statement,
        "verdict": claim.verdict,
        "effect": "" if effect is None else say(effect),
        "measure": claim.measure,
        "evidence": claim.evidence,
    }


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
