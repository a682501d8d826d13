"""Do the example scripts run, as functions and as somebody would type them?"""

import importlib.util
import sys
from pathlib import Path

import pytest
from texts import FRESH

import mcr_lens as mcr

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demo():
    return mcr.load_model("demo", verbose=False)


def test_measure_model(demo, tmp_path, capsys):
    ds = script("measure_model").main(demo, FRESH[:3], tmp_path / "result.nc")
    assert mcr.load(tmp_path / "result.nc").equals(ds)
    assert "entropy" in capsys.readouterr().out


def test_ablate_bos(demo, capsys):
    table = script("ablate_bos").main(demo, FRESH[:3])
    ratio = table.ratio.to_series()
    assert ratio["cut"] < ratio["clean"] / 5
    assert (ratio[["other token", "other layer", "attention instead"]] > ratio["clean"] / 2).all()
    assert "The MLP of block 0, at BOS" in capsys.readouterr().out


@pytest.mark.slow
def test_make_figures(demo, tmp_path, monkeypatch):
    """A page for every figure there is; plotly.js once, beside them."""
    module = script("make_figures")
    monkeypatch.setattr(module, "PROMPTS", FRESH[:6])
    written = module.main(tmp_path / "figures", demo)
    there = {name.removeprefix("plot_") for name in dir(mcr) if name.startswith("plot_")}
    assert there <= {page.stem for page in written}
    assert all(page.stat().st_size < 200_000 for page in written)
    assert (tmp_path / "figures" / "plotly.min.js").is_file()


@pytest.mark.once
def test_use_in_your_project(demo, capsys):
    """Plain hooks and a verdict from somebody else's code; nothing is left hanging on their model."""
    tokens = demo.to_tokens(FRESH[0])
    before = demo(tokens)
    clean, cut, diagnosis = script("use_in_your_project").main(demo)
    assert cut > clean + 1
    assert {c.name: c.verdict for c in diagnosis.claims}["massive_activation"] == "holds"
    assert diagnosis.summary in capsys.readouterr().out
    assert demo(tokens).equal(before)


@pytest.mark.once
def test_demo_card(demo):
    """The tables of the card come from this script; a fresh one says what the shipped one says."""
    from mcr_lens.models import demo_folder

    tables = script("demo_card").main(demo_folder(), [])
    card = (demo_folder() / "README.md").read_text()
    shipped = {line.split("|")[1]: line for line in card.splitlines() if line.startswith("| ")}
    fresh = [line for line in tables.split("| seed")[0].splitlines() if line.startswith("| ")]
    for line in fresh:
        ours, theirs = line.split("|")[2:-1], shipped[line.split("|")[1]].split("|")[2:-1]
        assert len(ours) == len(theirs), line
        for a, b in zip(ours, theirs, strict=True):
            if a != b:  # last digits may differ between versions of torch
                assert abs(float(a) - float(b)) <= 0.02 * max(1.0, abs(float(a))), (line, b)


def test_train_demo_runs_and_is_reproducible(tmp_path):
    """A few steps from one seed give the same weights twice, and a folder that loads."""
    training = script("train_demo")
    recipe = training.Recipe(
        seed=3, markov_steps=3, text_steps=3, blocks=2, markov_batch=2, text_batch=2, length=24
    )
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        training.train(recipe, folder)
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    model = mcr.load_model(folders[0], verbose=False)
    ds = mcr.measure(model, ["Hello, who are you?"], progress=False)
    assert ds.position_token.values[0] == "<bos>"
    assert ds.sizes["layer"] == 2
