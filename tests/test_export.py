"""Do figures come out as PNG and SVG, where kaleido and a browser are installed?"""

import importlib.util
import os
import shutil
import struct
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_plots import fake_result

from mcr_lens.plots import plot_profile

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome.exe")
SIZE = (700, 640)
NAME = "acme/tiny & <b>small</b>"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def exporter(monkeypatch: pytest.MonkeyPatch):
    """Skips where nothing can draw, unless MCR_LENS_BROWSER=required; MCR_LENS_CHROMIUM names the browser."""
    chosen = os.environ.get("MCR_LENS_CHROMIUM") or os.environ.get("BROWSER_PATH")
    if chosen:
        monkeypatch.setenv("BROWSER_PATH", chosen)
    what = ""
    if importlib.util.find_spec("kaleido") is None:
        what = "kaleido is not installed, so figures cannot be written as images"
    elif not chosen and not any(map(shutil.which, BROWSERS)):
        what = (
            "kaleido draws with a browser, and neither Chromium nor Chrome is on the PATH or in BROWSER_PATH"
        )
    elif tuple(map(int, version("plotly").split(".")[:2])) < (6, 1):
        pytest.skip("plotly before 6.1 draws with kaleido 0.2 only, which no longer runs without warnings")
    if what and os.environ.get("MCR_LENS_BROWSER") == "required":
        pytest.fail(f"{what}, and MCR_LENS_BROWSER=required forbids to skip", pytrace=False)
    if what:
        pytest.skip(what)


def figure():
    return plot_profile(fake_result(model=NAME))


def test_png_has_the_size_asked_for(tmp_path: Path):
    path = tmp_path / "profile.png"
    figure().write_image(path, width=SIZE[0], height=SIZE[1], scale=2)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (2 * SIZE[0], 2 * SIZE[1])
    assert len(data) > 20_000  # something is drawn


def test_svg_holds_title_and_panels_as_text(tmp_path: Path):
    path = tmp_path / "profile.svg"
    figure().write_image(path, width=SIZE[0], height=SIZE[1])
    root = ElementTree.fromstring(path.read_text("utf-8"))
    assert root.tag == f"{SVG}svg"
    assert [float(root.attrib[side]) for side in ("width", "height")] == list(SIZE)
    words = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert any(NAME in text for text in words)  # as it came, and not as a tag
    assert any("Normalised matrix entropy" in text for text in words)
    assert len(list(root.iter(f"{SVG}path"))) > 10
