"""How are the translators of a tuned lens trained, and when are they good enough to keep?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mcr_lens._checks import as_shown, check_seed
from mcr_lens.hookpoints import HookedModel, check_eval, context_length
from mcr_lens.provenance import describe
from mcr_lens.readouts.lens import Lens, parts, read_windows, scored
from mcr_lens.readouts.streams import by_depth
from mcr_lens.readouts.translators import TunedLens
from mcr_lens.readouts.unembedding import CannotReadOutError, Unembedding, unembedding
from mcr_lens.readouts.windows import Tokens, Window, cut, read_texts, split
from mcr_lens.served import hooked

CHECKS = 8
"""How often, while it trains, a lens is looked at on the text held out."""


FEWEST = 10
"""Tokens held out below which nothing can be chosen by them."""


@dataclass(frozen=True)
class Training:
    """How translators are trained: what is not said here is `fit_tuned_lens`'s argument of that name."""

    steps: int = 500
    tokens_per_step: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    held_out: float = 0.1
    seed: int = 0


def fit_tuned_lens(
    model: Any,
    texts: Any,
    *,
    steps: int = 500,
    tokens_per_step: int = 1024,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.0,
    held_out: float = 0.1,
    seed: int = 0,
    window: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    tokenizer: Any = None,
    progress: bool = True,
) -> TunedLens:
    """Train a translator for each depth so that it predicts what the last depth predicts.

    It lowers KL(P_L ‖ softmax(W_U norm(T_l(x_l)))) in nats, averaged over tokens, with AdamW and a rate that
    falls to 0; T_l(x) = x + s (A_l (x − μ)/σ + b_l) while it trains, with mean, deviation and size of the
    stream at that depth, and A = b = 0 at first: the lens begins as the logit lens. Each depth keeps the
    translator that was best on the tokens held out, among them the one it began with. The model's weights and
    their gradients are not touched.

    Args:
        model: what `load_model` or `serve` returns, a TransformerLens model, or a plain Hugging Face model.
        texts: as in `logit_lens`; at least some ten thousand tokens.
        steps: how many updates.
        tokens_per_step: how many predictions an update averages over.
        learning_rate: of AdamW, at first.
        weight_decay: of AdamW; it draws translators towards the logit lens.
        held_out: share of the tokens, the last ones, on which translators are chosen.
        seed: of the order of the windows.
        window: as in `logit_lens`.

    Returns:
        The lens; its `training` holds `kl_held_out` and `kl_held_out_logit_lens` by depth, in nats per token.

    Raises:
        CannotReadOutError: as `logit_lens`.
        ValueError: numbers that are none or not positive, or too little text.

    Source: arXiv 2303.08112 (Belrose et al. 2023), section 3; optimiser, scaling and choice by held-out loss:
    this library.
    """
    model = hooked(model, tokenizer)
    check_eval(model)
    recipe = Training(steps, tokens_per_step, learning_rate, weight_decay, held_out, seed)
    check_recipe(recipe)
    learn, check = hold_out(read_texts(model, texts, prepend_bos=prepend_bos), recipe)
    return train(model, learn, check, recipe, window, progress=progress)


def hold_out(texts: Sequence[Tokens], recipe: Training) -> tuple[list[Tokens], list[Tokens]]:
    """Texts to learn from, and those on which translators are chosen.

    Raises:
        ValueError: too little text.

    Source: this library.
    """
    learn, check = split(texts, 1 - recipe.held_out)
    tokens = sum(len(text.ids) - 1 for text in check)
    if tokens < FEWEST:
        raise ValueError(
            f"{tokens} tokens are held out to choose translators by, and at least {FEWEST} are needed; train "
            "on more text, some ten thousand tokens"
        )
    return learn, check


