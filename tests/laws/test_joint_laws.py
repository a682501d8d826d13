"""Is what is computed together the same as every quantity by its own definition?"""

import numpy as np
import pytest
import torch
from models import bridge
from pure import evaluate, random_inputs

from mcr_lens import get_metric, measure
from mcr_lens.metrics import residuals, residuals_on_gpu, spectrum, spectrum_without_bos, tridiagonal
from mcr_lens.metrics._registry import _JOINT, get_derived, list_metrics
from mcr_lens.metrics.medians import median_of
from mcr_lens.metrics.norms import token_norms, top_rows
from mcr_lens.metrics.quadrature import SpectralReadings, entropies, spectral_readings
from mcr_lens.metrics.residuals import ResidualSummary, residual_summary
from mcr_lens.metrics.summary import PatternSummary, pattern_summary
from mcr_lens.visibility import Visibility
from mcr_lens.workers import Pending

pytestmark = pytest.mark.once

SHAPES = [(1, 8), (2, 8), (7, 8), (8, 8), (9, 8), (60, 8), (50, 64), (64, 64), (65, 64), (130, 70)]


def flat(value):
    return [value] if torch.is_tensor(value) else list(value)


def summary(x, position=0, **options):
    found = residual_summary(x, top_rows(token_norms(x)), position, **options)
    return found.result() if isinstance(found, Pending) else found


