"""Attention patterns as a page: what stands in it, what it asks for, and what becomes markup (nothing)."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from html_page import Page

from mcr_lens import attention_views
from mcr_lens.attention_views import (
    AttentionView,
    attention_page,
    circuitsvis_script,
    edits_text,
    fragments,
)
from mcr_lens.schema import ResultSchemaError

HOSTILE = "</script><script>alert(1)</script>\"onmouseover='x' <!-- {{ 7*7 }} <img src=https://evil.example>"
EDIT = {"kind": "zero_ablation", "site": "mlp_out", "layers": [0], "positions": [0]}


def closeup(
    length: int = 5,
    *,
    conditions: tuple[str, ...] = ("clean", "cut"),
    heads: tuple[tuple[int, int], ...] = ((0, 1), (2, 0)),
    seed: int = 0,
    tokens: list[str] | None = None,
    **attrs: object,
) -> xr.Dataset:
    """What `close_up` would return, without a model: causal patterns whose rows sum to 1."""
    g = np.random.default_rng(seed)
    pattern = np.tril(g.random((len(conditions), len(heads), length, length)))
    pattern /= pattern.sum(-1, keepdims=True)
    about = {
        "model": "hand-made", "prompt": "A quiet afternoon", "n_tokens": length, "shown_tokens": length,
        "attention": "causal", "interventions": json.dumps({"clean": [], "cut": [EDIT]}),
    }  # fmt: skip
    return xr.Dataset(
        {
            "token_norm": (("condition", "depth", "position"), g.random((len(conditions), 4, length))),
            "pattern": (("condition", "shown", "query", "key"), pattern.astype(np.float32)),
        },
        coords={
            "condition": list(conditions),
            "token": ("position", np.array(tokens or [f"t{i}" for i in range(length)], dtype=object)),
            "layer": ("shown", [layer for layer, _ in heads]),
            "head": ("shown", [head for _, head in heads]),
            "position": np.arange(length),
        },
        attrs=about | attrs,
    )


def page(ds: xr.Dataset, **options) -> Page:
    return Page(attention_page(ds, **options).html)


def test_what_stands_on_the_page():
    """A button for each head, a pane for each condition with what was done, and the prompt."""
    found = page(closeup())
    buttons = [about for tag, about in found.tags if tag == "button"]
    assert [about["class"] for about in buttons] == ["attention-head"] * 2
    for text in ("hand-made", "A quiet afternoon", "block 0, head 1", "block 2, head 0"):
        assert text in found.text
    assert re.search(r"clean no intervention .*cut zero_ablation of mlp_out, block 0, position 0", found.text)
    assert sum(tag == "figure" for tag, _ in found.tags) == 2
    assert sum(tag == "canvas" for tag, _ in found.tags) == 4
    assert "The prompt has" not in found.text and "NaN" not in found.text


def test_data_is_the_dataset_to_three_digits():
    ds = closeup()
    data = page(ds).data
    drawn = np.array(data["pattern"]).reshape(ds.pattern.shape) / 1000
    np.testing.assert_allclose(drawn, ds.pattern, atol=0.0005001)
    assert data["tokens"] == [f"t{i}" for i in range(5)] and data["causal"] is True
    assert data["conditions"] == ["clean", "cut"] and data["heads"] == ["block 0, head 1", "block 2, head 0"]
    own = [np.diagonal(p)[1:].mean() for p in ds.pattern[1].values]
    sink = ds.pattern[1, :, :, 0].mean("query").values
    assert data["numbers"][1] == [
        f"mean attention to t0 {s:.2f}, to the token itself {i:.2f}" for s, i in zip(sink, own, strict=True)
    ]


def test_axes_may_stand_in_any_order():
    ds = closeup()
    assert attention_page(ds.transpose("key", "shown", "query", "condition", ...)) == attention_page(ds)


def test_one_token_and_an_encoder():
    """A single token has no others to compare itself with; an encoder hides no keys."""
    assert page(closeup(1)).data["numbers"][0][0] == "mean attention to t0 1.00"
    assert page(closeup(attention="bidirectional")).data["causal"] is False


def test_labels_of_tokens():
    """Blanks can be seen, long tokens are cut, whatever else stays."""
    tokens = [" ", "\n", "\t\u00a0", "Ġriver", "a" * 40, "日本", "\u202eevil"]
    wanted = ["␣", "⏎", "⇥␣", "Ġriver", "a" * 10 + "…", "日本", "\u202eevil"]
    assert page(closeup(7, tokens=tokens)).data["tokens"] == wanted


def test_a_long_prompt_is_cut_with_a_notice():
    """Whether `close_up` cut it, or the page."""
    long = page(closeup(200))
    assert "The prompt has 200 tokens; the first 128 are shown." in long.text
    assert len(long.data["tokens"]) == 128 and len(long.data["pattern"][0][0]) == 128**2
    assert "The prompt has 5 tokens; the first 3 are shown." in page(closeup(), max_tokens=3).text
    short = page(closeup(5, n_tokens=90))
    assert "The prompt has 90 tokens; the first 5 are shown." in short.text and "encoder" not in short.text
    encoder = page(closeup(5, n_tokens=90, attention="bidirectional"))
    assert "The model saw the first 5 tokens only. It is an encoder:" in encoder.text


def test_nan_is_named():
    ds = closeup()
    ds.pattern[0, 1, 3, :2] = np.nan
    ds.pattern[1, 0, 4, 4] = np.inf
    found = page(ds)
    assert "3 cells hold NaN or infinity and are drawn like 0." in found.text
    assert found.data["pattern"][0][1][15:17] == [None, None]
    assert "to t0 nan" in found.data["numbers"][0][1]


@pytest.mark.parametrize("where", ["token", "condition", "model", "prompt", "positions"])
def test_nothing_is_taken_for_html(where):
    ds = closeup()
    if where == "token":
        ds = closeup(tokens=["</script>", "<script>1", "\"onload='", "<!--", "&lt;"])
    elif where == "condition":
        ds = closeup(conditions=("clean", HOSTILE))
    elif where == "positions":
        edit = EDIT | {"positions": {"tokens": [HOSTILE]}}
        ds.attrs["interventions"] = json.dumps({"clean": [], "cut": [edit]})
    else:
        ds.attrs[where] = HOSTILE
    found, ordinary = page(ds), page(closeup())
    assert found.tags == ordinary.tags and len(found.scripts) == len(ordinary.scripts)
    for parts in (fragments(ds), fragments(closeup())):
        assert parts.html.count("<script") == parts.html.count("</script") == 1
    if where == "token":
        assert found.data["tokens"] == ds.token.values.tolist()
    elif where == "condition":
        assert HOSTILE in found.data["conditions"] and html.unescape(HOSTILE) in found.text
    else:
        assert HOSTILE in found.text


def test_asks_for_nothing():
    """No address in any attribute, a policy that forbids every request, the library inside."""
    text = attention_page(closeup()).html
    found = Page(text)
    (policy,) = [a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith(
        "default-src 'none'; script-src 'unsafe-inline'; style-src"
    )
    assert "unsafe-eval" not in policy and "http" not in policy
    addresses = [a[k] for _, a in found.tags for k in ("src", "href", "srcset", "action") if k in a]
    assert addresses == ["data:,"]
    assert (
        "sourceMappingURL" not in text and "@import" not in text and "url(" not in fragments(closeup()).style
    )
    assert text.count(circuitsvis_script()) == 1


def test_the_library_is_safe_inside_a_script():
    text = circuitsvis_script()
    assert "var CircuitsVis=" in text
    assert not re.search(r"</script|<script|<!--", text, flags=re.IGNORECASE)
    assert r"\x3cscript>\x3c/script>" in text


def test_fragments_are_the_parts_of_the_page():
    """The same style and script for every view, and no id, so that many views fit in one page."""
    whole, parts = attention_page(closeup()).html, fragments(closeup())
    for part in (parts.html, parts.style, parts.script):
        assert part.strip() and part in whole
    other = fragments(closeup(7, seed=1, conditions=("clean",)))
    assert (other.style, other.script) == (parts.style, parts.script) and other.html != parts.html
    assert not any("id" in about for _, about in Page(parts.html).tags)


def test_in_a_notebook():
    """A frame of fixed height that holds the page and nothing of the notebook's."""
    view = attention_page(closeup())
    ((tag, about),) = Page(view._repr_html_()).tags
    assert tag == "iframe" and about["srcdoc"] == view.html and about["sandbox"] == "allow-scripts"
    assert about["height"] == "780" and "height: 780px" in (about["style"] or "")
    assert repr(view) == "AttentionView(about='2 heads, 2 conditions, 5 tokens')"


