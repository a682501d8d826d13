"""Do attention views work in a browser: linked, quiet, of a steady size, and deaf to what tokens say?"""

import numpy as np
import pytest
import xarray as xr

from mcr_lens.attention_views import attention_page, circuitsvis_script, fragments

T = 20
HOSTILE = [
    "</script><script>window.hurt=1</script>", "<img src=x onerror=window.hurt=1>",
    "\"onmouseover=window.hurt=1 x='", "<!--", "&lt;", "{{7*7}}", "</scrip", "<script>a", "\u202eevil",
]  # fmt: skip


def closeup(tokens=None, *, length=T, conditions=("clean", "cut"), **attrs) -> xr.Dataset:
    """Head (1, 2) is a sink and under every other condition an identity; head (3, 0) is uniform."""
    sink, own, even = np.zeros((length, length)), np.eye(length), np.tril(np.ones((length, length)))
    sink[:, 0] = 1
    even /= even.sum(1, keepdims=True)
    pattern = np.array([[own if i else sink, even] for i, _ in enumerate(conditions)])
    return xr.Dataset(
        {"pattern": (("condition", "shown", "query", "key"), pattern)},
        coords={
            "condition": list(conditions),
            "position": np.arange(length),
            "token": ("position", np.array(tokens or [f"t{i}" for i in range(length)], dtype=object)),
            "layer": ("shown", [1, 3]),
            "head": ("shown", [2, 0]),
        },
        attrs={"model": "hand-made", "prompt": "A quiet afternoon"} | attrs,
    )


@pytest.fixture
def opened(visit, tmp_path):
    """A view, saved and opened with the network cut."""

    def show(ds, **options):
        seen = visit(attention_page(ds).save(tmp_path / "view.html"), **options)
        plots(seen.page).first.wait_for()
        return seen

    return show


def plots(page):
    """The large patterns that can be seen."""
    return page.locator(".attention-plot canvas:visible")


INK = """canvas => {
  const {width, height} = canvas;
  const rgba = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const dark = [];
  for (let i = 0; i < rgba.length; i += 4) {
    const off = rgba[i] + Math.abs(rgba[i + 1] - 70) + Math.abs(rgba[i + 2] - 130);
    if (rgba[i + 3] > 200 && off < 30) {
      dark.push((i / 4) % width / width);
    }
  }
  const spread = dark.length ? Math.max(...dark) - Math.min(...dark) : 0;
  return {count: dark.length / width / height, spread};
}"""
"""Which share of a canvas has the colour of attention 1, and from where to where, over its width."""


def test_selecting_a_head_changes_every_condition(opened, width):
    """A column before, a diagonal after; then the other head in both, and back without drawing anew."""
    seen = opened(closeup(), width=width)
    page = seen.page
    assert plots(page).count() == 2
    clean, cut = (plots(page).nth(i).evaluate(INK) for i in range(2))
    assert 0.01 < clean["count"] < 0.1 and clean["spread"] < 0.1
    assert 0.01 < cut["count"] < 0.1 and cut["spread"] > 0.7
    buttons = page.locator(".attention-head")
    assert [b.get_attribute("aria-pressed") for b in buttons.all()] == ["true", "false"]
    buttons.nth(1).click()
    assert [b.get_attribute("aria-pressed") for b in buttons.all()] == ["false", "true"]
    said = page.locator(".attention-numbers").all_inner_texts()
    assert all(text.startswith("block 3, head 0: mean attention to t0 0.18,") for text in said)
    assert plots(page).count() == 2 and plots(page).first.evaluate(INK)["count"] < 0.01
    buttons.first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".attention-numbers").first.inner_text().startswith("block 1, head 2: mean attention")
    assert plots(page).count() == 2 and page.locator(".attention-plot canvas").count() == 4
    seen.check()


TOOLTIP = """canvas => {
  const rgba = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let grey = 0;
  for (let i = 0; i < rgba.length; i += 4) {
    grey += rgba[i] < 70 && rgba[i] === rgba[i + 1] && rgba[i] === rgba[i + 2] && rgba[i + 3] > 150;
  }
  return grey;
}"""
"""How many points of a canvas have the dark grey of a tooltip."""


def test_pointing_at_a_cell_tells_of_it(opened):
    """The tooltip is drawn into the canvas, in a colour that nothing else has."""
    seen = opened(closeup())
    canvas = plots(seen.page).nth(1)
    box = canvas.bounding_box()
    assert canvas.evaluate(TOOLTIP) < 100
    seen.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.6)
    seen.page.wait_for_timeout(600)
    assert canvas.evaluate(TOOLTIP) > 1000
    seen.check()


def test_conditions_stand_side_by_side_and_stacked_on_a_telephone(opened, width):
    seen = opened(closeup(), width=width)
    first, second = (pane.bounding_box() for pane in seen.page.locator(".attention-pane").all())
    if width > 700:
        assert first["y"] == second["y"] and second["x"] >= first["x"] + first["width"]
    else:
        assert first["x"] == second["x"] and second["y"] >= first["y"] + first["height"]
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for canvas in plots(seen.page).all():
        box = canvas.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and 250 < box["width"] <= 560
        assert abs(box["width"] - box["height"]) < 1


