"""How does a user's own metric get in, and what is said when it cannot?"""

from functools import partial

import numpy as np
import pytest
from jaxtyping import Float
from refusals import ROWS, refused
from torch import Tensor

import mcr_lens
from mcr_lens import get_metric, measure, metric
from mcr_lens.metrics import sink_score


def wrong_parameter(residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
    """Reads something that does not exist."""
    return residual[:, 0, 0]


def no_annotation(resid):
    """Says nothing about its axes."""
    return resid[:, 0, 0]


def mixed(resid: Tensor, pattern: Tensor) -> Float[Tensor, "batch"]:
    """Reads two tensors that live on different axes."""
    return resid[:, 0, 0]


def not_per_prompt(resid: Tensor) -> Float[Tensor, "batch"]:
    """Averages the prompts away."""
    return resid.mean()


def too_many_axes(resid: Tensor) -> Float[Tensor, "batch"]:
    """Returns more than it declares."""
    return resid[:, 0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            wrong_parameter,
            r"metric 'wrong_parameter' reads \['residual'\]; its parameters must be among resid, ",
        ),
        (
            no_annotation,
            "metric 'no_annotation' needs a jaxtyping return annotation that starts with 'batch'",
        ),
        (mixed, r"metric 'mixed' mixes tensors that live on different axes \(depth, layer\)"),
    ],
)
def test_user_metric_is_refused_when_declared(llama, function, message):
    """The signature is checked before anything runs, and nothing is registered."""
    with pytest.raises(ValueError, match=message):
        metric(function)
    with pytest.raises(mcr_lens.UnknownMetricError):
        get_metric(function.__name__)
    refused(ValueError, message, llama, ROWS, [function])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            not_per_prompt,
            r"metric 'not_per_prompt' must return one row per prompt, \[2, ...\], and returned \[\]",
        ),
        (
            too_many_axes,
            r"'too_many_axes' declares the axes \('prompt', 'depth'\) and returned an array of shape",
        ),
    ],
)
def test_user_metric_of_the_wrong_shape(llama, function, message):
    """What comes out is held against what was declared."""
    refused(ValueError, message, llama, ROWS, [function])


def test_duplicate_registration():
    """A name is taken once; overwrite=True is for notebooks."""

    def sink_score(resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
        """Not the sink score."""
        return resid[:, 0, 0]

    with pytest.raises(
        ValueError, match="a metric named 'sink_score' exists already; rename yours or pass overwrite"
    ):
        metric(sink_score)
    metric(overwrite=True)(sink_score)
    assert get_metric("sink_score").function is sink_score


def test_registered_metric_is_measured(llama):
    """A registered metric counts as a default one and carries units and source."""

    @metric(units="m", source="a notebook")
    def last_norm(resid: Float[Tensor, "batch pos d_model"], scale: float = 2.0) -> Float[Tensor, "batch"]:
        """Twice the norm of the last token."""
        return scale * resid[:, -1].norm(dim=-1)

    ds = measure(llama, ROWS, progress=False)
    assert ds.last_norm.dims == ("prompt", "depth") and ds.last_norm.units == "m"
    assert ds.last_norm.long_name == "Twice the norm of the last token"


def last_hidden(z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch head d_head"]:
    """A metric of a user's own, with an axis of its own."""
    return z[:, -1]


def test_user_metrics_of_every_kind(llama, tokens):
    """A function, a name → function map, and a partial with settings."""
    ds = measure(llama, tokens, [last_hidden, "bos_norm"], progress=False)
    assert ds.last_hidden.dims == ("prompt", "layer", "head", "d_head")
    ds = measure(llama, tokens, {"mine": sink_score, "cut": partial(sink_score)}, progress=False)
    assert set(ds.data_vars) == {"mine", "cut"}
    wanted = measure(llama, tokens, ["sink_score"], progress=False)
    np.testing.assert_array_equal(ds.mine, wanted.sink_score)


def test_a_user_metric_sees_one_layer_at_a_time(llama, tokens):
    """Its rows are the prompts of one layer, as promised, also where it reads no activation itself."""
    seen = []

    def among_prompts(sink_column: Float[Tensor, "batch head query"]) -> Float[Tensor, "batch head"]:
        seen.append(tuple(sink_column.shape))
        return sink_column.mean(-1) - sink_column.mean((0, 2))

    ds = measure(llama, tokens, {"mine": among_prompts}, progress=False)
    assert seen == [(len(tokens), 4, tokens.shape[1])] * 4
    np.testing.assert_allclose(ds.mine.mean("prompt"), 0, atol=1e-6)