def test_saved(tmp_path):
    """All of it or nothing; what cannot be written is said."""
    view = attention_page(closeup(model="Modell ☂"))
    path = view.save(tmp_path / "view.html")
    assert path.read_text("utf-8") == view.html and os.listdir(tmp_path) == ["view.html"]
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; create it first"):
        view.save(tmp_path / "nowhere" / "view.html")
    with pytest.raises(IsADirectoryError, match=r"is a folder; name a file in it, such as .*heads\.html"):
        view.save(tmp_path)
    assert AttentionView("\ud800").save(tmp_path / "odd.html").read_bytes() == b"?"


def test_edits_in_words():
    given = {"kind": "scale", "site": "z", "layers": [1, 2], "heads": [3], "positions": None, "factor": 0.5}
    assert edits_text([given]) == "scale of z, blocks 1 2, head 3, every position, factor 0.5"
    assert edits_text([EDIT | {"positions": "1:"}]) == "zero_ablation of mlp_out, block 0, positions 1:"
    at = {"positions": {"tokens": [".", 5]}}
    assert edits_text([EDIT, EDIT | at]).endswith("position 0; zero_ablation of mlp_out, block 0, tokens . 5")
    assert edits_text([]) == ""


@pytest.mark.parametrize("draw", [attention_page, fragments])
def test_refusals(draw):
    ds = closeup()
    with pytest.raises(ResultSchemaError, match=r"has no pattern; call mcr_lens\.close_up with heads="):
        draw(ds.drop_dims("shown"))
    with pytest.raises(ResultSchemaError, match="holds no pattern; pass it as"):
        draw(ds.isel(shown=slice(0)))
    with pytest.raises(
        ResultSchemaError, match=r"'pattern' has no axis 'condition', its .*as mcr_lens\.close_up"
    ):
        draw(ds.isel(condition=0))
    with pytest.raises(ResultSchemaError, match="expected a close-up, got this Dataset; pass what"):
        draw(ds.drop_dims("position"))
    with pytest.raises(ResultSchemaError, match="expected a close-up, got dict"):
        draw({})
    for wrong in (0, 129, 2.0, True, None):
        with pytest.raises(ValueError, match=rf"max_tokens={wrong}: a view draws from 1 to 128 tokens"):
            draw(ds, max_tokens=wrong)


def test_without_circuitsvis(monkeypatch, tmp_path):
    """Not installed, or without its JavaScript."""
    monkeypatch.setattr(attention_views, "find_spec", lambda _: None)
    with pytest.raises(
        ImportError, match=r'circuitsvis, which is not installed: pip install "mcr-lens\[plots\]"'
    ):
        attention_page(closeup())
    empty = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(attention_views, "find_spec", lambda _: empty)
    with pytest.raises(
        ImportError, match=r"circuitsvis has no iife\.js in .*: pip install --force-reinstall"
    ):
        attention_page(closeup())


def test_needs_no_model():
    """Neither torch nor a model is imported, nor the Python package of circuitsvis, which would import it."""
    code = (
        "import sys\n"
        "from mcr_lens.attention_views import circuitsvis_script\n"
        "import mcr_lens.notable\n"
        "circuitsvis_script()\n"
        "print(sorted({'torch', 'transformer_lens', 'transformers', 'circuitsvis'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
