"""How does a result become one page that can be kept, sent and printed?

The page is a single file: style, scripts and data stand inside it, and its content-security policy forbids
every request.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from mcr_lens._checks import path_of
from mcr_lens._files import replacing
from mcr_lens.report.page import render
from mcr_lens.report.story import read_story

if TYPE_CHECKING:
    from mcr_lens.diagnosis import Diagnosis


def write_report(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    diagnosis: "Diagnosis | Mapping[str, Any] | None" = None,
    conditions: xr.Dataset | None = None,
    close_up: xr.Dataset | None = None,
) -> Path:
    """Write a result as one self-contained HTML page, all of it or nothing.

    In this order: verdicts, the numbers in words, profile with phases, heads, theory, ablation with its
    controls, attention patterns and token norms of one prompt, massive dimensions, table, prompts,
    provenance, glossary. What was not measured is left out, or the page says how to get it.

    Args:
        ds: a result of `measure`, or one of `compare` (told as its condition "clean", or its first, with the
            others in the section on ablations).
        path: the file.
        diagnosis: what `diagnose` returns, or its `to_json()`; its verdicts come first on the page, and its
            experiments are the ablations.
        conditions: a result of `compare` on the same prompts, for the section on ablations.
        close_up: what `close_up` returns, for attention patterns and token norms.

    Raises:
        ResultSchemaError: not a result, no prompts, none of the usual variables was measured, or conditions
            and close-up of another model.
        ValueError: nothing to draw.
        FileNotFoundError: the folder does not exist.
        ImportError: plotly or jinja2 is not installed.
        OSError: the file cannot be written.

    Source: this library.
    """
    story = read_story(ds, diagnosis, conditions, close_up)
    target = path_of(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; name a file in it, such as {target / 'report.html'}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a folder; create it first")
    page = render(story).encode("utf-8", "replace")
    with replacing(target) as part:
        part.write_bytes(page)
    return target
