"""At which depth does a model know the answer to questions with a choice of answers?"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown
from mcr_lens.hookpoints import check_eval
from mcr_lens.interventions import Intervention, listed
from mcr_lens.readouts.choice_items import HARNESS, ChoiceItem
from mcr_lens.readouts.choice_scores import Scores, chance, score, wilson
from mcr_lens.readouts.choice_sources import read_choices, source_name
from mcr_lens.readouts.continuations import encode, lens_of, name_of, read, warn_of_cuts
from mcr_lens.readouts.layout import Variable, about, readout, with_interval
from mcr_lens.readouts.ratios import ratio_interval
from mcr_lens.served import hooked

SOURCE = f"arXiv 2510.06477: question answering by layer, logit lens (reconstruction); scoring: {HARNESS}"

SCORES = {
    "accuracy": about("share", "Right choice is the likeliest", SOURCE, "higher"),
    "accuracy_norm": about("share", "Right choice is the likeliest by character", SOURCE, "higher"),
    "correct_probability": about("share", "Probability of the right choice", SOURCE, "higher"),
}
"""What is told of all questions by depth: name and attributes."""

SAMPLES = {"accuracy": "correct", "accuracy_norm": "correct_norm", "correct_probability": "gold_probability"}
"""Each of them is a mean over questions of this."""


def multiple_choice(
    model: Any,
    items: Any,
    *,
    lens: Any = None,
    style: str | None = None,
    task: str | None = None,
    limit: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    interventions: Intervention | Sequence[Intervention] = (),
    batch_size: int | Literal["auto"] = "auto",
    tokenizer: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Accuracy on multiple-choice questions, read from every depth with the model's own unembedding.

    A choice c has the log-likelihood ℓ_c(l) = Σ_i ln P_l(c_i | context, c_<i), P_l = softmax(W_U norm(x_l)):
    see `continuation_log_likelihood`. The answer at depth l is argmax_c ℓ_c(l), for `accuracy_norm`
    argmax_c ℓ_c(l) / n_c with n_c characters of the choice (the acc_norm of lm-evaluation-harness; for
    WinoGrande, whose choices share one continuation, it is the same). No examples come before a question.

    Args:
        model: as in `logit_lens`, with a tokenizer.
        items: what `read_choices` returns, or what it reads: a JSON Lines file, the name of a dataset (its
            split "validation"), a list of records in the style of ARC, HellaSwag, WinoGrande or llm-foundry.
        lens: a tuned lens, or any object with `translate(stream, depth)`; None for the logit lens.
        style: of records, as in `read_choices`.
        task: what the questions are called, for figures; by default after the file, dataset or style.
        limit: the first so many questions.
        prepend_bos: as in `continuation_log_likelihood`.
        interventions: edits made before anything is read, such as `zero_bos_mlp(1)`.
        batch_size: choices that run together, at most.
        tokenizer: that of a plain Hugging Face model.

    Returns:
        By depth, each beside `_low` and `_high`, the ends of its 95 % interval over questions: `accuracy` and
        `accuracy_norm`, shares with Wilson's score interval, and `correct_probability`, the mean of
        exp(ℓ_gold) / Σ_c exp(ℓ_c), with Student's. `chance`, the mean of 1/number of choices. By item and
        depth: `correct`, `correct_norm` (1 or 0), `gold_probability`. `log_likelihood` [item, choice, depth]
        in nats and `n_characters` [item, choice], NaN where an item has fewer choices. Coordinates `gold` and
        `n_choices` [item]. At the last depth they are the model's own.

    Raises:
        CannotReadOutError: an encoder, or a model whose predictions do not come out of its last depth.
        FileNotFoundError, ImportError, TypeError, ValueError: as `read_choices` and
            `continuation_log_likelihood`, before the model runs.
        NonFiniteActivationError, HookDidNotFireError: after a batch.
        PromptWarning: contexts were too long for the model and were cut on the left.

    Source: arXiv 2510.06477 (ARC, HellaSwag and WinoGrande through the logit lens: flat until 40 to 60 % of
    the depth, then a steep rise; templates, scoring and intervals are a reconstruction); scoring as
    lm-evaluation-harness.
    """
    model = hooked(model, tokenizer)
    interventions = listed(interventions)
    check_eval(model)
    if task is not None and not isinstance(task, str):
        raise TypeError(f"task={as_shown(task)}: pass what the questions are called, as text")
    questions = read_choices(items, style=style, limit=limit)
    chosen = lens_of(model, lens)
    places = [(i, c) for i, item in enumerate(questions) for c in range(len(item.continuations))]
    pairs = [(questions[i].contexts[c], questions[i].continuations[c]) for i, c in places]
    names = [f"question {i}, choice {c}" for i, c in places]
    asked = encode(model, pairs, prepend_bos=prepend_bos, names=names)
    warn_of_cuts(asked)
    sums, _ = read(
        model, asked, chosen, interventions=interventions, batch_size=batch_size, progress=progress
    )
    likely, lengths = _by_item(questions, places, sums)
    styles = ", ".join(dict.fromkeys(item.style for item in questions))
    task = task or source_name(items) or f"choice ({styles})"
    return readout(
        model, _variables(questions, likely, lengths), task=task, score="accuracy",
        coords=_coordinates(questions), style=styles,
        n_items=len(questions), lens=name_of(lens), reads_with=chosen.unembedding.how,
        interventions=interventions,
    )  # fmt: skip


