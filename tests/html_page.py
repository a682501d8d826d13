"""A page taken apart: its tags, the words that are seen, its scripts and styles."""

import json
import re
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """Tags with attributes, visible text, and the scripts and styles of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        kind = {"script": self.scripts, "style": self.styles}.get(self._open, self.words)
        kind.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def data(self) -> Any:
        """What the first script holds, as JSON."""
        return json.loads(self.scripts[0])