def test_size_is_steady_and_follows_the_window(opened):
    """It neither shrinks by itself, nor stays small when there is room again."""
    page = opened(closeup(conditions=("clean",))).page
    sizes = []
    for width in (1000, 390, 1000):
        page.set_viewport_size({"width": width, "height": 500})
        page.wait_for_timeout(500)
        sizes.append(
            {plots(page).first.bounding_box()["width"] for _ in range(5) if not page.wait_for_timeout(60)}
        )
    assert all(len(seen) == 1 for seen in sizes), sizes
    assert sizes[0] == sizes[2] == {560} and 250 < min(sizes[1]) < 390


def test_in_the_frame_of_a_notebook(visit, tmp_path):
    """A sandbox that scripts do not leave, of a height that stays."""
    path = tmp_path / "notebook.html"
    view = attention_page(closeup())
    path.write_text(f"<!doctype html><title>notebook</title>{view._repr_html_()}", "utf-8")
    seen = visit(path, width=900)
    frame = seen.page.frame_locator("iframe")
    frame.locator(".attention-plot canvas").first.wait_for()
    frame.locator(".attention-head").nth(1).click()
    assert frame.locator(".attention-numbers").first.inner_text().startswith("block 3, head 0")
    before = seen.page.locator("iframe").bounding_box()
    seen.page.wait_for_timeout(500)
    assert seen.page.locator("iframe").bounding_box() == before and before["height"] == 780
    outside = "try { window.parent.document.title } catch (error) { error.name }"
    assert seen.page.frames[1].evaluate(outside) == "SecurityError"
    seen.check()


def test_tokens_and_names_are_text(opened):
    """Nothing that a token, a condition, a model or a prompt says becomes an element or runs."""
    names = ("clean", HOSTILE[0] + HOSTILE[1])
    about = {"model": HOSTILE[1], "prompt": HOSTILE[2] + HOSTILE[0]}
    seen = opened(closeup(HOSTILE, length=len(HOSTILE), conditions=names, **about))
    ordinary = "[document.querySelectorAll('*').length, document.scripts.length, document.images.length]"
    hostile = seen.page.evaluate(ordinary)
    for head in seen.page.locator(".attention-head").all():
        head.click()
    for canvas in plots(seen.page).all():
        canvas.hover()
    assert seen.page.evaluate("window.hurt") is None
    text = seen.page.locator("body").inner_text()
    assert names[1] in text and about["model"] in text and about["prompt"] in text
    assert seen.page.locator("[onmouseover], [onerror]").count() == 0
    seen.check()
    plain = opened(closeup(length=len(HOSTILE)))
    assert plain.page.evaluate(ordinary) == hostile


def test_many_views_in_one_page(visit, tmp_path):
    """As a report has them: the library once, each view by itself."""
    parts = [fragments(closeup()), fragments(closeup(conditions=("clean",)))]
    scripts = "".join(f"<script>{text}</script>" for text in (circuitsvis_script(), parts[0].script))
    path = tmp_path / "report.html"
    body = "".join(part.html for part in parts)
    path.write_text(f"<!doctype html><style>{parts[0].style}</style>{body}{scripts}", "utf-8")
    seen = visit(path)
    plots(seen.page).nth(2).wait_for()
    seen.page.locator(".attention-view").nth(1).locator(".attention-head").nth(1).click()
    said = [text[:15] for text in seen.page.locator(".attention-numbers").all_inner_texts()]
    assert said == ["block 1, head 2", "block 1, head 2", "block 3, head 0"]
    seen.page.evaluate(parts[0].script)  # a second time changes nothing
    assert plots(seen.page).count() == 3
    seen.check()


PRINTED = """() => {
  document.body.style.width = "600px";  // looked at before the drawing can follow, as on paper
  return [...document.querySelectorAll(".attention-plot canvas")].map(canvas => {
    const [mine, room] = [canvas, canvas.closest(".attention-pane")].map(e => e.getBoundingClientRect());
    return mine.width > 150 && mine.left >= room.left - 1 && mine.right <= room.right + 1
      && Math.abs(mine.width - mine.height) < 1 && getComputedStyle(canvas).filter === "none";
  });
}"""


def test_on_paper(opened):
    """Narrower than the window: patterns are made smaller, not cut off; and light, were the window dark."""
    page = opened(closeup(), color_scheme="dark").page
    page.emulate_media(media="print")
    assert page.evaluate(PRINTED) == [True, True]


def test_dark(opened):
    """Dark cells stay apart from a dark card: what is drawn dark on white is turned over."""
    seen = opened(closeup(), color_scheme="dark")
    style = (
        "e => [getComputedStyle(e).filter, getComputedStyle(e.closest('.attention-view')).backgroundColor]"
    )
    turned, card = plots(seen.page).first.evaluate(style)
    assert turned.startswith("invert(") and card == "rgb(28, 32, 39)"
    light = opened(closeup(), color_scheme="light")
    assert plots(light.page).first.evaluate(style) == ["none", "rgb(255, 255, 255)"]
