"""How does a close-up become attention patterns to look at: a page, a frame in a notebook, parts of a report?

Patterns are drawn by the JavaScript that circuitsvis ships. Its Python package, which would import torch, is
not imported. Everything stands inside the page, whose content-security policy forbids every request.
"""

import html
import json
import os
import re
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens._files import replacing
from mcr_lens._optional import require
from mcr_lens.schema import require_closeup

MOST = 128
"""Tokens that a view draws at most: it draws their square, and a browser takes its time over more."""

HEIGHT = 780
"""Pixels of the frame in a notebook. It is fixed, because one that follows what is drawn would not settle."""

LABEL = 11
"""Characters of a token that fit beside an axis."""

COLOR, HIDDEN = (0, 70, 130), (238, 240, 243)
"""Attention 1 (0 is white), and keys that a causal model's query cannot see."""

BLANKS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}
"""Tokens of nothing but blanks would have no label."""


@dataclass(frozen=True)
class AttentionView:
    """Attention patterns as one self-contained page; a notebook shows it in a frame.

    `html` is the whole document. It asks for nothing from outside, so the file can be sent.

    >>> view = mcr.attention_view(model, "Snow fell.", layer=1)
    >>> isinstance(view, mcr.AttentionView), "<html" in view.html
    (True, True)
    """

    html: str = field(repr=False)
    about: str = ""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, all of it or nothing.

        Raises:
            FileNotFoundError: the folder does not exist.
            OSError: the file cannot be written.
        """
        target = Path(path)
        if target.is_dir():
            raise IsADirectoryError(
                f"{target} is a folder; name a file in it, such as {target / 'heads.html'}"
            )
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{target.parent} is not a folder; create it first")
        with replacing(target) as part:
            part.write_bytes(self.html.encode("utf-8", "replace"))
        return target

    def _repr_html_(self) -> str:
        """A frame of fixed height, apart from the notebook: scripts run in it and reach nothing outside."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts" title="Attention patterns" '
            f'width="100%" height="{HEIGHT}" style="border: 0; width: 100%; height: {HEIGHT}px"></iframe>'
        )


@dataclass(frozen=True)
class Fragments:
    """What a larger page needs to show a view without a frame; everything in it is safe as it stands.

    Put `style` once into a `<style>`, `html` wherever a view belongs, and once, behind all views, a
    `<script>` with `circuitsvis_script()` and another with `script`; these two and `style` are the same for
    every view.
    The page may set the colours `--card`, `--line`, `--soft`, `--mark`, `--note`, `--note-line`.
    """

    html: str = field(repr=False)
    style: str = field(repr=False)
    script: str = field(repr=False)


def attention_page(closeup: xr.Dataset, *, max_tokens: int = MOST) -> AttentionView:
    """The patterns of a close-up as a page: heads to choose from, and the chosen one under each condition.

    Rows are queries, columns keys, from 0 to 1 in every pattern, so that shades can be compared; values are
    rounded to three digits. Above each pattern stand the mean attention to the first token, (1/T) Σ_t A_t0,
    and to itself, mean over t ≥ 1 of A_tt, over the tokens shown.

    Args:
        closeup: what `close_up` returns, with heads.
        max_tokens: the view is cut to so many tokens, and says so; at most 128.

    Raises:
        ResultSchemaError: not a close-up, or one without patterns.
        ValueError: a number of tokens that is not within 1..128.
        ImportError: jinja2 or circuitsvis is not installed.

    Source: this library, with CircuitsVis; scores as `sink_score` and `identity_score`.
    """
    context = _context(closeup, max_tokens)
    context["library"] = _safe(circuitsvis_script())
    sizes = {axis: context[axis] for axis in ("heads", "conditions")}
    about = ", ".join(f"{len(found)} {axis}" for axis, found in sizes.items())
    return AttentionView(_template().render(context), f"{about}, {context['shown']} tokens")


def fragments(closeup: xr.Dataset, *, max_tokens: int = MOST) -> Fragments:
    """The same view as `attention_page`, in parts for a larger page.

    Raises:
        As `attention_page`; circuitsvis is not asked for here.

    Source: this library.
    """
    context, template = _context(closeup, max_tokens), _template()
    view, style, script = (
        "".join(template.blocks[name](template.new_context(context))) for name in ("view", "style", "script")
    )
    return Fragments(view, style, script)


def circuitsvis_script() -> str:
    """The JavaScript of circuitsvis, safe inside a `<script>`: it defines `CircuitsVis` and asks for nothing.

    Raises:
        ImportError: circuitsvis is not installed, or without its JavaScript.

    Source: CircuitsVis.
    """
    spec = find_spec("circuitsvis")  # finds the package without importing it
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise ImportError(
            'this needs circuitsvis, which is not installed: pip install "mcr-lens[plots]"',
            name="circuitsvis",
        )
    source = Path(folders[0], "dist", "cdn", "iife.js")
    if not source.is_file():
        raise ImportError(
            f"circuitsvis has no {source.name} in {source.parent}: pip install --force-reinstall circuitsvis",
            name="circuitsvis",
        )
    text = re.sub(r"(?m)^//# sourceMappingURL=.*$", "", source.read_text("utf-8"))
    # In its strings; as \x3c they say the same and end or open no element.
    return re.sub(r"<(?=/?script[\s/>]|!--)", r"\\x3c", text, flags=re.IGNORECASE)


