"""Do the kernels give what torch and LAPACK give? On a GPU, or else interpreted, small and slow."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.linalg import eigvalsh

from mcr_lens import gpu, measure
from mcr_lens.metrics import matrix_entropy, residuals, residuals_on_gpu, spectrum
from mcr_lens.metrics.medians import median
from mcr_lens.metrics.norms import token_norms, top_rows
from mcr_lens.metrics.quadrature import entropies, entropies_on_gpu, spectral_readings
from mcr_lens.metrics.residuals import residual_summary

CUDA = torch.cuda.is_available()
SIZES = (2, 5, 11) + ((200, 700, 1024, 1600) if CUDA else ())


@pytest.fixture(autouse=True, scope="module")
def device():
    """The GPU; without one, the processor, on which Triton interprets its kernels."""
    pytest.importorskip("triton", reason="Triton is not installed: neither run nor interpreted")
    return "cuda" if CUDA else "cpu"


@pytest.fixture
def quick(monkeypatch):
    """The interpreter takes as long for numbers that are not there."""
    if not CUDA:
        monkeypatch.setattr(gpu, "_ROUNDS", 2)
        monkeypatch.setattr(gpu, "_TOGETHER", 256)
        monkeypatch.setattr(gpu, "NARROW", 4)


@pytest.fixture
def everywhere(monkeypatch, quick):
    """Small matrices and tensors of the processor are taken too."""
    monkeypatch.setattr(gpu, "available", lambda tensor: True)
    monkeypatch.setattr(residuals_on_gpu, "EASY", 1)


def residual(length, width, device, kind="random"):
    torch.manual_seed(length)
    x = torch.randn(2, length, width)
    if kind == "massive":
        x[:, 0] *= 1e4
    if kind == "low rank":
        x = torch.randn(2, length, 3) @ torch.randn(2, 3, width)
    if kind == "delimiter":
        x[:, length // 2] *= 300
    if kind == "repeats":
        x[:, 1:] = x[:, 1:2]
    return x.to(device)


def full(form, number):
    main, off = (part[number].cpu().numpy() for part in form)
    return np.diag(main) + np.diag(off, 1) + np.diag(off, -1)


@pytest.mark.parametrize("kind", ["random", "massive", "low rank", "delimiter", "repeats"])
@pytest.mark.parametrize("n", SIZES)
def test_the_form_has_the_spectra_of_the_matrix(device, quick, n, kind):
    x = residual(n, max(40, n), device, kind).double()
    matrices = x @ x.mT
    form = gpu.reduction(matrices, of_rows=True).result()
    assert form.main.shape == (2, n) and form.off.shape == (2, n - 1)
    for number in range(2):
        matrix = matrices[number].cpu().numpy()
        for first in (0, 1):
            found = eigvalsh(full(form, number)[first:, first:])
            wanted = eigvalsh(matrix[first:, first:])
            # float32 between the steps: of the norm of everything, BOS too
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * eigvalsh(matrix)[-1])


@pytest.mark.parametrize("n", SIZES)
def test_largest_eigenvalues_and_sums_of_resolvents(device, quick, n):
    x = residual(n, max(40, n), device, "massive").double()
    form = gpu.tridiagonal(x @ x.mT)
    gone = torch.full((2,), torch.nan, dtype=torch.float64, device=device)
    less = 0.5 * form.main[:, 0]
    t = torch.logspace(-3, 9, 20, dtype=torch.float64, device=device)
    for corner in (gone, less):
        top, without = gpu.largest(form, corner, min(n, 8))
        sums, others = gpu.resolvents(form, corner, t)
        for number in range(2):
            matrix = full(form, number)
            rest = matrix[1:, 1:] if corner is gone else matrix.copy()
            if corner is less:
                rest[0, 0] = less[number]
            bound = 1e-14 * np.abs(matrix).sum(0).max()
            every, some = eigvalsh(matrix), eigvalsh(rest)
            np.testing.assert_allclose(top[number].cpu(), every[::-1][:8], rtol=1e-12, atol=bound)
            np.testing.assert_allclose(without[number].cpu(), some[-1], rtol=1e-12, atol=bound)
            at = t.cpu().numpy()[:, None]
            np.testing.assert_allclose(sums[number].cpu(), (every / (every + at)).sum(1), atol=1e-7, rtol=0)
            np.testing.assert_allclose(others[number].cpu(), (some / (some + at)).sum(1), atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_medians_are_exact(device, quick, dtype):
    torch.manual_seed(0)
    for count in (1, 2, 3, 301):
        x = (torch.randn(3, count, 2, device=device) * 3).to(dtype)
        x[0] = x[0, 0, 0]  # all equal
        wanted = median(x.float().abs().flatten(1))
        torch.testing.assert_close(gpu.median_magnitude(x), wanted, rtol=0, atol=0)
    x[1, 3, 0], x[2, 4, 1] = torch.nan, -torch.inf
    assert gpu.median_magnitude(x).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 33, 300])
def test_patterns(device, dtype, causal, length):
    torch.manual_seed(0)
    scores = torch.randn(2, 3, length, length, device=device) * 5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    # As a model that holds heads behind tokens gives it: not in one piece.
    pattern = scores.softmax(-1).to(dtype).transpose(1, 2).contiguous().transpose(1, 2)
    sums, entropy = gpu.summarize_pattern(pattern, causal=causal)
    torch.testing.assert_close(sums, pattern.float().sum(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, torch.special.entr(pattern.float()).sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("length", "width"), [(9, 14), (14, 9)] + [(400, 900), (900, 400)] * CUDA)
@pytest.mark.parametrize(("kind", "position"), [("random", 0), ("low rank", 0), ("massive", 3)])
def test_everything_that_is_read_of_a_stream(device, everywhere, length, width, kind, position):
    """As on the processor: entropies to 10⁻⁵ nats, from spectra that nobody has computed."""
    x = residual(length, width, device, kind)
    wanted = residual_summary(x.cpu(), top_rows(token_norms(x.cpu())), position)
    wanted = wanted if isinstance(wanted, residuals.ResidualSummary) else wanted.result()
    fields = residuals.FIELDS - {"spectrum", "spectrum_without_bos"}
    pending = residuals_on_gpu.summarize(x, top_rows(token_norms(x)), position, fields)
    found = pending.result()
    for name in fields - {"tridiagonal_form", "tightest_row", "span_of_top_rows", "largest_activations"}:
        one, other = getattr(found, name).cpu(), getattr(wanted, name)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7 * float(other.abs().max()))
    assert found.largest_activations.token.tolist() == wanted.largest_activations.token.tolist()
    read = spectral_readings(found.tridiagonal_form)
    by_definition = matrix_entropy(spectrum(x.cpu()))
    torch.testing.assert_close(read.matrix_entropy.cpu(), by_definition, rtol=0, atol=1e-5)
    others = torch.cat([x[:, :position], x[:, position + 1 :]], 1).cpu()
    by_definition = matrix_entropy(spectrum(others))
    torch.testing.assert_close(read.matrix_entropy_without_bos.cpu(), by_definition, rtol=0, atol=1e-5)
    singular = spectrum(x.cpu()).sqrt()[:, :3]
    torch.testing.assert_close(read.singular_values.cpu()[:, :3], singular, rtol=1e-5, atol=0)


def test_layers_are_reduced_together(device, monkeypatch):
    """Matrices wait for each other until they are many; those of different size are kept apart."""
    calls = []
    known = gpu.tridiagonal
    monkeypatch.setattr(gpu, "tridiagonal", lambda m: calls.append(tuple(m.shape)) or known(m))
    eye = torch.eye(8, dtype=torch.float64, device=device)
    waiting = [gpu.reduction(k * eye[None], of_rows=True) for k in (1, 2, 3)]
    other = gpu.reduction(eye[None, :4, :4] * 4, of_rows=True)
    assert not calls
    for number, each in enumerate(waiting, 1):
        assert each.result().main.tolist() == [[number] * 8]
    assert other.result().main.tolist() == [[4] * 4]
    assert sorted(calls) == [(1, 4, 4), (3, 8, 8)]
    monkeypatch.setattr(gpu, "MANY", 8 * 8 * 4)
    first, second = (gpu.reduction(eye[None], of_rows=True) for _ in range(2))
    assert calls[-1] == (2, 8, 8) and first.result().off.abs().sum() == second.result().off.abs().sum() == 0


def test_nothing_but_nan_comes_of_nan(device, everywhere):
    x = residual(9, 14, device)
    x[1, 4, 2] = torch.nan
    found = residuals_on_gpu.summarize(x, top_rows(token_norms(x)), 0, frozenset({"tridiagonal_form"}))
    read = spectral_readings(found.result().tridiagonal_form)
    for value in read:
        assert value[0].isfinite().all() and value[1].isnan().all()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mcr_lens import gpu_kernels as kernels

i, d = "i32", "*fp64"
shape = {"MAGNITUDE": 32767, "TOGETHER": 512, "ROUNDS": 32}
for kernel, types, constants in (
    (kernels.summarize_pattern, ["*bf16", "*fp32", "*fp32", *[i] * 7], dict(CAUSAL=1, ROWS=32, COLUMNS=256)),
    (kernels.count_below, ["*i16", "*i32", "*i32", i, i], shape | {"LANES": 8}),
    (kernels.smallest_above, ["*i16", "*i32", "*i32", "*i32", i, i], shape),
    (kernels.eliminate, ["*fp32", "*fp32", d, d, i, i, i], dict(WIDTH=128, PANEL=16, ROWS=4)),
    (kernels.eliminate, [d, d, d, d, i, i, i], dict(WIDTH=128, PANEL=16, ROWS=4)),
    (kernels.count_eigenvalues, [d, d, d, d, "*i32", "*i32", i, d], dict(LANES=128)),
    (kernels.sum_resolvents, [d, d, d, d, d, d, i, i], dict(LANES=64)),
):
    names = [name for name in kernel.arg_names if name not in constants]
    given = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=given, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    """What the interpreter takes, the compiler may refuse: types that change in a loop, for one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # nothing from before
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize(("tokens", "width"), [(300, 512), (700, 512), (100, 256)])
def test_a_model_on_the_gpu_as_on_the_processor(served, tokens, width):
    """Every default metric of a float32 model; two runs on the GPU give the same bits."""
    import transformers as hf

    import mcr_lens

    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=width, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=2 * width, vocab_size=500,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 500, (3, tokens))
    wrap = mcr_lens.serve if served else lambda m: mcr_lens.load_model(m, verbose=False)
    wanted = measure(wrap(model), ids, progress=False)
    model = hf.LlamaForCausalLM(config).eval()
    torch.manual_seed(0)
    model.load_state_dict(hf.LlamaForCausalLM(config).state_dict())
    moved = wrap(model.cuda())
    found, again = (measure(moved, ids, progress=False) for _ in range(2))
    for name in wanted.data_vars:
        one, other = found[name].values, wanted[name].values
        assert np.array_equal(one, again[name].values, equal_nan=True), name
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4, err_msg=str(name))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("n", [170, 512, 1024])
def test_entropies_of_the_kernels_and_of_lapack(n):
    """The recursion on the GPU against the one on the processor, for the same form."""
    x = residual(n, 2 * n, "cuda", "massive").double()
    form = gpu.tridiagonal((x @ x.mT).clone())
    gone = torch.full((2,), torch.nan, dtype=torch.float64)
    wanted = entropies(*(part.cpu().numpy() for part in form), gone.numpy())
    for one, other in zip(entropies_on_gpu(*form, gone.cuda()), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)
