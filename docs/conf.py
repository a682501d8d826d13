"""How is the site built? `make docs`; warnings are errors, and nothing but MathJax needs a network."""

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import mcr_lens  # noqa: E402

import generated  # noqa: E402

project = "mcr_lens"
author = "The mcr_lens developers"
release = version = mcr_lens.__version__
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "_generated/*.md"]
templates_path = ["_templates"]
default_role = "code"
# What is included begins below the title of its page.
suppress_warnings = ["myst.header"]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "mcr_lens"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = False

autosummary_generate = True
# Two files whose names differ in case alone are one file on some systems.
autosummary_filename_map = {"mcr_lens.Phenomena": "mcr_lens.Phenomena-class"}
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Warns"]
maximum_signature_line_length = 88
nitpicky = True
# Types of other packages have no page here: looking them up would need a network.
nitpick_ignore_regex = [(r"py:(class|exc|obj|data|attr|func|meth|mod)", r".*")]

PAGES_OF = {
    "CONTRIBUTING.md": "contributing.md",
    "mcr_lens/demo/README.md": "model_card.md",
}
"""Pages that are files of the repository, included here."""


def plain_text(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text with formulas: indented blocks stay as they are, bars and stars no markup."""
    kept: list[str] = []
    as_it_stands = example = False
    for line in lines:
        flat = bool(line.strip()) and not line.startswith("    ")
        if not line.strip() or flat:
            as_it_stands, example = (
                as_it_stands and not flat,
                example and bool(line.strip()),
            )
        example = example or line.lstrip().startswith(">>>")
        said = next((one for one in reversed(kept) if one.strip()), "")
        if (
            line.startswith("    ")
            and kept
            and not kept[-1].strip()
            and not said.startswith("    ")
        ):
            kept, as_it_stands = [*kept, "::", ""], True
        kept.append(line if as_it_stands or example else _escaped(line))
    lines[:] = kept


def _escaped(line: str) -> str:
    parts = re.split(r"(``?[^`]*``?)", line)
    parts[::2] = [
        re.sub(r"(?<!\*)\*(?!\*)|\||(?<=\w)_(?=\W|$)", r"\\\g<0>", part)
        for part in parts[::2]
    ]
    return "".join(parts)


def links_within(app: Any, page: str, source: list[str]) -> None:
    """Links of pages to files of the repository: to their page here, or else no link."""
    for name, here in PAGES_OF.items():
        source[0] = re.sub(
            rf"\]\((\.\./)+{re.escape(name)}",
            f"]({'../' * page.count('/')}{here}",
            source[0],
        )
    source[0] = re.sub(
        r"\[([^\]]+)\]\((?:\.\./)+benchmarks/results/?\)", r"`\1`", source[0]
    )


def setup(app: Any) -> None:
    """Connect them, and write the parts of pages that follow from the code."""
    app.connect("autodoc-process-docstring", plain_text, priority=1)
    app.connect("source-read", links_within)
    generated.write(HERE / "_generated")
