"""Make every figure of the library for one model: a page each and, where a browser is there, an image.

python examples/make_figures.py demo figures --image png

The pages share one plotly.min.js beside them. Images need `pip install kaleido` and Chrome or Chromium.
"""

import argparse
from pathlib import Path
from typing import Any

import mcr_lens as mcr

PROMPTS = (Path(mcr.__file__).parent / "demo" / "prompts.txt").read_text("utf-8").splitlines()
PROMPT = "Snow fell on the harbour, and the boats stayed in."  # looked at token by token


def figures(model: Any, prompts: list[str], prompt: str = PROMPT) -> dict[str, Any]:
    """Every figure by name, and what each is drawn from."""
    clean = mcr.measure(model, prompts, ["default", "loss"])
    phases = mcr.detect_phases(clean)
    twin = mcr.measure(mcr.random_twin(model, seed=0), prompts)
    layer = mcr.massive_layer(clean)
    cut = mcr.zero_bos_mlp(layer)
    both = mcr.compare(model, prompts, {"clean": [], "cut": cut, **mcr.matched_controls(cut, clean)})
    doses = mcr.dose_response(model, prompts, layers=layer, factors=(1, 0.75, 0.5, 0.25, 0.1, 0.05, 0))
    closeup = mcr.close_up(model, prompt, mcr.notable_heads(clean), conditions={"cut": cut})
    lens = mcr.logit_lens(model, prompts, progress=False)
    # Of a training, its two ends; examples/emergence.py has the checkpoints in between.
    ends = mcr.join_steps({0: twin, 1: clean[list(twin)]})
    return {
        "profile": mcr.plot_profile(clean),
        "several": mcr.plot_profile({"trained": clean, "random weights": twin}, relative=True),
        "heads": mcr.plot_heads(clean, ["sink_score", "mixing_score", "sink_identity", "value_drain"]),
        "attention_shares": mcr.plot_attention_shares(clean),
        "sink_curves": mcr.plot_sink_curves(clean),
        "massive_dimensions": mcr.plot_massive_dimensions(clean),
        "bounds": mcr.plot_bounds(clean),
        "comparison": mcr.plot_comparison(both),
        "dose_response": mcr.plot_dose_response(doses),
        "complexity": mcr.plot_complexity(clean),
        "emergence": mcr.plot_emergence(ends),
        "token_norms": mcr.plot_token_norms(closeup),
        "pattern": mcr.plot_pattern(closeup),
        "readouts": mcr.plot_readouts(lens, ["cross_entropy", "kl_to_final", "accuracy"], phases=phases),
    }


def main(folder: Path | str = "figures", model: Any = "demo", image: str | None = None) -> list[Path]:
    """Write the figures of a model, measured on the prompts that come with the library."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    bridge = mcr.load_model(model) if isinstance(model, str) else model
    written = []
    for name, fig in figures(bridge, PROMPTS).items():
        fig.write_html(target / f"{name}.html", include_plotlyjs="directory")
        written.append(target / f"{name}.html")
        if image is not None:
            fig.write_image(target / f"{name}.{image}", width=900)
            written.append(target / f"{name}.{image}")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="hub name, local folder, or 'demo'", nargs="?", default="demo")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("figures"))
    parser.add_argument("--image", choices=["svg", "png"], help="write images too")
    print(*main(**vars(parser.parse_args())), sep="\n")
