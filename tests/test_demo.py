"""Does the bundled model show what its card says, on text it has never seen?"""

import numpy as np
import pytest
from texts import FRESH

import mcr_lens as mcr
from mcr_lens.models import demo_folder

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def demo():
    return mcr.load_model("demo", verbose=False)


@pytest.fixture(scope="module")
def clean(demo):
    return mcr.measure(demo, FRESH, ["default", "loss"], max_length=96, progress=False)


@pytest.fixture(scope="module")
def peak(clean):
    """The depth at which the BOS norm stands out most."""
    return int(clean.massive_activation_ratio.mean("prompt").argmax("depth"))


@pytest.fixture(scope="module")
def cut(demo, clean, peak):
    """The same prompts with the MLP silenced at BOS that writes the massive activation."""
    edit = mcr.zero_bos_mlp(mcr.massive_layer(clean))
    return mcr.measure(demo, FRESH, ["default", "loss"], max_length=96, interventions=[edit], progress=False)


def test_it_is_small_and_safe():
    weights = demo_folder() / "model.safetensors"
    assert sum(f.stat().st_size for f in demo_folder().iterdir()) <= 3_000_000
    assert weights.is_file()
    assert not list(demo_folder().glob("*.bin"))


def test_bos_stands_out(clean, peak):
    """Ten times the median of the others, and the longest row, in every prompt."""
    assert clean.massive_activation_ratio.sel(depth=peak).min() >= 10
    assert clean.strongest_token.sel(depth=peak).max() == 0


def test_an_mlp_writes_it(clean, peak):
    layer = mcr.massive_layer(clean)
    assert layer == peak - 1
    assert mcr.mlp_write_share(clean).sel(layer=layer).min() > 0.9
    # The write accounts for the norm: it is no smaller than nine tenths of what the norm becomes.
    assert (clean.mlp_bos_norm.sel(layer=layer) >= 0.9 * clean.bos_norm.sel(depth=peak)).all()


def test_the_bos_row_lowers_the_entropy_there(clean, peak):
    """At the spike the BOS row takes entropy away; the lowest entropy of the model is not its doing."""
    entropy = mcr.normalized_entropy(clean).mean("prompt")
    without = mcr.normalized_entropy(clean, variable="matrix_entropy_without_bos").mean("prompt")
    assert without.sel(depth=peak) - entropy.sel(depth=peak) >= 0.1
    lowest = int(entropy.argmin("depth"))
    assert lowest != peak
    assert abs(without.sel(depth=lowest) - entropy.sel(depth=lowest)) < 0.05


def test_heads_sink_on_bos_and_their_values_are_drained(clean):
    rate = mcr.sink_rate(clean, threshold=0.3).mean("prompt")
    layer = int(rate.argmax("layer"))
    assert rate.sel(layer=layer) >= 0.7
    sinks = clean.sink_score.sel(layer=layer).mean("prompt") >= 0.9
    assert sinks.sum() >= 2
    assert clean.value_drain.sel(layer=layer).mean("prompt").where(sinks).max() < 0.05


def test_zeroing_that_mlp_removes_the_spike(clean, cut, peak):
    assert cut.massive_activation_ratio.mean("prompt").max() < 1.5
    gain = (mcr.normalized_entropy(cut) - mcr.normalized_entropy(clean)).mean("prompt")
    assert gain.sel(depth=peak) >= 0.1
    assert (cut.bos_norm.sel(depth=slice(0, peak - 1)) == clean.bos_norm.sel(depth=slice(0, peak - 1))).all()


def test_the_sinks_survive_it(clean, cut):
    """Sinks without the massive activation: here the two are not one mechanism."""
    layer = int(mcr.sink_rate(clean).mean("prompt").argmax("layer"))
    assert mcr.sink_rate(cut).mean("prompt").sel(layer=layer) >= 0.7


def test_what_it_does_to_the_sinks_is_as_the_card_says(clean, cut):
    """The card reports attention to BOS before and after; it has to be what is measured here."""
    card = (demo_folder() / "README.md").read_text()
    for name, ds in (("clean", clean), ("cut", cut)):
        row = next(line for line in card.splitlines() if line.startswith(f"| sink score, {name} |"))
        printed = np.array([float(cell) for cell in row.split("|")[2:-1]])
        assert np.abs(printed - ds.sink_score.mean(("prompt", "head")).values).max() <= 0.06


def test_the_write_matters_to_the_model(clean, cut):
    assert (cut.next_token_loss - clean.next_token_loss).min() > 0.2


def test_it_is_bound_to_bos(demo):
    """Without the BOS token the first character is a token like the others."""
    bare = mcr.measure(demo, FRESH, ["norms"], max_length=96, prepend_bos=False, progress=False)
    assert not bare.has_bos.any()
    assert bare.massive_activation_ratio.mean("prompt").max() < 2
