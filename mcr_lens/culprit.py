"""Which write makes the norm of a row: the embedding, or attention or MLP of which block?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mcr_lens._checks import as_shown
from mcr_lens.hookpoints import HookedModel, check_model, model_name
from mcr_lens.measurement import measure
from mcr_lens.metrics.norms import _at_least_float32, massive_activation_ratio

PARTS = ("attention", "mlp")
"""What a block writes with: the axis `part` of a result."""

BatchSize = int | Literal["auto"]
PrependBos = bool | Literal["auto"]


def norm_sources(
    model: HookedModel,
    prompts: Any,
    *,
    depth: int | None = None,
    position: int = 0,
    batch_size: BatchSize = "auto",
    max_length: int | None = None,
    prepend_bos: PrependBos = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Who made the row at `depth` as long as it is: the share of the embedding and of every write below.

    x₀ at depth d is the embedding plus what attention and MLP of blocks 0..d − 1 write, so the shares
    ⟨w, x₀⟩/‖x₀‖² of all these w add up to 1, exactly. A share is negative where a write shortens the row,
    and above 1 where another one does. In a causal model BOS sees itself alone, so at position 0 every prompt
    that begins with it gives the same numbers.

    Returns:
        `write_share` [prompt, layer, part] with part "attention" or "mlp", `embedding_share` [prompt],
        `rounding_share` [prompt] (what additions in the model's dtype lost), all without units;
        `row_norm` [prompt] in the units of the residual stream, and `massive_activation_ratio` [prompt]. The
        coordinate `depth` says where. NaN for a row of norm 0.

    Args:
        depth: 0..L; by default where the mean massive activation ratio over prompts is largest.
        position: the token whose row it is, counted from the first token.
        batch_size, max_length, prepend_bos, progress: as in `measure`.

    Raises:
        ValueError: a depth that does not exist, prompts without another token to tell the depth by, or a
            model whose stream is not the sum of its writes (BERT).
        As `measure` for the rest.

    Source: this library, after arXiv 2510.06477.

    >>> sources = mcr.norm_sources(model, prompts, progress=False)
    >>> bool(sources.write_share.mean("prompt").max() > 0.9)  # one write makes nearly all of the norm
    True
    """
    options = run_options(position, batch_size, max_length, prepend_bos, progress)
    row = read_row(model, prompts, depth, options)
    found = row.labelled(
        {
            "write_share": (("prompt", "layer", "part"), row.share(row.writes), "Share of the norm by write"),
            "embedding_share": (("prompt",), row.share(row.embedding), "Share of the norm by the embedding"),
            "rounding_share": (("prompt",), row.share(row.rounding), "Share of the norm lost in rounding"),
        }
    )
    return found.assign_coords(layer=np.arange(row.depth), part=list(PARTS))


@dataclass(frozen=True)
class Row:
    """The row at one depth, and what it is the sum of, in float64."""

    ds: xr.Dataset
    depth: int
    vector: Float[np.ndarray, "prompt d_model"]
    embedding: Float[np.ndarray, "prompt d_model"]
    writes: Float[np.ndarray, "prompt layer part d_model"]  # of the blocks below
    precision: float

    @property
    def norm(self) -> np.ndarray:
        return np.linalg.norm(self.vector, axis=-1)

    @property
    def direction(self) -> np.ndarray:
        """x₀/‖x₀‖; NaN for a row of norm 0."""
        return self.per_norm(self.vector)

    @property
    def rounding(self) -> np.ndarray:
        return self.vector - self.embedding - self.writes.sum((1, 2))

    def per_norm(self, values: np.ndarray) -> np.ndarray:
        norm = self.norm.reshape(-1, *[1] * (values.ndim - 1))
        return np.divide(values, norm, out=np.full(values.shape, np.nan), where=norm > 0)

    def share(self, vectors: np.ndarray) -> np.ndarray:
        """⟨w, x₀⟩/‖x₀‖² for vectors [prompt, ..., d_model]."""
        return self.per_norm(np.einsum("p...d,pd->p...", vectors, self.direction))

    def labelled(self, shares: Mapping[str, tuple[tuple[str, ...], np.ndarray, str]]) -> xr.Dataset:
        """The shares as a result, with the norm of the row, its ratio and where it was looked at."""
        after = {"source": "this library, after arXiv 2510.06477", "group": "culprit"}
        variables = {
            name: (axes, values, {"units": "1", "long_name": label, **after})
            for name, (axes, values, label) in shares.items()
        }
        ratio = self.ds.massive_activation_ratio.isel(depth=self.depth, drop=True).values.astype(float)
        about = {"units": "1", "source": "arXiv 2510.06477", "group": "culprit"}
        variables["row_norm"] = (("prompt",), self.norm, {"long_name": "Norm of the row", **about})
        variables["massive_activation_ratio"] = (("prompt",), ratio, {"long_name": "Massive ratio", **about})
        coords = {name: c for name, c in self.ds.coords.items() if c.dims == ("prompt",)}
        return xr.Dataset(variables, coords=coords, attrs=self.ds.attrs).assign_coords(depth=self.depth)


