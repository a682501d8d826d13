"""How well does each depth predict the next token, read as if it were the last?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mcr_lens.batches import Batch
from mcr_lens.hookpoints import HookedModel, check_eval, context_length
from mcr_lens.interventions import Intervention, hooks_of, listed
from mcr_lens.readouts.layout import Variable, about, readout, with_interval
from mcr_lens.readouts.ratios import ratio_interval
from mcr_lens.readouts.streams import by_depth
from mcr_lens.readouts.unembedding import Unembedding, unembedding
from mcr_lens.readouts.windows import Window, cut, read_texts
from mcr_lens.served import hooked

LENS = "nostalgebraist 2020 (the logit lens); arXiv 2510.06477 (perplexity by layer; reconstruction)"
BELROSE = "arXiv 2303.08112 (Belrose et al. 2023)"

SCORES = {
    "cross_entropy": about("nats/token", "Cross-entropy of the next token", LENS, "lower"),
    "next_token_entropy": about("nats/token", "Entropy of the prediction", LENS),
    "kl_to_final": about("nats/token", "KL from the final prediction", BELROSE, "lower"),
    "rank": about("1", "Rank of the right token", LENS, "lower"),
    "accuracy": about("share", "Right token ranked first", LENS, "higher"),
}
"""What is read at each depth, by token: name and attributes."""

PERPLEXITY = about("1", "Perplexity", LENS, "lower")

LOGITS = 2**24
"""Bytes of predictions held at once on a processor, by depth: what is larger leaves its caches; 16 times as
much on a GPU."""

Translate = Callable[[Tensor, int], Tensor]
"""The stream of a depth [token, d_model] as the last depth would have it."""


def logit_lens(
    model: Any,
    texts: Any,
    *,
    window: int | None = None,
    stride: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    interventions: Intervention | Sequence[Intervention] = (),
    batch_size: int | Literal["auto"] = "auto",
    tokenizer: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Next-token predictions read from every depth with the model's own final norm and unembedding.

    P_l = softmax(W_U norm(x_l)). Texts are read in windows, each token is scored once (see `stride`), and
    only what is scored is unembedded, a few tokens at a time: memory does not grow with vocabulary × depths.

    Args:
        model: what `load_model` or `serve` returns, a TransformerLens model, or a plain Hugging Face model.
        texts: strings, token ids, or paths of text files (WikiText's, or any other: a file is one text).
        window: tokens that are read together; by default the model's context, and at most 1,024.
        stride: how many tokens a window scores that none did before; by default half a window.
        prepend_bos: as in `measure`; with a BOS, every window begins with it.
        interventions: edits made before anything is read, such as `zero_bos_mlp(1)`.
        batch_size: windows that run together, at most.
        tokenizer: that of a plain Hugging Face model.

    Returns:
        By depth: `cross_entropy` in nats per token, `perplexity` (its exponential), `next_token_entropy`,
        `kl_to_final` = KL(P_L ‖ P_l), `rank` of the right token (1 is best) and `accuracy`, each a mean over
        all scored tokens with the ends of its 95 % interval over windows (`_low`, `_high`), and the means of
        each window as `window_<name>` [window, depth], with `n_scored` tokens. At the last depth they are
        the model's own. Intervals allow for windows of one text that go up and down together.

    Raises:
        CannotReadOutError: an encoder, or a model whose predictions do not come out of its last depth.
        ValueError, TypeError: texts, windows or a model that cannot be read; what is allowed.
        NonFiniteActivationError, HookDidNotFireError: after a batch.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; arXiv 2510.06477 (perplexity on
    WikiText-2 by layer; windows and stride are a reconstruction). Where TransformerLens has `logit_readout`,
    that reads.
    """
    model = hooked(model, tokenizer)
    interventions = listed(interventions)
    check_eval(model)
    windows = cut(read_texts(model, texts, prepend_bos=prepend_bos), context_length(model), window, stride)
    lens = Lens(unembedding(model))
    sums = read_windows(
        model, windows, {"": lens}, interventions=interventions, batch_size=batch_size, progress=progress
    )[""]
    return readout(
        model, by_window(sums, windows), task="next token (logit lens)", score="cross_entropy",
        coords=coordinates(windows), lens="logit lens", reads_with=lens.unembedding.how,
        interventions=interventions,
    )  # fmt: skip


@dataclass(frozen=True)
class Lens:
    """How the stream of each depth is read: translated or not, then as the last depth is."""

    unembedding: Unembedding
    translate: Translate | None = None

    def log_probs(self, stream: Float[Tensor, "token d_model"], depth: int) -> Float[Tensor, "token vocab"]:
        """Log-probabilities of the next token in nats, float32.

        Source: nostalgebraist 2020; arXiv 2303.08112 (translated).
        """
        seen = stream if self.translate is None else self.translate(stream, depth).to(stream.dtype)
        return self.unembedding.log_probs(seen)


def token_scores(
    lens: Lens,
    streams: Sequence[Float[Tensor, "token d_model"]],
    targets: Int[Tensor, "token"],
    names: Sequence[str] = tuple(SCORES),
) -> dict[str, Float[Tensor, "depth token"]]:
    """What each depth says of the tokens that come next: `SCORES` by name, on the CPU.

    Of the predictions, only those of some tokens at two depths are held at once.

    Source: this library.
    """
    found = {name: torch.zeros(len(streams), len(targets)) for name in names}
    with torch.no_grad():
        for part in parts(lens.unembedding, streams[-1]):
            right = targets[part].to(streams[-1].device)[:, None]
            final = lens.unembedding.log_probs(streams[-1][part])
            likely = final.exp() if "kl_to_final" in names else None
            self_information = None if likely is None else _dot(likely, final)
            for depth, stream in enumerate(streams):
                last = depth == len(streams) - 1
                said = final if last else lens.log_probs(stream[part], depth).to(final.device)
                for name, values in _scores(names, said, right, likely, self_information):
                    found[name][depth, part] = values.float().cpu()
    return found