def check_drawable(max_tokens: int) -> None:
    """Refuse more tokens than a view draws.

    Raises:
        ValueError: not a number within 1..128.
    """
    whole = isinstance(max_tokens, Integral) and not isinstance(max_tokens, bool)
    if not whole or not 1 <= max_tokens <= MOST:
        raise ValueError(
            f"max_tokens={as_shown(max_tokens)}: a view draws from 1 to {MOST} tokens; pass such a number"
        )


def edits_text(made: list[dict[str, Any]]) -> str:
    """What an intervention's `describe` says, in words.

    >>> edits_text([{"kind": "zero_ablation", "site": "mlp_out", "layers": [0], "positions": [0]}])
    'zero_ablation of mlp_out, block 0, position 0'
    """
    return "; ".join(_edit_text(edit) for edit in made)


def _edit_text(edit: dict[str, Any]) -> str:
    places = edit.get("positions")
    if isinstance(places, list):
        where = _some("position", places)
    elif isinstance(places, dict):
        where = _some("token", places.get("tokens", []))
    else:
        where = "every position" if places is None else f"positions {places}"
    parts = [f"{edit.get('kind', 'edit')} of {edit.get('site', '?')}", _some("block", edit.get("layers", []))]
    parts += [_some("head", edit["heads"])] if "heads" in edit else []
    settings = {key: value for key, value in edit.items() if key not in ("kind", "site", "layers", "heads")}
    numbers = [f"{key} {value:g}" for key, value in settings.items() if isinstance(value, int | float)]
    return ", ".join([*parts, where, *numbers])


def _some(word: str, items: list[Any]) -> str:
    return f"{word}{'' if len(items) == 1 else 's'} {' '.join(map(str, items))}"


def _context(closeup: xr.Dataset, max_tokens: int) -> dict[str, Any]:
    """Everything that the template shows, cut to what can be drawn."""
    require_closeup(closeup, "pattern", "condition", "shown", "query", "key")
    check_drawable(max_tokens)
    shown = min(max_tokens, closeup.sizes["key"])
    cut = closeup.isel(query=slice(shown), key=slice(shown), position=slice(shown))
    patterns = cut.pattern.transpose("condition", "shown", "query", "key").values.astype(float)
    names = [str(name) for name in cut.condition.values]
    tokens = [_visible(str(token)) for token in cut.token.values]
    places = zip(cut.layer.values.tolist(), cut["head"].values.tolist(), strict=True)
    heads = [f"block {layer}, head {head}" for layer, head in places]
    causal = closeup.attrs.get("attention", "causal") == "causal"
    data = {
        "tokens": tokens,
        "causal": causal,
        "heads": heads,
        "conditions": names,
        "pattern": [[_thousandths(pattern) for pattern in patterns_of] for patterns_of in patterns],
        "numbers": [[_numbers(pattern, tokens[0]) for pattern in patterns_of] for patterns_of in patterns],
        "color": COLOR,
        "hidden": HIDDEN,
    }
    made = _interventions(closeup)
    did = {name: edits_text(edits) or "no intervention" for name, edits in made.items()}
    return {
        "model": str(closeup.attrs.get("model", "a model")),
        "prompt": str(closeup.attrs.get("prompt", "")),
        "notices": _notices(closeup, shown, int((~np.isfinite(patterns)).sum()), causal=causal),
        "heads": heads,
        "conditions": [{"name": n, "did": "" if did.get(n) == n else did.get(n, "")} for n in names],
        "shown": shown,
        "color": f"rgb{COLOR}",
        "data": _safe(_json(data)),
    }


def _interventions(closeup: xr.Dataset) -> dict[str, Any]:
    made = json.loads(str(closeup.attrs.get("interventions", "{}")))
    return made if isinstance(made, dict) else {}


def _notices(closeup: xr.Dataset, shown: int, broken: int, *, causal: bool) -> list[str]:
    n_tokens = int(closeup.attrs.get("n_tokens", shown))
    measured = closeup.sizes["position"]
    notices = []
    if n_tokens > shown:
        notices.append(f"The prompt has {n_tokens} tokens; the first {shown} are shown.")
    if n_tokens > measured and not causal:
        notices.append(
            f"The model saw the first {measured} tokens only. It is an encoder: with the rest of the prompt, "
            "these numbers would be others."
        )
    if broken:
        notices.append(f"{broken} cells hold NaN or infinity and are drawn like 0.")
    return notices


def _visible(token: str) -> str:
    """A token as a label: blanks can be seen, long ones are cut."""
    text = "".join(BLANKS.get(c, "␣" if c.isspace() else c) for c in token)
    return text if len(text) <= LABEL else f"{text[: LABEL - 1]}…"


def _thousandths(pattern: np.ndarray) -> list[int | None]:
    """Row by row, in thousandths: three digits, in few characters."""
    flat = pattern.ravel()
    whole = np.where(np.isfinite(flat), flat * 1000, 0).round().astype(int).tolist()
    return [v if ok else None for v, ok in zip(whole, np.isfinite(flat).tolist(), strict=True)]


def _numbers(pattern: np.ndarray, first: str) -> str:
    text = f"mean attention to {first} {pattern[:, 0].mean():.2f}"
    return text if len(pattern) == 1 else f"{text}, to the token itself {np.diagonal(pattern)[1:].mean():.2f}"


def _json(data: Any) -> str:
    """JSON that is text alone, wherever in a page it stands."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return re.sub(r"[<>&']", lambda found: f"\\u{ord(found[0]):04x}", text)


def _template() -> Any:
    jinja2 = require("jinja2", extra="plots")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(files("mcr_lens").joinpath("attention.html.j2").read_text("utf-8"))


def _safe(text: str) -> Any:
    return require("markupsafe", extra="plots").Markup(text)