def train(
    model: HookedModel,
    learn: Sequence[Tokens],
    check: Sequence[Tokens],
    recipe: Training,
    window: int | None,
    *,
    progress: bool,
) -> TunedLens:
    """Translators from the text to learn from, chosen on the text held out.

    Source: as `fit_tuned_lens`.
    """
    reader = unembedding(model)
    lessons, exam = _without_overlap(model, learn, window), _without_overlap(model, check, window)
    state = _State.begin(model, lessons, recipe)
    best, loss = state.lens(), _held_out(model, exam, reader, None)
    at_first = loss.copy()
    look = {round(recipe.steps * (i + 1) / CHECKS) for i in range(CHECKS)}
    bar = tqdm(total=recipe.steps, unit="step", disable=not progress, delay=1, leave=False)
    for step, streams in zip(range(1, recipe.steps + 1), _batches(model, lessons, recipe), strict=False):
        state.update(reader, streams, step)
        bar.update()
        if step in look:
            now = state.lens()
            found = _held_out(model, exam, reader, now)
            best, loss = _better(best, now, found < loss), np.minimum(found, loss)
    bar.close()
    about = describe(model)
    training = {
        **asdict(recipe),
        "model": about["model"],
        "revision": about["revision"],
        "tokens": sum(len(w.targets) for w in lessons),
        "tokens_held_out": sum(len(w.targets) for w in exam),
        "kl_held_out": [float(x) for x in loss],
        "kl_held_out_logit_lens": [float(x) for x in at_first],
    }
    return replace(best, training=training)


