"""Metrics that return what they read, for tests that look at the tensors themselves."""

from jaxtyping import Float
from torch import Tensor


def stream(resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream itself."""
    return resid


def attention(
    pattern: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    """The pattern itself."""
    return pattern
