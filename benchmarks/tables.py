"""What do the benchmarks say, in words and in a picture? Writes docs/benchmarks.md from results/.

python benchmarks/tables.py
"""

import json
import math
from pathlib import Path
from typing import Any

from mcr_lens.metrics.quadrature import HIGHEST, LOWEST, STEP
from mcr_lens.metrics.spectral import TOP
from mcr_lens.metrics.tridiagonal import EASY

HERE = Path(__file__).parent
WAYS = ("bare", "no unembedding", "all", "usual")
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"


def read(name: str) -> Any:
    """One file of results; empty where that benchmark was not run."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def times(found: dict[str, Any]) -> str:
    """Ratios of `measure` and of the usual way, and of each group where it was run alone."""
    rows = []
    for each in found["times"]:
        over, less = each["over bare"], each["over no unembedding"]
        usual = round(over["usual"] / over["all"], 2) if "usual" in over else "does not fit"
        groups = ", ".join(
            f"{g} {less[g]}" for g in less if g not in ("bare", "no unembedding", "all", "usual")
        )
        seconds = each["seconds"]["no unembedding"]
        line = [each["model"], each["tokens"], each["batch"], seconds, over["all"], less["all"], usual]
        rows.append([*line, groups or "–"])
    head = ["model", "T", "batch", "forward, s", "÷ bare", "÷ without unembedding", "usual ÷ ours", "groups"]
    return table(head, rows)


def peaks(found: dict[str, Any]) -> str:
    """Peak memory of fresh processes."""
    ways = ["bare", "no unembedding", "all", "usual"]
    rows = [
        [each["model"], each["tokens"], each["batch"], *(each["MiB"][w] for w in ways)]
        for each in found["peaks"]
    ]
    return table(["model", "T", "batch", "bare", "without unembedding", "`measure`", "usual way"], rows)


def figure(growth: dict[str, Any], target: Path) -> None:
    """Seconds against what is varied, on logarithmic axes."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    fig = make_subplots(1, len(growth), subplot_titles=list(growth), horizontal_spacing=0.06)
    colours = {"forward": "#0072B2", "measure": "#D55E00", "spectra": "#009E73"}
    for column, (name, points) in enumerate(growth.items(), start=1):
        for way, colour in colours.items():
            x, y = [p[name] for p in points], [p[way] for p in points]
            fig.add_trace(
                go.Scatter(x=x, y=y, name=way, line_color=colour, legendgroup=way, showlegend=column == 1),
                row=1, col=column,
            )  # fmt: skip
    fig.update_xaxes(type="log", dtick="D2").update_yaxes(type="log")
    legend = {"orientation": "h", "y": -0.15}
    fig.update_layout(
        template="plotly_white", yaxis_title="seconds", legend=legend, margin={"t": 40, "r": 20}
    )
    fig.write_image(target, width=1200, height=420, scale=1.5)


def grown(growth: dict[str, Any]) -> str:
    """The section on growth, with its picture; nothing where it was not run."""
    if not growth:
        return ""
    figure(growth, DOCS / "images" / "growth.png")
    shares = {p["tokens"]: p["spectra"] / p["forward"] for p in growth["tokens"]}
    most = max(shares, key=lambda tokens: shares[tokens])
    overtaken = [tokens for tokens, share in shares.items() if share > 1]
    point = (
        f"they take longer than the forward pass at T = {', '.join(map(str, overtaken))}"
        if overtaken
        else "they never overtake the forward pass"
    )
    return f"""## Growth

![Seconds against tokens, layers, heads and prompts](images/growth.png)

In that family (width 256), the spectra of all depths weigh most at T = {most}, with {shares[most]:.2f} of the
forward pass; {point}.
Beyond T = 256 the matrix has the width's side, and costs grow linearly.

"""


def roofline(t: int, d: int = 768, layers: int = 12) -> tuple[float, float]:
    """GFLOP of one prompt: of the spectra at all depths, and of GPT-2's forward pass without unembedding."""
    n, m = min(t, d), max(t, d)
    if n <= EASY:  # all eigenvalues of both matrices
        values = 2 * 30 * n**2
    else:  # the largest ones, each in some 50 bisections, and the recursion at every point of the quadrature
        values = ((TOP + 1) * 50 * 5 + math.ceil((HIGHEST - LOWEST) / STEP) * 10) * n
    spectra = (layers + 1) * (n**2 * m + 4 / 3 * n**3 + values)
    forward = layers * (2 * 12 * d**2 * t + 4 * t**2 * d)
    return spectra / 1e9, forward / 1e9


def distances(found: dict[str, Any]) -> str:
    """What the arithmetic would cost beside what was measured, for GPT-2's size."""
    rows = []
    for each in found["times"]:
        if each["model"] == "gpt2" and each["batch"] == 8:
            spectra, forward = roofline(each["tokens"])
            measured = each["over no unembedding"]["all"]
            rows.append(
                [
                    each["tokens"],
                    f"{spectra:.2f}",
                    f"{forward:.0f}",
                    f"{1 + 2 * spectra / forward:.3f}",
                    measured,
                ]
            )
    head = ["T", "spectra, GFLOP", "forward, GFLOP", "÷ without unembedding, by arithmetic", "measured"]
    return table(head, sorted(rows))


