"""Does the explorer follow mouse and keyboard in a real JupyterLab?"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.demo, pytest.mark.slow]

CELL = """\
import mcr_lens as mcr

explorer = mcr.explore(mcr.load_model("demo"))
explorer"""

WAIT = 120
"""Seconds for what takes a moment when two other processes want the same two cores."""

OPTIONS = (
    "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0",
    "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.extension_manager=readonly",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a notebook in a JupyterLab of our own: its settings, kernels and files are temporary."""
    import mcr_lens

    home = tmp_path_factory.mktemp("lab")
    quiet = home / "settings" / "@jupyterlab" / "apputils-extension"
    for folder in (quiet, home / "runtime", home / "notebooks"):
        folder.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    (home / "notebooks" / "explore.ipynb").write_text(notebook(CELL))
    root = str(Path(mcr_lens.__file__).parents[1])
    environment = os.environ | {
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
    }
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", *OPTIONS, f"--IdentityProvider.token={token}"]
    log = home / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={home / 'notebooks'}"], cwd=home, env=environment, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield f"{address(server, home / 'runtime', log)}doc/tree/explore.ipynb?token={token}"
    finally:
        stop(server)


def notebook(code):
    cell = {"cell_type": "code", "id": "one", "metadata": {}, "execution_count": None, "outputs": []}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps(
        {"cells": [cell | {"source": code}], "metadata": {"kernelspec": kernel}, "nbformat": 4,
         "nbformat_minor": 5}
    )  # fmt: skip


