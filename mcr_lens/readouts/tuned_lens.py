"""How well does each depth predict the next token, translated into the last depth's words?"""

import json
import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, path_of
from mcr_lens.hookpoints import check_eval, context_length
from mcr_lens.interventions import Intervention, listed
from mcr_lens.readouts.layout import Variable, about, readout, with_interval
from mcr_lens.readouts.lens import BELROSE, SCORES, Lens, by_window, coordinates, read_windows
from mcr_lens.readouts.ratios import ratio_interval
from mcr_lens.readouts.translators import TunedLens, TunedLensWarning
from mcr_lens.readouts.tuned_training import Training, check_recipe, hold_out, train
from mcr_lens.readouts.unembedding import unembedding
from mcr_lens.readouts.windows import Window, cut, read_texts, split
from mcr_lens.served import hooked

BOTH = ("cross_entropy", "kl_to_final")
"""What is read without translation too, to be set beside it."""


def tuned_lens(
    model: Any,
    texts: Any,
    lens: TunedLens | str | os.PathLike[str] | None = None,
    *,
    train_texts: Any = None,
    train_share: float = 0.8,
    save: str | os.PathLike[str] | None = None,
    steps: int = 500,
    tokens_per_step: int = 1024,
    learning_rate: float = 3e-3,
    seed: int = 0,
    window: int | None = None,
    stride: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    interventions: Intervention | Sequence[Intervention] = (),
    batch_size: int | Literal["auto"] = "auto",
    tokenizer: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Next-token predictions of every depth, its stream translated into the last depth's words first.

    P_l = softmax(W_U norm(x_l + A_l x_l + b_l)). Without a lens, one is trained (as `fit_tuned_lens` does),
    and what is reported is read from text that it was not trained on.

    Args:
        model: as in `logit_lens`.
        texts: as in `logit_lens`.
        lens: what `fit_tuned_lens` returns, or a file that `TunedLens.save` wrote; None to train one.
        train_texts: texts to train on; None for the first `train_share` of the tokens of `texts`, and then
            only the rest is read.
        train_share: between 0 and 1.
        save: a file for the lens that is trained here.
        steps, tokens_per_step, learning_rate, seed: as in `fit_tuned_lens`.
        window, stride, prepend_bos, interventions, batch_size, tokenizer: as in `logit_lens`.

    Returns:
        As `logit_lens`, and beside it the logit lens on the same tokens, `logit_lens_cross_entropy` and
        `logit_lens_kl_to_final`, and `gain` = logit_lens_cross_entropy − cross_entropy with its interval
        over windows, in nats per token. `training` (attribute) says how the lens was made.

    Raises:
        TunedLensFileError: a file that is no tuned lens, or a lens of another model.
        TypeError, ValueError: as `logit_lens` and `fit_tuned_lens`; texts or a file beside a finished lens.
        TunedLensWarning: at some depth the lens is farther from the final prediction than the logit lens, as
            it was trained on too little text, on text of another kind, or on another model.

    Source: arXiv 2303.08112 (Belrose et al. 2023), section 3; arXiv 2510.06477 (tuned lens named in a
    summary; reconstruction).
    """
    model = hooked(model, tokenizer)
    interventions = listed(interventions)
    check_eval(model)
    _check_folder(save)
    recipe = Training(steps, tokens_per_step, learning_rate, seed=seed)
    check_recipe(recipe)
    reader = unembedding(model)
    read = read_texts(model, texts, prepend_bos=prepend_bos)
    if lens is not None:
        if train_texts is not None or save is not None:
            raise ValueError("a lens was given, so nothing is trained: leave out train_texts and save")
        if not isinstance(lens, TunedLens | str | os.PathLike):
            raise TypeError(f"lens came as {type(lens).__name__}; pass a TunedLens, or the file of one")
        found = lens if isinstance(lens, TunedLens) else TunedLens.load(lens)
        found.check(model)
        windows = cut(read, context_length(model), window, stride)
    else:
        learn = None if train_texts is None else read_texts(model, train_texts, prepend_bos=prepend_bos)
        learn, read = (learn, read) if learn is not None else split(read, _share(train_share))
        windows = cut(read, context_length(model), window, stride)
        learn, check = hold_out(learn, recipe)
        found = train(model, learn, check, recipe, window, progress=progress)
        if save is not None:
            found.save(save)
    lenses = {"tuned": Lens(reader, found.translate), "logit": Lens(reader)}
    sums = read_windows(
        model, windows, lenses, interventions=interventions, batch_size=batch_size, progress=progress
    )
    _warn_where_worse(sums)
    variables = by_window(sums["tuned"], windows) | _beside(sums, windows)
    return readout(
        model, variables, task="next token (tuned lens)", score="cross_entropy", coords=coordinates(windows),
        lens="tuned lens", training=json.dumps(found.training), reads_with=reader.how,
        interventions=interventions,
    )  # fmt: skip


def _warn_where_worse(sums: dict[str, Any]) -> None:
    """What leads away from the final prediction here was not learned from such text."""
    tuned, plain = (sums[name]["kl_to_final"].sum(0) for name in ("tuned", "logit"))
    worse = np.flatnonzero(tuned > plain * (1 + 1e-5))
    if len(worse):
        warnings.warn(
            "on these texts the tuned lens is farther from the final prediction than the logit lens at depth "
            f"{', '.join(map(str, worse))}; train it on more text, and on text of their kind",
            TunedLensWarning,
            stacklevel=3,
        )


def _beside(sums: dict[str, Any], windows: Sequence[Window]) -> dict[str, Variable]:
    """The logit lens on the same tokens, and by how much the translation is better."""
    counts = np.array([len(window.targets) for window in windows], dtype=float)
    texts = np.array([window.text for window in windows])
    found: dict[str, Variable] = {}
    for name in BOTH:
        attrs = {**SCORES[name], "group": "comparison"}
        attrs["long_name"] += ", logit lens"
        values = ratio_interval(sums["logit"][name], counts, follows=texts)
        found |= with_interval(f"logit_lens_{name}", *values, attrs, over="windows")
    gained = sums["logit"]["cross_entropy"] - sums["tuned"]["cross_entropy"]
    attrs = about("nats/token", "Cross-entropy that the translation saves", BELROSE, "higher")
    values = ratio_interval(gained, counts, follows=texts)
    return found | with_interval("gain", *values, {**attrs, "group": "comparison"}, over="windows")


def _share(share: float) -> float:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"train_share={as_shown(share)}: pass a share between 0 and 1")
    return share


def _check_folder(save: str | os.PathLike[str] | None) -> None:
    """Before the training, and not after it."""
    if save is not None and not path_of(save).parent.is_dir():
        raise FileNotFoundError(f"{path_of(save).parent} is not a folder; create it first")