def readouts(lens: dict[str, Any]) -> str:
    """The section on the logit lens; nothing where it was not run."""
    if not lens:
        return ""
    found = lens["lens"]
    names = ("forward", "unembedding", "logit lens", "usual")
    rows = [[found["tokens"], found["batch"], *(found[f"{n}, s"] for n in names), found["lens/floor"],
             found["usual/lens"]]]  # fmt: skip
    head = ["T", "batch", "forward, s", "one unembedding, s", "`logit_lens`, s", "usual, s", "÷ floor",
            "usual ÷ ours"]  # fmt: skip
    held = ", ".join(f"{found[f'peak MiB, {n}']} MiB ({n})" for n in ("forward", "logit lens", "usual"))
    return f"""## A logit lens

GPT-2 small's size with its vocabulary. The floor is a forward pass without unembedding and an unembedding of
every position at each of 13 depths; the usual way keeps the log-probabilities of all positions and depths.

{table(head, rows)}

Peak memory of a fresh process: {held}.

"""


def watching(found: dict[str, Any]) -> str:
    """The section on `training_callback`; nothing where it was not run."""
    if not found:
        return ""
    watch = found["watch"]
    each, step = watch["seconds of a measurement"], watch["seconds of a step"]
    return f"""## Watching a training

`training_callback` in a run of transformers' Trainer: a GPT-2 of 4 layers and width 128, batches of 8 × 128
tokens, {watch["steps"]} steps, eight prompts of 128 tokens at every {watch["every"]}th step.
{watch["measurements"]} measurements of {each} s each, a step takes {step} s:
{100 * watch["share of time"]:.2f} % of the training time.

"""


MEASURED = ("all", "spectral", "norms", "attention", "sinks", "theory")
"""What `measure` was asked for on the GPU."""


def on_gpu(found: dict[str, Any]) -> str:
    """What measuring costs a large model on a GPU; nothing where it was not run."""
    if not found:
        return ""
    doors = {"bridge, eager attention": "bridge, eager", "as it is served, sdpa": "served, sdpa"}
    head = ["", "bare, s", *(f"{name} ÷ bare" for name in ("no unembedding", *MEASURED)), "peak, MiB"]
    rows = []
    for title, name in doors.items():
        about = found[name]
        ratios = [about["over bare"].get(way, "–") for way in ("no unembedding", *MEASURED)]
        peaks = about["peak MiB above the weights"]
        rows.append([title, about["seconds"]["bare"], *ratios, f"{peaks['all']} ({peaks['bare']} bare)"])
    usual, error = found["usual way, 4 layers"], max(found["entropy error, nats"].values())
    return f"""## On a GPU

A random model of the shape of Llama 3 8B ({found["layers"]} layers) in bfloat16, {found["batch"]} prompts of
{found["tokens"]} tokens, on one {found["machine"]["gpu"]} with torch {found["machine"]["torch"]}
(`python benchmarks/bench_gpu.py --out benchmarks/results/gpu.json`, on a machine with CUDA and Triton). Peaks
are above the weights.

{table(head, rows)}

Entropies differ by at most {error:.0e} nats from those of float64 singular values (a model of 2 layers). The
usual way, `run_with_cache` with singular values of every depth and mean patterns, takes {usual["seconds"]} s
and {usual["peak MiB"]} MiB for 4 layers alone.

The largest part is the reduction of the Gram matrices to tridiagonal form, one for every depth and prompt,
which waits for memory rather than for arithmetic; then the Gram matrices in float64 and the exact medians.

"""


def main() -> None:
    """Write the page."""
    found, served, growth = read("measure"), read("served"), read("growth")
    mixed = found["mixed"]["over bare"]["all"]
    rows = [
        [name, *(v.get(k, "–") for k in ("sdpa", "measure/sdpa", "measure/eager", "peak GiB, measure"))]
        for name, v in served.items()
    ]
    others = on_gpu(read("gpu")) + readouts(read("lens")) + watching(read("watch")) + grown(growth)
    head = ["", "sdpa forward, s", "÷ sdpa", "÷ eager", "peak, GiB"]
    about = ", ".join(f"{k} {v}" for k, v in found["machine"].items())
    text = f"""# Benchmarks

Written by `python benchmarks/tables.py` from [the results](../benchmarks/results) that `make bench` leaves.
Every case alternates in a process of its own, on one machine: {about}.
Ratios mean something; seconds are this machine's.

## A bridge: all default metrics against the forward pass

Random models of GPT-2 small's size (real vocabulary) and of a Llama with 16 layers, width 1024 and grouped
heads. "Usual" is `run_with_cache`, singular values of every depth and the mean of every pattern. A batch that
is too wide for the processor's memory allocator runs in smaller parts inside `measure`
(`mcr_lens.prompts.LARGEST`), which is why it can be faster than the forward pass over the whole batch.

{times(found)}

One hundred prompts of mixed length (26 to 151 tokens): {mixed} × the bare forward pass on the same batches.

Peak memory of a fresh process, model and libraries included, in MiB:

{peaks(found)}

## A model as it is served

A Llama of 4 layers, width 256, 8 query and 4 key-value heads; `measure` with all default metrics against the
model's own forward pass with sdpa and with eager attention.

{table(head, rows)}

{others}## What the arithmetic alone would cost

By depth and prompt, in float64: a Gram matrix (n² m, half of the products by symmetry; n is the smaller and
m the larger of T and d), its reduction to tridiagonal form (4/3 n³), and from that both entropies and the
largest eigenvalues (all of them up to n = {EASY}, beyond that by bisection and quadrature, linear in n). One
prompt of the batches of 8 above, GPT-2's size, all depths; float64 counted at half the speed of the forward
pass, which is in float32:

{distances(found)}

What is measured has more in it: the pass over the patterns, the share of the sink in each head's output,
exact medians, and routines for small matrices, which do not reach the speed of the model's large products.
Where it is below the arithmetic, the forward pass over the whole batch waits for fresh memory that `measure`,
in parts, does not ask for. float32 would halve the spectra, and misses 10⁻⁵ nats on steep ones.
"""
    (DOCS / "benchmarks.md").write_text(text)


if __name__ == "__main__":
    main()