def address(server, runtime, log):
    """Where the server listens, as soon as it says so."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end and server.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text())["url"]
            except ValueError:  # half written
                pass
        time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}", pytrace=False)


def stop(server):
    """End the server, which ends its kernels; what does not listen is killed."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
            server.wait(15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return


class Lab:
    """The open notebook, its explorer, and what was heard from the page."""

    def __init__(self, visit, page):
        self.visit, self.page = visit, page
        self.output = page.locator(".jp-OutputArea").first

    def control(self, name):
        return self.output.get_by_label(name)

    @property
    def title(self):
        """The line that says what is shown."""
        return self.output.locator(".widget-html-content p").first

    def figure(self, name):
        return self.output.locator(".js-plotly-plot").nth(["profile", "heads", "pattern"].index(name))

    def shown(self):
        """Texts and marks of every figure."""
        return {name: self.figure(name).evaluate(SHOWN) for name in ("profile", "heads", "pattern")}

    def wait_for(self, said, before, changed):
        """Wait until the title says so and exactly these figures have changed since."""
        self.title.filter(has_text=said).wait_for(timeout=WAIT * 1000)
        end = time.monotonic() + WAIT
        while True:
            now = self.shown()
            found = {name for name in now if now[name] != before[name]}
            if found == changed or time.monotonic() > end:
                break
            self.page.wait_for_timeout(100)
        assert found == changed
        self.visit.check()
        return now


SHOWN = """figure => {
  const texts = [...figure.querySelectorAll(".main-svg text")].map(t => t.textContent);
  const marks = [...figure.querySelectorAll(".scatterlayer path, .heatmaplayer image, .shapelayer path")];
  return JSON.stringify([texts, marks.map(m => m.getAttribute("d") || m.getAttribute("href")
    || m.getAttribute("xlink:href"))]);
}"""


KERNEL_READY = """() => {
  const shown = window.jupyterapp?.shell.currentWidget;
  return shown?.sessionContext?.session?.kernel?.status === "idle";
}"""


@pytest.fixture(scope="module")
def seen(lab, browser, listening):
    """The notebook, its only cell run, its figures drawn."""
    context = browser.new_context(viewport={"width": 1440, "height": 1300})
    context.set_default_timeout(WAIT * 1000)
    context.route("**/*", lambda r: r.continue_() if r.request.url.startswith(lab[:20]) else r.abort())
    page = context.new_page()
    page.goto(lab)
    page.wait_for_function(KERNEL_READY)  # until then, a cell that is run is forgotten
    page.locator(".jp-CodeCell .cm-content").first.click()
    found = Lab(listening(page), page)
    page.keyboard.press("Shift+Enter")
    try:
        for name in ("profile", "heads", "pattern"):
            found.figure(name).locator(".scatterlayer path, .heatmaplayer image").first.wait_for()
    except Exception as error:
        said = page.locator(".jp-Notebook").inner_text()
        pytest.fail(f"the explorer was not drawn: {error}\nThe notebook says:\n{said[-3000:]}", pytrace=False)
    yield found
    context.close()


def test_everything_is_there(seen):
    seen.title.filter(has_text="layer 0, head 0 · sink_score · position 0 <bos>").wait_for()
    assert "BOS norm over the median norm" in seen.shown()["profile"]
    for name in ("Prompt", "Layer", "Head", "Metric", "Position", "Intervention"):
        assert seen.control(name).is_visible(), name
    assert seen.output.get_by_text("Warning").count() == 0, "nothing complains under the cell"
    boxes = [seen.figure(name).bounding_box() for name in ("profile", "heads", "pattern")]
    room = seen.output.bounding_box()
    assert all(b["width"] > 400 and b["x"] + b["width"] <= room["x"] + room["width"] for b in boxes)
    seen.visit.check()


def test_the_layer_changes_with_the_keyboard(seen):
    before = seen.shown()
    seen.control("Layer").click()
    seen.page.keyboard.press("ArrowUp")
    now = seen.wait_for("layer 1, head 0", before, {"heads", "pattern"})
    assert "Attention of head 0 in layer 1" in now["pattern"]


def test_the_head_changes_with_a_click_on_the_map(seen):
    before = seen.shown()
    layer = seen.control("Layer").input_value()
    cells = seen.figure("heads").locator(".heatmaplayer image").first.bounding_box()
    # The last of four columns, in the row of the layer that is shown.
    x, y = cells["x"] + cells["width"] * 7 / 8, cells["y"] + cells["height"] * (int(layer) + 0.5) / 8
    seen.page.mouse.move(x, y, steps=3)
    seen.page.mouse.click(x, y)
    seen.wait_for(f"layer {layer}, head 3", before, {"heads", "pattern"})
    assert seen.control("Head").input_value() == "3"


def test_the_head_changes_with_its_control(seen):
    before = seen.shown()
    seen.control("Head").fill("2")
    seen.control("Head").press("Enter")
    seen.wait_for("head 2 ·", before, {"heads", "pattern"})


def test_the_intervention_changes_everything(seen):
    seen.control("Layer").fill("0")  # the block that writes the massive activation
    seen.control("Layer").press("Enter")
    seen.title.filter(has_text="layer 0,").wait_for()
    before = seen.shown()
    seen.control("Intervention").click()
    seen.page.keyboard.press("ArrowDown")
    seen.page.keyboard.press("Enter")
    now = seen.wait_for("zero MLP, in layer 0 at position 0", before, {"profile", "heads", "pattern"})
    assert "clean" in now["profile"] and "zero MLP" in now["profile"], "before and after"
    before = now
    seen.control("Layer").press("ArrowUp")
    seen.wait_for("zero MLP, in layer 1 at position 0", before, {"profile", "heads", "pattern"})
    seen.control("Intervention").select_option("none")
    seen.title.filter(has_text="the model as it is").wait_for()


def test_metric_and_position(seen):
    before = seen.shown()
    seen.control("Position").select_option(index=4)
    before = seen.wait_for("position 4", before, {"profile", "heads", "pattern"})
    seen.control("Metric").select_option("mixing_score (per head)")
    now = seen.wait_for("· mixing_score ·", before, {"profile", "heads"})
    assert "Mixing score" in now["heads"]


def test_a_prompt_is_typed_and_a_bad_one_is_answered_in_a_sentence(seen):
    before = seen.shown()
    hostile = "</script><img src=x onerror=alert(1)> she said."
    seen.control("Prompt").fill(hostile)
    seen.control("Prompt").press("Enter")
    seen.wait_for(f"“{hostile}”", before, {"profile", "heads", "pattern"})
    assert seen.page.locator("img[src=x]").count() == 0
    seen.control("Prompt").fill("")
    seen.output.get_by_role("button", name="Measure").click()
    alert = seen.output.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text() == "Nothing is shown: the prompt is empty; type some text"
    for name in ("profile", "heads", "pattern"):
        seen.figure(name).locator(".scatterlayer .trace, .heatmaplayer image").first.wait_for(
            state="detached"
        )
    before = seen.shown()
    seen.control("Prompt").fill("The shop was closed.")
    seen.control("Prompt").press("Enter")
    seen.wait_for("“The shop was closed.”", before, {"profile", "heads", "pattern"})
    assert alert.count() == 0