def _stream_row(
    resid: Float[Tensor, "batch pos d_model"], position: int = 0
) -> Float[Tensor, "batch d_model"]:
    return _at_least_float32(resid[:, position])


def _attention_row(
    attn_out: Float[Tensor, "batch pos d_model"], position: int = 0
) -> Float[Tensor, "batch d_model"]:
    return _at_least_float32(attn_out[:, position])


def _mlp_row(
    mlp_out: Float[Tensor, "batch pos d_model"], position: int = 0
) -> Float[Tensor, "batch d_model"]:
    return _at_least_float32(mlp_out[:, position])


_READS = {
    "massive_activation_ratio": massive_activation_ratio,
    "stream": _stream_row,
    "attention": _attention_row,
    "mlp": _mlp_row,
}


def read_row(model: HookedModel, prompts: Any, depth: int | None, options: Mapping[str, Any]) -> Row:
    """Measure the row everywhere, choose the depth, and make sure that the writes add up to it."""
    check_model(model)
    last = model.cfg.n_layers
    wrong = isinstance(depth, bool) or not isinstance(depth, int)
    if depth is not None and (wrong or not 0 <= depth <= last):
        raise ValueError(
            f"depth={as_shown(depth)}: the model has depths 0..{last}, the last one behind all blocks"
        )
    ds = measure(model, prompts, _READS, **options)
    where = int(mean_ratio(ds).argmax()) if depth is None else depth
    stream = ds.stream.values.astype(np.float64)
    writes = np.stack([ds.attention.values, ds.mlp.values], axis=2).astype(np.float64)[:, :where]
    precision = _precision(ds.attrs["dtype"])
    row = Row(ds, where, stream[:, where], stream[:, 0], writes, precision)
    # Each of the 2d additions rounds a row that may be longer on the way than it is at the end.
    longest = np.linalg.norm(stream[:, : where + 1], axis=-1).max(1)
    lost = np.linalg.norm(row.rounding, axis=-1)
    if (lost > 4 * precision * (2 * where + 1) ** 0.5 * longest).any():
        share = float(np.nanmax(lost / longest))
        raise ValueError(
            f"the stream of {model_name(model)} at depth {where} is not the sum of the embedding and of what "
            f"the blocks write ({share:.0%} of its length is something else): a norm or a factor stands "
            "behind the additions, as in BERT, so no write has a share of its own"
        )
    return row


def mean_ratio(ds: xr.Dataset) -> np.ndarray:
    """The ratio by depth, averaged over the prompts that have other tokens (`measure` warns of the rest)."""
    ratio = ds.massive_activation_ratio.values[ds.n_tokens.values > 1].astype(np.float64)
    if not len(ratio) or not np.isfinite(ratio).all():
        raise ValueError(
            "the ratio to the other rows is not a finite number: every prompt has a single token, or half of "
            "the other rows have norm 0; pass longer prompts, or depth= where it is taken"
        )
    return ratio.mean(0)


def _precision(dtype: str) -> float:
    """The relative spacing of the model's numbers; packed weights compute in half precision at best."""
    kind = getattr(torch, dtype, torch.bfloat16)
    return torch.finfo(kind if kind.is_floating_point and kind.itemsize > 1 else torch.bfloat16).eps


def run_options(
    position: int, batch_size: BatchSize, max_length: int | None, prepend_bos: PrependBos, progress: bool
) -> dict[str, Any]:
    """What `measure` is told beside the model, the prompts and the metrics."""
    return {
        "position": position, "batch_size": batch_size, "max_length": max_length,
        "prepend_bos": prepend_bos, "progress": progress,
    }  # fmt: skip
