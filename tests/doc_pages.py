"""Which code stands in the pages of the documentation, and in which order?

A fenced block in `python` or `bash` is run, unless the comment `<!-- not run: WHY -->` stands right above it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
HOWTOS = sorted((DOCS / "howto").glob("*.md"))
RUN = [*(DOCS / f"{name}.md" for name in ("start_here", "concepts", "comparison", "api")), *HOWTOS]
"""Pages whose code is run."""

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<language>python|bash)\n(?P<code>.*?)^```$", re.S | re.M
)


@dataclass(frozen=True)
class Block:
    """One piece of code of a page; `why_not` says why it is not run, if it is not."""

    page: str
    line: int
    language: str
    code: str
    why_not: str | None


def blocks(page: Path) -> list[Block]:
    """The code of a page, from top to bottom."""
    text = page.read_text("utf-8")
    return [
        Block(page.name, text[: m.start("code")].count("\n"), m["language"], m["code"], m["why"])
        for m in _BLOCK.finditer(text)
    ]