@dataclass
class _State:
    """Translators while they are trained, in units of the stream at their depth, and their optimiser."""

    weight: Tensor  # [depth, d_model, d_model]
    bias: Tensor  # [depth, d_model]
    mean: Tensor  # [depth, d_model]
    deviation: Tensor  # [depth, d_model]
    size: Tensor  # [depth, 1]
    optimiser: torch.optim.Optimizer
    recipe: Training

    @staticmethod
    def begin(model: HookedModel, windows: Sequence[Window], recipe: Training) -> "_State":
        """Translators that change nothing, and the scale of each depth from the first tokens."""
        streams = next(_batches(model, windows, recipe))
        rows = torch.stack([stream.float() for stream in streams[:-1]])
        deviation, mean = torch.std_mean(rows, 1)
        deviation = deviation.clamp_min(1e-3 * deviation.mean(-1, keepdim=True)).clamp_min(1e-12)
        depths, width = mean.shape
        weight = torch.zeros(depths, width, width, device=rows.device, requires_grad=True)
        bias = torch.zeros(depths, width, device=rows.device, requires_grad=True)
        size = deviation.square().mean(-1, keepdim=True).sqrt()
        optimiser = torch.optim.AdamW(
            [weight, bias], lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        return _State(weight, bias, mean, deviation, size, optimiser, recipe)

    def update(self, reader: Unembedding, streams: Sequence[Tensor], step: int) -> None:
        """One step: the mean over tokens of the divergence from the final prediction, at every depth."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * (1 - (step - 1) / self.recipe.steps)
        grads = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]
        for part in parts(reader, streams[-1]):  # predictions of some tokens at one depth at a time
            with torch.no_grad():
                likely = reader.log_probs(streams[-1][part]).exp()
            for depth, stream in enumerate(streams[:-1]):
                found = self._gradient(reader, depth, stream[part], likely)
                for whole, of_part in zip(grads, found, strict=True):
                    whole[depth] += of_part / len(streams[-1])
        self.weight.grad, self.bias.grad = grads
        self.optimiser.step()

    def _gradient(
        self, reader: Unembedding, depth: int, stream: Tensor, likely: Tensor
    ) -> tuple[Tensor, ...]:
        """Of the divergence summed over tokens, by the translator of one depth."""
        x = stream.float().to(self.weight.device)
        weight, bias = self.weight[depth].detach(), self.bias[depth].detach()
        for leaf in (weight, bias):
            leaf.requires_grad_()
        with torch.enable_grad():
            moved = torch.addmm(bias, (x - self.mean[depth]) / self.deviation[depth], weight.T)
            said = reader.log_probs((x + self.size[depth] * moved).to(stream.dtype))
            loss = -(likely * said.to(likely.device)).sum()  # KL, up to what does not change
        found: tuple[Tensor | None, ...] = (None,)
        if loss.requires_grad:  # gradients of these alone: the model's stay untouched
            found = torch.autograd.grad(loss, [weight, bias], allow_unused=True)
        known = tuple(part for part in found if part is not None)
        if len(known) < 2:
            raise CannotReadOutError(
                "no gradient comes through the model's unembedding (is it quantised?), so no lens can be "
                "trained; train one on the model in floating point and pass it as lens="
            )
        return known

    def lens(self) -> TunedLens:
        """The translators so far, as x + A x + b."""
        with torch.no_grad():
            weight = self.size[..., None] * self.weight / self.deviation[:, None]
            bias = self.size * self.bias - torch.einsum("lij,lj->li", weight, self.mean)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError("the training ran away to NaN or infinity; pass a smaller learning_rate=")
        return TunedLens(weight.detach().clone(), bias.detach().clone())


def _batches(model: HookedModel, windows: Sequence[Window], recipe: Training) -> Iterator[list[Tensor]]:
    """Streams by depth [token, d_model] where something is predicted, windows in an order drawn by seed."""
    rng = np.random.default_rng(recipe.seed)
    order: list[int] = []
    while True:
        chosen: list[Window] = []
        while sum(len(w.targets) for w in chosen) < recipe.tokens_per_step:
            order = order or rng.permutation(len(windows)).tolist()
            chosen.append(windows[order.pop()])
        streams: list[list[Tensor]] = [[] for _ in range(model.cfg.n_layers + 1)]
        for batch, seen in by_depth(model, [w.prompt for w in chosen], lambda stream, _: stream.detach()):
            mine = [chosen[number] for number in batch.numbers]
            predicting, _, _ = scored(mine, seen[0].shape[1])
            for depth, stream in enumerate(seen):
                streams[depth].append(stream[predicting.to(stream.device)])
        yield [torch.cat(parts) for parts in streams]


def _without_overlap(model: HookedModel, texts: Sequence[Tokens], window: int | None) -> list[Window]:
    """Windows that share as little context as they can: each token is seen about once."""
    whole = cut(texts, context_length(model), window)
    longest = max(len(w.prompt.ids) for w in whole)
    return cut(texts, longest, longest, max(1, longest - 1)) if longest > 2 else whole


def _held_out(
    model: HookedModel, windows: Sequence[Window], reader: Unembedding, lens: TunedLens | None
) -> np.ndarray:
    """KL divergence from the final prediction at each depth below the last, in nats per token."""
    seen = Lens(reader, None if lens is None else lens.translate)
    sums = read_windows(model, windows, {"": seen}, ("kl_to_final",))[""]["kl_to_final"]
    return sums.sum(0)[:-1] / sum(len(w.targets) for w in windows)


def _better(best: TunedLens, now: TunedLens, improved: np.ndarray) -> TunedLens:
    chosen = torch.from_numpy(improved).to(best.bias.device)
    return TunedLens(
        torch.where(chosen[:, None, None], now.weight, best.weight),
        torch.where(chosen[:, None], now.bias, best.bias),
    )


def check_recipe(recipe: Training) -> None:
    """Refuse in words numbers that no training can be made with.

    Raises:
        ValueError: which one, and what is allowed.

    Source: this library.
    """
    for name in ("steps", "tokens_per_step"):
        value = getattr(recipe, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={as_shown(value)}: pass a positive whole number")
    for name, least in (("learning_rate", "a positive number"), ("weight_decay", "0 or more")):
        value = getattr(recipe, name)
        if not _is_number(value) or value < 0 or (value == 0 and name == "learning_rate"):
            raise ValueError(f"{name}={as_shown(value)}: pass {least}")
    if not _is_number(recipe.held_out) or not 0 < recipe.held_out < 1:
        raise ValueError(f"held_out={as_shown(recipe.held_out)}: pass a share between 0 and 1")
    check_seed(recipe.seed)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