def residual(kind, length, width):
    x = torch.randn(3, length, width, generator=torch.Generator().manual_seed(length))
    if kind == "massive":
        x[:, 0] *= 3000
    if kind == "massive, steep":  # without BOS, 10⁻¹⁰ of the energy are left, with a spectrum of their own
        x *= 10.0 ** -torch.linspace(0, 4, width)
        x[:, 0] *= 1e6
    if kind == "elsewhere":
        x[:, length // 2] *= 1000
    if kind == "common":
        x = x + 30 * torch.ones(width)
    if kind == "zero row":
        x[:, 0] = 0
    if kind == "half":
        x = x.bfloat16()
    return x


def same_as_defined(found, given, position):
    for name, value in found._asdict().items():
        wanted = evaluate(get_derived()[name], given, position=position)
        for one, other in zip(flat(value), flat(wanted), strict=True):
            assert one.shape == other.shape, name
            scale = float(other.double().abs().nan_to_num().max()) if other.numel() else 0.0
            torch.testing.assert_close(
                one.double(), other.double(), rtol=1e-9, atol=1e-12 * scale, equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip


def test_every_quantity_has_a_definition_of_its_own():
    """A field that a joint computation gives can be had without it, with the same name."""
    quantities = set(ResidualSummary._fields) | set(PatternSummary._fields)
    assert set(_JOINT) == quantities | set(SpectralReadings._fields)
    assert quantities <= set(get_derived())
    assert set(SpectralReadings._fields) <= {m.name for m in list_metrics()}


@pytest.mark.parametrize("kind", ["random", "massive", "elsewhere", "common", "zero row", "half"])
@pytest.mark.parametrize(("length", "width"), SHAPES)
def test_residuals(kind, length, width):
    """More rows than columns or fewer, BOS massive, zero or like the others, in front or inside."""
    x = residual(kind, length, width)
    for position in {0, length // 2, length - 1}:
        same_as_defined(summary(x, position), {"resid": x}, position)


@pytest.mark.parametrize("easy", [0, tridiagonal.EASY])
@pytest.mark.parametrize(
    "kind",
    ["random", "massive", "massive, steep", "elsewhere", "common", "zero row", "half", "repeated"],
)
@pytest.mark.parametrize(
    ("length", "width"), [(1, 8), (2, 8), (9, 8), (60, 8), (8, 9), (64, 64), (200, 300), (300, 200)]
)
def test_spectral_metrics_without_eigenvalues(monkeypatch, kind, length, width, easy):
    """Entropies by quadrature and values by bisection are those of the spectra, with any BOS."""
    monkeypatch.setattr(tridiagonal, "EASY", easy)
    x = residual(kind, length, width)
    if kind == "repeated":
        x[:, 1:] = x[:, -1:].clone()
    for position in {0, length // 2, length - 1}:
        found = spectral_readings(summary(x, position).tridiagonal_form)
        spectra = {"spectrum": spectrum(x), "spectrum_without_bos": spectrum_without_bos(x, position)}
        scale = float(spectra["spectrum"].max().sqrt())
        for name, value in found._asdict().items():
            declared = get_metric(name)
            wanted = declared.function(*(spectra[each] for each in declared.inputs))
            # Squaring costs half the digits: a singular value of 10⁻⁸ of the largest is rounding.
            off = {"rtol": 1e-9, "atol": 1e-7 * scale if name == "singular_values" else 1e-9}
            torch.testing.assert_close(
                value, wanted, equal_nan=True, msg=lambda t, n=name: f"{n}: {t}", **off
            )


def test_entropies_against_the_sum():
    """Of diagonal matrices the entropy is known, and that of what is left without the first row."""
    g = torch.Generator().manual_seed(3)
    values = torch.rand(500, 40, generator=g, dtype=torch.float64) ** torch.linspace(0.1, 60, 500)[:, None]
    main = values.numpy()
    nothing = np.zeros((500, 39))
    whole, without = entropies(main, nothing, np.full(500, np.nan))
    same, replaced = entropies(main, nothing, main[:, 5])

    def by_sum(rows):
        share = rows / rows.sum(1, keepdims=True)
        return torch.special.entr(torch.from_numpy(share)).sum(1).numpy()

    np.testing.assert_allclose(whole, by_sum(main), rtol=0, atol=1e-12)
    np.testing.assert_allclose(without, by_sum(main[:, 1:]), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(same, whole)
    other = main.copy()
    other[:, 0] = main[:, 5]
    np.testing.assert_allclose(replaced, by_sum(other), rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [5, 300])
def test_spectral_metrics_of_nothing_and_of_no_numbers(length):
    """X = 0 and NaN give what the metrics give."""
    x = residual("random", length, 256)
    x[0], x[1, 2, 3] = 0, float("nan")
    found = spectral_readings(summary(x).tridiagonal_form)
    for name, value in found._asdict().items():
        declared = get_metric(name)
        spectra = {"spectrum": spectrum(x), "spectrum_without_bos": spectrum_without_bos(x)}
        wanted = declared.function(*(spectra[each] for each in declared.inputs))
        torch.testing.assert_close(value[:2], wanted[:2], equal_nan=True, rtol=0, atol=0, msg=name)


def test_a_median_of_numbers_that_repeat_their_pattern():
    """Rows with dimensions of their own size: a sample at even steps would see a few of them only."""
    rows = np.random.default_rng(0).normal(size=(128, 768)) * np.geomspace(1e-3, 1e3, 768)
    for x in (np.abs(rows).ravel(), np.abs(rows[:, :767]).ravel(), np.abs(rows.astype(np.float32)).ravel()):
        assert median_of(x) == np.median(x)


@pytest.mark.parametrize(("length", "width"), SHAPES)
def test_residuals_as_beside_a_gpu(length, width):
    """Gram matrices made on the device and solved on the processor give the same."""
    for kind in ("random", "massive", "zero row"):
        x = residual(kind, length, width)
        rows = top_rows(token_norms(x))
        found = residuals_on_gpu.summarize(x, rows, length // 2, residuals.FIELDS).result()
        same_as_defined(found, {"resid": x}, length // 2)
        read, wanted = (spectral_readings(each.tridiagonal_form) for each in (found, summary(x, length // 2)))
        for one, other in zip(read, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("length", [5, 80])
def test_what_is_asked_for_comes_and_nothing_else(length):
    """Each field alone has the bits that it has among all."""
    x = residual("massive", length, 16)
    whole = summary(x)
    for name in ResidualSummary._fields:
        alone = summary(x, wanted=frozenset([name]))
        for one, other in zip(flat(getattr(alone, name)), flat(getattr(whole, name)), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=name)
        assert all(value is None for field, value in alone._asdict().items() if field != name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("length", [5, 80])
def test_numbers_that_are_none_stay_none(length, bad):
    """One prompt with NaN or infinity: its numbers are NaN, the others' are not touched."""
    x = residual("random", length, 16)
    clean = summary(x)
    x[1, 2, 3] = bad
    found = summary(x)
    assert found.spectrum[1].isnan().all() and found.spectrum_without_bos[1].isnan().all()
    assert torch.equal(found.spectrum[[0, 2]], clean.spectrum[[0, 2]])
    assert found.tightest_row.position[1] == -1


@pytest.mark.parametrize(
    "shape", [(3, 4, 9, 9), (1, 1, 1, 1), (2, 3, 300, 300), (40, 4, 12, 12), (1, 2, 700, 700)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_patterns(shape, dtype):
    """In tiles of any size, causal or not, the sums are those of the whole pattern."""
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for causal in (True, False):
        hidden = (
            torch.ones(shape[-2:], dtype=torch.bool).triu(1) if causal else torch.zeros(shape[-2:]).bool()
        )
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(dtype)
        found = pattern_summary(pattern, Visibility(shape[-1], causal=causal), shape[-1] // 2)
        for name, value in found._asdict().items():
            wanted = evaluate(get_derived()[name], {"pattern": pattern}, position=shape[-1] // 2)
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(value, wanted.to(value.dtype), rtol=2e-6, atol=2e-6)


def test_a_summary_keeps_no_pattern():
    """Views would hold the whole pattern in memory until the end of the pass."""
    given = random_inputs()
    for value in pattern_summary(given["pattern"]):
        assert value.untyped_storage().nbytes() == value.nbytes


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("chunk", [None, 1, 4, 20])
@pytest.mark.parametrize("length", [1, 7, 12])
def test_counts_are_the_sums_of_the_mask(causal, window, chunk, length):
    """What each query sees is counted without the mask, and is what the mask says."""
    seen = Visibility(length, causal, window, chunk)
    mask = seen.mask()
    assert torch.equal(seen.keys(), mask.sum(1)) and torch.equal(seen.queries(), mask.sum(0))
    for position in range(length):
        assert torch.equal(seen.seeing(position), mask[:, position])


def test_long_prompts_at_the_hook_are_the_pure_functions():
    """Work put off to the end of the pass, at all depths together, gives each depth its own numbers."""
    model = bridge("gpt2", n_positions=256)
    tokens = torch.randint(3, 128, (3, 100), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    ds = measure(model, tokens, progress=False)
    for depth in range(model.cfg.n_layers + 1):
        name = f"blocks.{max(depth - 1, 0)}.hook_resid_{'post' if depth else 'pre'}"
        for metric in ("matrix_entropy", "anisotropy_without_bos", "bos_alignment", "top_rows_share"):
            wanted = evaluate(get_metric(metric), {"resid": cache[name]}).numpy()
            np.testing.assert_allclose(ds[metric].sel(depth=depth), wanted, rtol=1e-6, err_msg=metric)
