"""Does the report work in a browser: drawn, quiet, readable on a telephone, and deaf to what prompts say?"""

import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.demo

WIDE, NARROW, PAPER = 1440, 390, 720

SCRIPT = "</script><script>window.hurt=1;alert(1)</script>"
IMAGE = "<img src=x onerror=window.hurt=1>"
ATTRIBUTE = "\"onmouseover=window.hurt=1 x='"
HOSTILE = (
    f"The river had frozen {SCRIPT} in the night.",
    f"Nobody wanted to be {IMAGE} the first to cross it.",
    f"She counted the coins {ATTRIBUTE} twice, and went on.",
)


def diagnosed(model: str, folder: Path, *options: str) -> Path:
    """The page that `mcr-lens diagnose` leaves behind."""
    from mcr_lens.cli import app

    app(["diagnose", model, "--out", str(folder), *options], standalone_mode=False)
    return folder / "report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return diagnosed("demo", tmp_path_factory.mktemp("report"), "--limit", "6")


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory):
    """The bundled model under another name, with other tokens, on other prompts: none of them are nice."""
    from mcr_lens.models import demo_folder

    folder = tmp_path_factory.mktemp("hostile")
    model = folder / f"{IMAGE}{ATTRIBUTE}<" / "script>window.hurt=1<" / "script>"  # a name holds no slash
    shutil.copytree(demo_folder(), model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (model / name).read_text("utf-8")
        for token, other in (("<bos>", SCRIPT), ("<unk>", IMAGE)):
            text = text.replace(json.dumps(token), json.dumps(other))
        (model / name).write_text(text, "utf-8")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(HOSTILE), "utf-8")
    return diagnosed(str(model), folder / "out", "--prompts", str(prompts))


def figures(page):
    """All plotly figures of the page, each scrolled to and drawn."""
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    found = page.locator(".js-plotly-plot").all()
    assert found, "the page has no figures"
    for figure in found:
        figure.scroll_into_view_if_needed()
        figure.locator("svg.main-svg").first.wait_for()
    return found


DRAWN = """figure => {
  const size = figure.querySelector("svg.main-svg").getBoundingClientRect();
  const marks = figure.querySelectorAll(
    ".scatterlayer path, .heatmaplayer image, .barlayer path, .boxlayer path, .shapelayer path");
  const large = [...marks].filter(mark => {
    const r = mark.getBoundingClientRect();
    return r.width + r.height > 4;
  });
  return {width: size.width, height: size.height, marks: large.length};
}"""


def check_drawn(page, width):
    for figure in figures(page):
        drawn = figure.evaluate(DRAWN)
        assert 250 < drawn["width"] <= width and drawn["height"] > 150 and drawn["marks"] > 0, drawn