def _scores(
    names: Sequence[str], said: Tensor, right: Tensor, likely: Tensor | None, self_information: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """Scores of one depth's prediction [token, vocab]; `likely` is the final one, as probabilities."""
    of_right = said.gather(-1, right)
    if "cross_entropy" in names:
        yield "cross_entropy", -of_right[:, 0]
    if "next_token_entropy" in names:
        yield "next_token_entropy", -_dot(said.exp(), said)
    if likely is not None and self_information is not None:  # rounding leaves a hair less than nothing
        yield "kl_to_final", (self_information - _dot(likely, said)).clamp_min(0)
    if "rank" in names or "accuracy" in names:
        # Counted in floats, exact to 2²⁴: a sum of booleans takes several times as long.
        ahead = torch.gt(said, of_right, out=torch.empty_like(said)).sum(-1)
        yield from ((name, ahead + 1 if name == "rank" else ahead == 0)
                    for name in ("rank", "accuracy") if name in names)  # fmt: skip


def _dot(probability: Tensor, value: Tensor) -> Tensor:
    """Σ p v by row, where 0 · −∞ is 0, as in the limit."""
    found = torch.linalg.vecdot(probability, value)
    if found.isnan().any():
        found = torch.where(probability == 0, 0, probability * value).sum(-1)
    return found


def parts(reader: Unembedding, stream: Float[Tensor, "token d_model"]) -> list[slice]:
    """Slices of so many tokens that their predictions at one depth stay small.

    Source: this library.
    """
    vocab = reader.log_probs(stream[:1]).shape[-1]
    held = LOGITS * (16 if stream.is_cuda else 1)
    step = max(1, held // (4 * vocab))
    return [slice(i, i + step) for i in range(0, len(stream), step)]


def read_windows(
    model: HookedModel,
    windows: Sequence[Window],
    lenses: dict[str, Lens],
    names: Sequence[str] = tuple(SCORES),
    *,
    interventions: Sequence[Intervention] = (),
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """Sums over the scored tokens of each window, by lens and score: [window, depth], float64.

    Raises:
        As `by_depth`.

    Source: this library.
    """
    edits = hooks_of(model, interventions)
    depths = model.cfg.n_layers + 1
    sums = {lens: {name: np.zeros((len(windows), depths)) for name in names} for lens in lenses}
    rows = [window.prompt for window in windows]

    def score(batch: Batch, streams: list[Tensor]) -> None:
        chosen = [windows[number] for number in batch.numbers]
        predicting, targets, owner = scored(chosen, streams[0].shape[1])
        streams = [stream[predicting.to(stream.device)] for stream in streams]
        for key, lens in lenses.items():
            for name, values in token_scores(lens, streams, targets, names).items():
                total = torch.zeros(depths, len(chosen), dtype=torch.float64)
                total.index_add_(1, owner, values.double())
                sums[key][name][list(batch.numbers)] = total.T.numpy()  # put, not added: it may come again

    for _ in by_depth(
        model, rows, lambda stream, _: stream.detach(), batch_size=batch_size, edits=edits, then=score,
        progress=progress,
    ):  # fmt: skip
        pass
    return sums


def scored(windows: Sequence[Window], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of windows that run together: which positions predict [window, pos], which tokens, of which window.

    Source: this library.
    """
    predicting = torch.zeros(len(windows), width, dtype=torch.bool)
    for row, window in enumerate(windows):
        predicting[row, window.first_scored - 1 : len(window.prompt.ids) - 1] = True
    targets = torch.cat([window.targets for window in windows])
    return predicting, targets, predicting.nonzero()[:, 0]


def by_window(sums: dict[str, np.ndarray], windows: Sequence[Window]) -> dict[str, Variable]:
    """Variables of a readout: means over all scored tokens with intervals, and the means of each window.

    Source: this library.
    """
    counts = np.array([len(window.targets) for window in windows], dtype=float)
    texts = np.array([window.text for window in windows])
    found: dict[str, Variable] = {}
    for name, attrs in SCORES.items():
        value, low, high = ratio_interval(sums[name], counts, follows=texts)
        sampled = {"samples": f"window_{name}", "weights": "n_scored"}
        found |= with_interval(name, value, low, high, attrs, over="windows", sampled=sampled)
        if name == "cross_entropy":
            with np.errstate(over="ignore"):
                ends = np.exp(value), np.exp(low), np.exp(high)
            found |= with_interval("perplexity", *ends, PERPLEXITY, over="windows")
    for name, attrs in SCORES.items():
        plain = {k: v for k, v in attrs.items() if k != "better"} | {"group": "sample"}
        plain["long_name"] += ", mean of the window"
        found[f"window_{name}"] = (("window", "depth"), sums[name] / counts[:, None], plain)
    return found


def coordinates(windows: Sequence[Window]) -> dict[str, Any]:
    """Which text each window is of, and how many tokens it scores.

    Source: this library.
    """
    return {
        "window": np.arange(len(windows)),
        "text": ("window", np.array([window.text for window in windows])),
        "n_scored": ("window", np.array([len(window.targets) for window in windows])),
    }
