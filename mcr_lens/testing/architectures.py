"""What mcr_lens sees in every family, as a page of documentation.

    python -m mcr_lens.testing.architectures > docs/architectures.md

Everything in the tables is measured on the tiny models of `mcr_lens.testing.families`, with
`mcr_lens.inspection.inspect_model`; only the notes on an architecture are written by hand.
"""

from mcr_lens.inspection import Inspection, inspect_model
from mcr_lens.models import load_model
from mcr_lens.testing.families import FAMILIES, LAYERS, WINDOW, Family, tiny_model

INTRODUCTION = f"""# Architectures

Written by `python -m mcr_lens.testing.architectures > docs/architectures.md`; a test keeps it so.

Each family is tried out on a random model of its own Hugging Face class ({LAYERS} layers, windows of {WINDOW}
keys), behind the bridge of TransformerLens 3.9 and of 4.x, with the same outcome. So this says what can be
read and edited, and with which meaning; it says nothing about trained weights. On these models every metric
agrees with an independent float64 reference (`tests/test_reference.py`). For a model of your own:

    print(mcr_lens.inspect_model(model))  # or, in a shell: mcr-lens inspect NAME
"""

COLUMNS = """
- *supported*: every default metric can be measured.
- *keys seen*: which keys a query sees. Checked: the pattern is zero exactly outside them.
- *rows*: what an attention row sums to.
- *between*: whether there is a residual stream between attention and MLP (`resid_mid`).
- *values*: key-value heads for 4 heads.
- *edit*: what happens to the residual stream behind a block when a vector is added to what its MLP (or
  attention) writes at position 0: *exact*, it changes by that vector; *through a norm*, it changes by
  something else.
"""

READS = ("resid", "attn_out", "mlp_out", "resid_mid", "value", "pattern", "z")


def page() -> str:
    """The whole page, in Markdown."""
    seen = {name: inspect_model(load_model(tiny_model(name), verbose=False)) for name in FAMILIES}
    facts = [_facts(FAMILIES[name], found) for name, found in seen.items()]
    hooks = [[f"`{name}`", *_hooks(found)] for name, found in seen.items()]
    notes = [f"- `{f.name}`: {f.caveat}." for f in FAMILIES.values() if f.caveat]
    return "\n".join(
        [
            INTRODUCTION,
            _table(
                [
                    "family",
                    "class",
                    "supported",
                    "keys seen",
                    "rows",
                    "between",
                    "values",
                    "edit",
                    "what it has",
                ],
                facts,
            ),
            COLUMNS,
            "## What to know",
            "",
            *notes,
            "",
            "## Where it is read",
            "",
            "The first of the hook points, by TransformerLens' own name (without `blocks.0.`).",
            "",
            _table(["family", *(f"`{read}`" for read in READS)], hooks),
        ]
    )


def _facts(family: Family, found: Inspection) -> list[str]:
    sizes = {read.name: read.shape for read in found.reads}
    lost = any(layer.row_sum[0] < 0.99 for layer in found.layers)
    return [
        f"`{family.name}`",
        found.model,
        "yes" if found.supported else "no",
        _keys_seen(found),
        "below 1" if lost else "1",
        "yes" if sizes["resid_mid"] else "no",
        sizes["value"].split("head=")[1].split()[0],
        _edits(found),
        family.architecture,
    ]


def _keys_seen(found: Inspection) -> str:
    if any(layer.mask_problem for layer in found.layers):
        return "not as configured"
    windowed = [str(layer.layer) for layer in found.layers if layer.window]
    if not windowed:
        return "all earlier" if found.causal else "all"
    where = "" if len(windowed) == len(found.layers) else f" in layers {', '.join(windowed)}"
    return f"the last {WINDOW}{where}"


def _edits(found: Inspection) -> str:
    kinds = sorted(set(found.edits.values()))
    return kinds[0] if len(kinds) == 1 else "; ".join(f"{site}: {how}" for site, how in found.edits.items())


def _hooks(found: Inspection) -> list[str]:
    names = {read.name: read.hook.removeprefix("blocks.0.") for read in found.reads}
    return [f"`{names[read]}`" if names[read] else "none" for read in READS]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(page())