def _by_item(
    items: Sequence[ChoiceItem], places: Sequence[tuple[int, int]], sums: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods [item, choice, depth] and characters [item, choice], NaN where there is no choice."""
    most = max(len(item.continuations) for item in items)
    likely = np.full((len(items), most, sums.shape[1]), np.nan)
    lengths = np.full((len(items), most), np.nan)
    for (item, choice), values in zip(places, sums, strict=True):
        likely[item, choice] = values
        lengths[item, choice] = items[item].lengths[choice]
    return likely, lengths


def _variables(items: Sequence[ChoiceItem], likely: np.ndarray, lengths: np.ndarray) -> dict[str, Variable]:
    scores = score(likely, lengths, np.array([item.gold for item in items]))
    found: dict[str, Variable] = {}
    for name, attrs in SCORES.items():
        values = _of(scores, name)
        if name == "correct_probability":
            value, low, high = ratio_interval(values, np.ones(len(items)))
            low, high = low.clip(0), high.clip(None, 1)
        else:
            value = values.mean(0)
            low, high = wilson(value, len(items))
        sampled = {"samples": SAMPLES[name]}
        found |= with_interval(name, value, low, high, attrs, over="questions", sampled=sampled)
    for name, sample in SAMPLES.items():
        found[sample] = (("item", "depth"), _of(scores, name), _plain(SCORES[name]))
    told = about("nats", "Log-likelihood of a choice", SOURCE) | {"group": "sample"}
    found["log_likelihood"] = (("item", "choice", "depth"), likely, told)
    told = about("1", "Characters of a choice", HARNESS) | {"group": "sample"}
    found["n_characters"] = (("item", "choice"), lengths, told)
    guessing = chance(np.array([len(item.continuations) for item in items]))
    told = about("share", "Accuracy of guessing", "this library") | {"group": "baseline"}
    found["chance"] = ((), guessing, told)
    return found


def _of(scores: Scores, name: str) -> np.ndarray:
    return getattr(scores, SAMPLES[name])


def _plain(attrs: dict[str, str]) -> dict[str, str]:
    """Attributes of what is told of one question."""
    return {name: value for name, value in attrs.items() if name != "better"} | {"group": "sample"}


def _coordinates(items: Sequence[ChoiceItem]) -> dict[str, Any]:
    n_choices = np.array([len(item.continuations) for item in items])
    return {
        "item": np.arange(len(items)),
        "choice": np.arange(n_choices.max()),
        "gold": ("item", np.array([item.gold for item in items])),
        "n_choices": ("item", n_choices),
    }
