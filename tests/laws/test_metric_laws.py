"""What is true of every registered metric, as a function of tensors?"""

import pytest
import torch
from pure import BATCH, HEADS, LENGTH, WIDTH, evaluate, random_inputs, rows

from mcr_lens import list_metrics
from mcr_lens.metrics._registry import get_derived

EVERY_METRIC = pytest.mark.parametrize("metric", list_metrics(), ids=lambda m: m.name)
SPECTRAL = [m for m in list_metrics() if m.group == "spectral"]
SIZES = {"head": HEADS, "top": 3, "rank": 8}

# 0/0 by definition: the share of nothing, or a ratio to a median of zero.
UNDEFINED_ON_ZEROS = {
    "matrix_entropy", "effective_rank", "anisotropy", "matrix_entropy_without_bos",
    "effective_rank_without_bos", "anisotropy_without_bos", "direction_entropy",
    "massive_activation_ratio", "value_drain", "colsum_concentration", "sink_identity_index",
    "sink_output_share", "bos_alignment", "tightest_share", "top_rows_share",
}  # fmt: skip

# Whatever compares the first token with others, or needs a second row.
UNDEFINED_FOR_ONE_TOKEN = {
    "matrix_entropy_without_bos", "effective_rank_without_bos", "anisotropy_without_bos",
    "direction_entropy", "other_norm_median", "other_norm_mean", "other_norm_max",
    "massive_activation_ratio", "mixing_score", "identity_score", "previous_token_score",
    "sink_identity_index", "sink_identity_mass", "value_drain", "sink_output_share", "next_token_loss",
    "perplexity", "top_sink_score", "bos_alignment",
}  # fmt: skip


def close(got, wanted, tolerance=1e-6):
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def reads(metric) -> set[str]:
    """The tensors a metric reads in the end."""
    found = set()
    for name in metric.inputs:
        found |= reads(get_derived()[name]) if name in get_derived() else {name}
    return found


@EVERY_METRIC
def test_shape_is_the_declared_one(metric):
    """One row per prompt, then the axes of the return annotation."""
    value = evaluate(metric, random_inputs())
    assert tuple(value.shape) == (BATCH, *(SIZES[axis] for axis in metric.extra_axes))


@EVERY_METRIC
def test_prompts_do_not_see_each_other(metric):
    """The value of a prompt is the same alone and in a batch."""
    given = random_inputs()
    together = evaluate(metric, given)
    for row in range(BATCH):
        close(evaluate(metric, rows(given, slice(row, row + 1)))[0], together[row])


@EVERY_METRIC
def test_inputs_are_left_as_they_were(metric):
    """A metric never writes into what it reads."""
    given = random_inputs()
    evaluate(metric, given)
    for name, tensor in random_inputs().items():
        assert torch.equal(given[name], tensor), name


@EVERY_METRIC
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_in_at_least_float32_out(metric, dtype):
    """Finite in every dtype, computed on the rounded values in float32 or better."""
    given = random_inputs(dtype=dtype)
    value = evaluate(metric, given)
    assert value.dtype in (torch.float32, torch.float64, torch.int64)
    assert value.isfinite().all()
    exact = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
    close(value.double(), evaluate(metric, exact).double(), tolerance=2e-5)


@EVERY_METRIC
def test_large_activations_do_not_overflow(metric):
    """Half-precision values whose squares overflow in their own dtype are fine."""
    given = random_inputs(dtype=torch.float16)
    for name in ("resid", "resid_mid", "attn_out", "mlp_out", "value", "z"):
        given[name] = given[name].clamp(-2, 2) * 8000
    assert evaluate(metric, given).isfinite().all()


