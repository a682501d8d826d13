"""Does nothing leave the machine, and nothing come in, unless a model or data set is named?"""

import json
import re
from pathlib import Path

import pytest
from html_page import Page
from scripts import ran

SCRIPT = Path(__file__).with_name("offline_caller.py")
PAGES = ("measured/report.html", "diagnosed/report.html", "page/report.html", "lens/lens.html")
LOADS = (
    "src",
    "href",
    "srcset",
    "action",
    "data",
    "poster",
    "background",
    "formaction",
    "ping",
    "xlink:href",
)

pytestmark = [pytest.mark.demo, pytest.mark.once]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> tuple[Path, dict]:
    """Every command that needs no network, in a process that has none."""
    pytest.importorskip("plotly"), pytest.importorskip("circuitsvis")
    folder = tmp_path_factory.mktemp("offline")
    done = ran(SCRIPT, folder)
    return folder, json.loads(done.stdout.rsplit("SEEN ", 1)[1])


@pytest.mark.slow
def test_nobody_is_called(seen):
    """No telemetry, no look for a newer version, no file of the bundled model from a hub."""
    _, found = seen
    assert found == {"codes": [0] * 7, "attempts": []}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_pages_load_nothing(seen, page):
    """No host in any attribute, no stylesheet or script from elsewhere, no frame."""
    found = Page((seen[0] / page).read_text("utf-8"))
    loads = [
        (tag, name, value)
        for tag, attrs in found.tags
        for name, value in attrs.items()
        if name in LOADS and not (value or "").startswith("#")
    ]
    assert loads == []
    assert not {tag for tag, _ in found.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"@import|url\((?!['\"]?data:)", " ".join(found.styles))
    own = [script for script in found.scripts if len(script) < 100_000]
    assert not any(re.search(r"\bimport\(|\bfetch\(|XMLHttpRequest|sendBeacon|WebSocket", s) for s in own)


def test_ray_sends_no_statistics():
    """Ray would report usage to its makers unless it is told not to."""
    source = (Path(__file__).parents[2] / "mcr_lens" / "sweep_ray.py").read_text("utf-8")
    start, told = source.index("self._ray.init("), source.index('setdefault("RAY_USAGE_STATS_ENABLED", "0")')
    assert told < start


def test_the_notebook_view_does_not_ping():
    """Circuitsvis asks google.com whether there is a network; our view is a frame that reaches nothing."""
    from mcr_lens import AttentionView

    shown = AttentionView("<p>a page</p>", "a view")._repr_html_()
    (frame,) = [attrs for tag, attrs in Page(shown).tags if tag == "iframe"]
    assert frame["sandbox"] == "allow-scripts" and "src" not in frame
