"""What does the stream of each depth say in the last depth's words? Affine translators, and their file."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mcr_lens._checks import first_line, path_of
from mcr_lens._files import replacing
from mcr_lens.hookpoints import HookedModel, model_name

FORMAT = "mcr_lens tuned lens 1"


class TunedLensFileError(ValueError):
    """A file is not a tuned lens, or one of another model."""


class TunedLensWarning(UserWarning):
    """A tuned lens is farther from the final prediction than the logit lens."""


@dataclass(frozen=True)
class TunedLens:
    """Affine translators, one for each depth below the last: T_l(x) = x + A_l x + b_l.

    What T_l makes of the stream at depth l is read as the last depth's stream is; at the last depth nothing
    is translated. `training` says how they were trained, and with what loss on text held out.

    Raises:
        TypeError: weights that are no tensors of floating point numbers.
        ValueError: weights that do not fit each other, or are not finite.

    Source: arXiv 2303.08112 (Belrose et al. 2023), section 3.

    >>> lens = TunedLens(torch.zeros(2, 3, 3), torch.zeros(2, 3))  # nothing learned yet: the logit lens
    >>> lens.weight.shape
    torch.Size([2, 3, 3])
    """

    weight: Float[Tensor, "depth d_model d_model"]
    bias: Float[Tensor, "depth d_model"]
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, given in (("weight", self.weight), ("bias", self.bias)):
            if not isinstance(given, Tensor) or not given.is_floating_point():
                kind = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
                raise TypeError(f"{name} came as {kind}; translators are tensors of floating point numbers")
        if not isinstance(self.training, dict):
            raise TypeError(f"training came as {type(self.training).__name__}; pass a dict of what is known")
        weight, bias = tuple(self.weight.shape), tuple(self.bias.shape)
        if len(bias) != 2 or weight != (*bias, bias[1]):
            raise ValueError(
                f"weight has shape {weight} and bias {bias}; they must be [depth, d_model, d_model] and "
                "[depth, d_model]"
            )
        if not (self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise ValueError("the translators hold NaN or infinity; train them anew")

    def translate(self, stream: Float[Tensor, "token d_model"], depth: int) -> Float[Tensor, "token d_model"]:
        """The stream of a depth as the last depth would have it, float32.

        Source: arXiv 2303.08112, section 3.
        """
        x = stream.float()
        if depth >= len(self.bias):
            return x
        weight, bias = self.weight[depth].to(x.device), self.bias[depth].to(x.device)
        return x + torch.addmm(bias, x, weight.T)

    def check(self, model: HookedModel) -> None:
        """Refuse a model of another shape.

        Raises:
            TunedLensFileError: other depths or another width.
        """
        wanted = (int(model.cfg.n_layers), int(model.cfg.d_model))
        if tuple(self.bias.shape) != wanted:
            raise TunedLensFileError(
                f"this tuned lens is for {self.bias.shape[0]} layers of width {self.bias.shape[1]}, and "
                f"{model_name(model)} has {wanted[0]} of width {wanted[1]}; train one for this model"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the translators as safetensors, all of it or nothing.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        from safetensors.torch import save

        target = path_of(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{target.parent} is not a folder; create it first")
        about = {"format": FORMAT, "training": json.dumps(self.training)}
        with replacing(target) as part:
            tensors = {"weight": self.weight.detach().cpu(), "bias": self.bias.detach().cpu()}
            part.write_bytes(_in_order(save({n: t.contiguous() for n, t in tensors.items()}, about)))
        return target

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "TunedLens":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            TunedLensFileError: a file of another kind, or a damaged one.
        """
        from safetensors import SafetensorError, safe_open

        source = path_of(path)
        if not source.is_file():
            raise FileNotFoundError(f"{source} is not a file")
        try:
            with safe_open(source, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise TunedLensFileError(f"{source} holds tensors, but no tuned lens of mcr_lens")
                tensors = {name: file.get_tensor(name) for name in ("weight", "bias")}
        except SafetensorError as error:
            raise TunedLensFileError(
                f"{source} cannot be read as safetensors ({first_line(error, 300)}); it is damaged or of "
                "another kind"
            ) from None
        try:
            return TunedLens(**tensors, training=json.loads(about.get("training", "{}")))
        except (TypeError, ValueError, RecursionError) as error:  # misfits, or no JSON
            why = first_line(error, 300)
            raise TunedLensFileError(f"{source} is a damaged tuned lens ({why}); save it anew") from None


def _in_order(file: bytes) -> bytes:
    """The same safetensors with the names in its header sorted: by itself their order is drawn each time."""
    size = int.from_bytes(file[:8], "little")
    names = json.loads(file[8 : 8 + size])
    header = json.dumps(names, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + file[8 + size :]