@EVERY_METRIC
def test_zeros(metric):
    """On zeros a metric is finite, or NaN where it is not defined; the other prompts do not mind."""
    given = random_inputs()
    alone = evaluate(metric, rows(given, slice(1, None)))
    given = {
        name: torch.cat([torch.zeros_like(t[:1]), t[1:]]) if t.shape[0] == BATCH else t
        for name, t in given.items()
    }
    value = evaluate(metric, given)
    if metric.name in UNDEFINED_ON_ZEROS:
        assert value[0].isnan().all()
    else:
        assert value[0].isfinite().all()
    close(value[1:], alone)


def present(metric, value, length):
    """The places of a `top` axis that a prompt of one or two tokens can fill; the others are NaN or −1."""
    rows = ("top_norm", "top_norm_token", "top_rows_share", "top_rows_dimension")
    if metric.name not in (*rows, "top_sink_score", "top_sink_token"):
        return value
    # The last token of a prompt is seen by itself only, which is nobody's attention to it.
    filled = length if metric.name in rows else max(1, length - 1)
    beyond = value[..., filled:]
    assert (beyond.isnan() if beyond.is_floating_point() else beyond == -1).all()
    return value[..., :filled]


@EVERY_METRIC
def test_one_token(metric):
    """A prompt of one token has a finite value, or NaN where there is nothing to compare it with."""
    value = present(metric, evaluate(metric, random_inputs(length=1)), 1)
    if metric.name in UNDEFINED_FOR_ONE_TOKEN:
        assert value.isnan().all()
    else:
        assert value.isfinite().all()


@EVERY_METRIC
def test_two_tokens(metric):
    """From two tokens on, everything is defined."""
    assert present(metric, evaluate(metric, random_inputs(length=2)), 2).isfinite().all()


@EVERY_METRIC
def test_more_tokens_than_dimensions(metric):
    """Prompts longer than the stream is wide are nothing special."""
    assert evaluate(metric, random_inputs(length=WIDTH + 9)).isfinite().all()


@pytest.mark.parametrize("metric", SPECTRAL, ids=lambda m: m.name)
def test_rotating_the_stream_changes_no_spectral_metric(metric):
    """X and X Q have the same singular values for orthogonal Q."""
    given = random_inputs()
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q
    turned = {**given, "resid": given["resid"].double() @ rotation}
    close(evaluate(metric, turned), evaluate(metric, given), tolerance=1e-6)


@pytest.mark.parametrize("metric", SPECTRAL, ids=lambda m: m.name)
def test_the_order_of_the_later_tokens_changes_no_spectral_metric(metric):
    """A row permutation (of all but BOS) leaves the spectrum alone."""
    given = random_inputs()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(LENGTH - 1)])
    close(evaluate(metric, {**given, "resid": given["resid"][:, order]}), evaluate(metric, given))


@pytest.mark.parametrize("metric", SPECTRAL, ids=lambda m: m.name)
def test_scaling_the_stream(metric):
    """Entropies, ranks and shares do not depend on the scale; singular values are proportional to it."""
    given = random_inputs()
    factor = 1000.0 if metric.name == "singular_values" else 1.0
    close(evaluate(metric, {**given, "resid": 1000 * given["resid"]}), factor * evaluate(metric, given), 1e-5)


@pytest.mark.parametrize(
    "metric",
    [m for m in list_metrics() if not reads(m) & {"pattern", "tokens"} and not m.name.endswith("_token")],
    ids=lambda m: m.name,
)
def test_position_is_the_row_taken_for_bos(metric):
    """Naming position 4 is the same as having that token at position 0."""
    given = {name: t for name, t in random_inputs().items() if name in reads(metric)}
    order = [4, 1, 2, 3, 0, *range(5, LENGTH)]
    moved = {name: t[:, order] for name, t in given.items()}
    close(evaluate(metric, given, position=4), evaluate(metric, moved))


@EVERY_METRIC
def test_declaration_is_complete(metric):
    """Units, a source, a label that is a sentence about something, and a known axis."""
    assert metric.units and metric.source and len(metric.label) > 10
    assert metric.axes[0] == "prompt"
    if metric.site != "pass":
        assert metric.axes[1] == metric.site
