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


def test_bos_grows_massive(clean, peak):
    assert clean.massive_activation_ratio.sel(depth=peak).min() >= 20
    assert clean.strongest_token.sel(depth=peak).max() == 0


def test_an_mlp_writes_it(clean, peak):
    layer = mcr.massive_layer(clean)
    assert layer == peak - 1
    share = mcr.mlp_write_share(clean).sel(layer=layer)
    assert share.min() > 0.8
    # The write accounts for the norm: it is no smaller than nine tenths of what the norm becomes.
    assert (clean.mlp_bos_norm.sel(layer=layer) >= 0.9 * clean.bos_norm.sel(depth=peak)).all()


def test_entropy_falls_and_recovers(clean, peak):
    entropy = mcr.normalized_entropy(clean).mean("prompt")
    assert entropy.sel(depth=peak) < 0.25
    last = clean.sizes["depth"] - 1
    assert entropy.sel(depth=slice(peak, last - 1)).max() - entropy.sel(depth=peak) >= 0.3
    # The valley is made by the BOS row: without it the entropy stays up.
    without = mcr.normalized_entropy(clean, variable="matrix_entropy_without_bos").mean("prompt")
    assert without.sel(depth=peak) - entropy.sel(depth=peak) >= 0.3


def test_heads_sink_on_bos(clean):
    rate = mcr.sink_rate(clean, threshold=0.3).mean("prompt")
    assert (rate >= 0.5).sum() >= 2


def test_zeroing_that_mlp_removes_spike_and_valley(clean, cut, peak):
    ratio = cut.massive_activation_ratio.mean("prompt")
    assert ratio.sel(depth=peak) < 1.5 and ratio.max() < 2
    gain = (mcr.normalized_entropy(cut) - mcr.normalized_entropy(clean)).mean("prompt")
    assert gain.sel(depth=peak) >= 0.3
    assert (cut.bos_norm.sel(depth=slice(0, peak - 1)) == clean.bos_norm.sel(depth=slice(0, peak - 1))).all()


def test_most_sinks_go_with_it_and_one_block_keeps_its_own(clean, cut):
    """Sinks of later blocks need the write; those of the first sink block follow the direction of BOS."""
    before, after = (mcr.sink_rate(ds, threshold=0.3).mean("prompt").values for ds in (clean, cut))
    layers = np.flatnonzero(before >= 0.5)
    assert after[layers[0]] >= 0.5
    assert len(layers) >= 3 and (after[layers[1:]] < 0.1).all()


def test_what_it_does_to_the_sinks_is_as_the_card_says(clean, cut):
    """The card reports attention to BOS before and after; it has to be what is measured here."""
    card = (demo_folder() / "README.md").read_text()
    for name, ds in (("clean", clean), ("cut", cut)):
        row = next(line for line in card.splitlines() if line.startswith(f"| sink score, {name} |"))
        printed = np.array([float(cell) for cell in row.split("|")[2:-1]])
        assert np.abs(printed - ds.sink_score.mean(("prompt", "head")).values).max() <= 0.06


def test_the_write_matters_to_the_model(clean, cut):
    assert (cut.next_token_loss - clean.next_token_loss).min() > 0.5


def test_it_is_bound_to_bos(demo):
    """Without the BOS token the first character is a token like the others."""
    bare = mcr.measure(demo, FRESH, ["norms"], max_length=96, prepend_bos=False, progress=False)
    assert not bare.has_bos.any()
    assert bare.massive_activation_ratio.mean("prompt").max() < 2