def test_every_figure_is_drawn_and_nothing_complains(visit, report, width):
    seen = visit(report, width=width)
    check_drawn(seen.page, width)
    seen.check()


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_light_and_dark(visit, report, scheme):
    seen = visit(report, color_scheme=scheme)
    check_drawn(seen.page, WIDE)
    page, text = seen.page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(
             document.querySelector(".js-plotly-plot .xtick text")).fill]"""
    )
    light = [sum(int(part) for part in color[4:-1].split(",")) > 382 for color in (page, text)]
    assert light == ([False, True] if scheme == "dark" else [True, False]), (page, text)
    seen.check()


@pytest.mark.slow
def test_a_page_that_turns_dark_while_open(visit, report):
    seen = visit(report, color_scheme="light")
    figures(seen.page)
    seen.page.emulate_media(color_scheme="dark")
    check_drawn(seen.page, WIDE)
    seen.check()


@pytest.mark.slow
def test_print(visit, report):
    """A4 between its margins: nothing is cut off on the right, and a PDF can be made."""
    seen = visit(report)
    check_drawn(seen.page, WIDE)
    seen.page.set_viewport_size({"width": PAPER, "height": 1000})
    seen.page.emulate_media(media="print")
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    seen.page.wait_for_timeout(500)
    check_width(seen.page)
    check_drawn(seen.page, PAPER)
    seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert seen.page.pdf(format="A4").startswith(b"%PDF")
    seen.check()


@pytest.mark.slow
def test_no_button_sends_a_figure_away(visit, report):
    """Plotly 7 has a button that uploads the figure; a page that asks nothing of a network has none."""
    seen = visit(report)
    figures(seen.page)
    titles = seen.page.locator(".modebar-btn").evaluate_all(
        "all => all.map(b => b.getAttribute('data-title') || b.getAttribute('aria-label') || '')"
    )
    away = [t for t in titles if any(word in t.lower() for word in ("share", "cloud", "chart studio"))]
    assert titles and not away


POINTS = """figure => {
  figure.scrollIntoView({block: "center"});
  const field = figure.querySelector(".nsewdrag").getBoundingClientRect();
  const found = [];
  for (const mark of figure.querySelectorAll(".scatterlayer .point, .barlayer .point path")) {
    const r = mark.getBoundingClientRect();
    found.push([r.x + r.width / 2, r.y + r.height / 2]);
  }
  for (const part of [0.5, 0.31, 0.72, 0.13, 0.9]) {
    for (const other of [0.5, 0.27, 0.83]) {
      found.push([field.x + field.width * part, field.y + field.height * other]);
    }
  }
  return found.filter(([x, y]) => x > 0 && y > 0 && x < innerWidth && y < innerHeight).slice(0, 40);
}"""


def hover(page, figure):
    """What the first hover label says that appears when the mouse goes from point to point."""
    for x, y in figure.evaluate(POINTS):
        page.mouse.move(x, y, steps=2)
        page.wait_for_timeout(120)
        said = figure.locator(".hoverlayer text").all_text_contents()
        if any(text.strip() for text in said):
            page.mouse.move(1, 1)
            return " ".join(said)
    return ""


@pytest.mark.slow
def test_hovering_shows_numbers(visit, report, width):
    seen = visit(report, width=width)
    for number, figure in enumerate(figures(seen.page)):
        said = hover(seen.page, figure)
        assert any(c.isdigit() for c in said), f"figure {number} says {said!r}"
    seen.check()


def attention(page):
    """The first attention view of the page, drawn."""
    view = page.locator(".attention-view").first
    view.scroll_into_view_if_needed()
    view.locator(".attention-plot canvas:visible").first.wait_for()
    return view


def test_a_head_can_be_selected_in_the_attention_view(visit, report, width):
    seen = visit(report, width=width)
    view = attention(seen.page)
    heads, said = view.locator(".attention-head"), view.locator(".attention-numbers").first
    assert heads.count() > 1
    pressed = [head.get_attribute("aria-pressed") for head in heads.all()]
    drawn, words = view.locator(".attention-panes").screenshot(), said.inner_text()
    heads.nth(pressed.index("false")).click()
    seen.page.mouse.move(1, 1)
    assert said.inner_text() != words
    assert view.locator(".attention-panes").screenshot() != drawn
    seen.check()


STICKING_OUT = """() => {
  const held = element => {
    for (let e = element.parentElement; e && e !== document.body; e = e.parentElement) {
      if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(e).overflowX)) { return true; }
    }
    return false;
  };
  return [...document.body.querySelectorAll("*")].filter(e => {
    const r = e.getBoundingClientRect();
    if (!r.width || !r.height || e.closest("svg svg, defs, #js-plotly-tester") || held(e)) { return false; }
    return r.right > innerWidth + 1 || r.left < -1;
  }).map(e => e.tagName + "." + (e.getAttribute("class") || e.id) + ": " + e.textContent.slice(0, 40));
}"""


def check_width(page):
    figures(page)
    page.evaluate("scrollTo(0, 0)")
    scroll, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert scroll <= inner, f"the page is {scroll} px wide in a window of {inner}"
    assert page.evaluate(STICKING_OUT) == []


def test_nothing_sticks_out(visit, report, width):
    check_width(visit(report, width=width).page)


@pytest.mark.slow
def test_nothing_sticks_out_after_the_window_was_made_narrow(visit, report):
    seen = visit(report, width=WIDE)
    figures(seen.page)
    seen.page.set_viewport_size({"width": NARROW, "height": 900})
    seen.page.wait_for_timeout(500)
    check_width(seen.page)
    seen.check()


OVERLAPS = """figure => {
  const texts = [...figure.querySelectorAll(
    ".gtitle, .xtitle, .ytitle, .x2title, .y2title, .y3title, .y4title, .annotation-text, .legendtext, " +
    ".cbtitle text, .xtick text, .ytick text")].filter(t => t.textContent.trim());
  const boxes = texts.map(t => [t, t.getBoundingClientRect()]).filter(([, r]) => r.width && r.height);
  const found = [];
  boxes.forEach(([a, r], i) => boxes.slice(i + 1).forEach(([b, s]) => {
    const wide = Math.min(r.right, s.right) - Math.max(r.left, s.left);
    const high = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
    if (wide > 1 && high > 3 && !a.contains(b)) { found.push([a.textContent, b.textContent]); }
  }));
  return found;
}"""


def test_texts_of_a_figure_do_not_overlap(visit, report, width):
    for figure in figures(visit(report, width=width).page):
        assert figure.evaluate(OVERLAPS) == []


INJECTED = """() => {
  const all = [...document.querySelectorAll("*")];
  return {
    scripts: document.scripts.length,
    handlers: all.flatMap(e => [...e.attributes]).filter(a => a.name.startsWith("on")).map(a => a.name),
    images: all.filter(e => e.getAttribute("src") === "x").length,
    hurt: window.hurt === undefined ? 0 : 1,
  };
}"""


def test_what_comes_from_outside_is_text(visit, report, hostile_report):
    ordinary = visit(report).page.evaluate(INJECTED)
    seen = visit(hostile_report)
    check_drawn(seen.page, WIDE)
    for figure in figures(seen.page):
        hover(seen.page, figure)
    view = attention(seen.page)
    for head in view.locator(".attention-head").all():
        head.click()
    for canvas in view.locator(".attention-plot canvas:visible").all():
        canvas.hover()
    assert seen.page.evaluate(INJECTED) == ordinary
    assert ordinary["handlers"] == [] and ordinary["hurt"] == 0
    text = seen.page.locator("body").inner_text()
    for hostile in (SCRIPT, IMAGE, ATTRIBUTE):
        assert hostile in text, f"{hostile} should be seen as it is"
    seen.check()


@pytest.mark.slow
def test_a_hostile_page_keeps_its_width(visit, hostile_report, width):
    check_width(visit(hostile_report, width=width).page)
