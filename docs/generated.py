"""Which parts of the pages follow from the code? The list of metrics, and the map of the house."""

import ast
import inspect
import re
import sys
import textwrap
import tomllib
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
MISLEADS = "Misleads when "
GROUPS = {
    "norms": "Norms of rows and activations",
    "attention": "How heads spread their attention",
    "sinks": "Sinks",
    "spectral": "Spectrum of the residual stream",
    "theory": "What Theorem 1 needs",
    "loss": "Loss",
}
"""Headings of the list of metrics, by the module that declares them."""

FLOOR = [
    "developing",
    "contributing",
    "determinism",
    "faults",
    "hostile_input",
    "security",
    "releasing",
    "mutants",
]
"""Pages that are listed where they exist."""


def write(folder: Path) -> None:
    """Write all of it, where it changed."""
    folder.mkdir(exist_ok=True)
    texts = {
        "metric_list.md": metric_list(),
        "map.md": house_map(),
        "floor.md": floor(),
        "contributing.md": rules(),
    }
    for name, text in texts.items():
        file = folder / name
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")


def metric_list() -> str:
    """Every metric: what it is, units, axes, source, whether it is a reconstruction, and when it misleads."""
    from mcr_lens.metrics import list_metrics

    found = sorted(list_metrics(), key=lambda m: [*GROUPS].index(m.group))
    text = ["| metric | axes | units | measured |", "|---|---|---|---|"]
    text += [
        f"| [`{m.name}`](#{anchor(m)}) | {' × '.join(m.axes)} | {m.units} | {_when(m)} |"
        for m in found
    ]
    for group, members in groupby(found, key=lambda m: m.group):
        text += [
            "",
            f"## {GROUPS[group]}",
            "",
            _question(sys.modules[f"mcr_lens.metrics.{group}"]),
        ]
        for m in members:
            text += ["", *_section(m)]
    return "\n".join(text) + "\n"


def anchor(metric) -> str:
    """Where on the page of metrics this one is."""
    return "metric-" + metric.name.replace("_", "-")


def parts_of(function) -> tuple[str, str, str, str]:
    """First line, what else is said, when it misleads, and the example of a metric's docstring."""
    first, _, rest = (inspect.getdoc(function) or "").partition("\n")
    body, _, example = rest.partition(">>>")
    paragraphs = [" ".join(p.split()) for p in body.strip().split("\n\n")]
    misleads = next((p for p in paragraphs if p.startswith(MISLEADS)), "")
    said = "\n\n".join(p for p in paragraphs if p and p != misleads)
    return first, said, misleads, (">>>" + example).rstrip() if example else ""


def _section(m) -> list[str]:
    first, said, misleads, example = parts_of(inspect.unwrap(m.function))
    reconstruction = "reconstruction" in f"{m.source} {said}".lower()
    facts = {
        "units": m.units,
        "axes": " × ".join(m.axes),
        "measured": _when(m),
        "reconstruction": "**yes**" if reconstruction else "no",
        "source": _md(m.source),
    }
    lines = [f"({anchor(m)})=", f"### {m.name}", "", _md(first), ""]
    lines += ["| " + " | ".join(facts) + " |", "|" + "---|" * len(facts)]
    lines += ["| " + " | ".join(facts.values()) + " |", ""]
    lines += [
        textwrap.fill(_md(re.sub(r"\s*Source: .*", "", said, flags=re.S)), 110),
        "",
    ]
    lines += [f"**{MISLEADS.strip()}** {_md(misleads.removeprefix(MISLEADS))}", ""]
    if example:
        lines += ["```pycon", example, "```"]
    return lines


def _when(m) -> str:
    return "by default" if m.default else "when named"


def _md(text: str) -> str:
    """Bars and stars as they stand, outside code."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([|*_<])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _question(module) -> str:
    return _md((module.__doc__ or "").split("\n")[0])


def rules() -> str:
    """CONTRIBUTING.md as a page: what it links to in docs lies beside it here."""
    return (ROOT / "CONTRIBUTING.md").read_text("utf-8").replace("](docs/", "](")


def floor() -> str:
    """The pages on how the library is kept, those that are there."""
    there = [name for name in FLOOR if (ROOT / "docs" / f"{name}.md").is_file()]
    head = "```{toctree}\n:caption: Under the floor\n:maxdepth: 1\n\n"
    return head + "\n".join(there) + "\n```\n"


def house_map() -> str:
    """Floors of the house from the roof down, as the import contract has them, and each room's question."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"][
        "importlinter"
    ]
    floors = next(
        c["layers"] for c in contracts["contracts"] if c["type"] == "layers"
    )
    lines = ["| floor | room | its question |", "|---|---|---|"]
    for height, floor in zip(range(len(floors) - 1, -1, -1), floors, strict=True):
        for room in sorted(
            name.strip().removeprefix("mcr_lens.") for name in floor.split("|")
        ):
            lines.append(f"| {height} | `{room}` | {_md(question_of(room))} |")
    return "\n".join(lines) + "\n"


def question_of(room: str) -> str:
    """First line of a module's docstring, without importing it."""
    path = ROOT / "mcr_lens" / room.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n")[
        0
    ]
