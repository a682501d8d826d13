"""How likely is a text as the continuation of another one, read at every depth?"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mcr_lens._checks import as_shown, encodable, is_iterable
from mcr_lens.batches import Batch
from mcr_lens.hookpoints import HookedModel, check_eval, context_length, model_name
from mcr_lens.interventions import Intervention, hooks_of, listed
from mcr_lens.measurement import PromptWarning
from mcr_lens.prompts import Prompt, prompt_from_text
from mcr_lens.readouts.choice_items import HARNESS
from mcr_lens.readouts.layout import about, readout, with_interval
from mcr_lens.readouts.lens import LENS, Lens, token_scores
from mcr_lens.readouts.ratios import ratio_interval
from mcr_lens.readouts.streams import by_depth
from mcr_lens.readouts.unembedding import unembedding
from mcr_lens.served import hooked

Pair = tuple[str, str]
"""A context, and what continues it."""


def continuation_log_likelihood(
    model: Any,
    pairs: Iterable[Pair],
    *,
    lens: Any = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    interventions: Intervention | Sequence[Intervention] = (),
    batch_size: int | Literal["auto"] = "auto",
    tokenizer: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Log-likelihood of texts as continuations of contexts, read from every depth.

    Σ_i ln P_l(c_i | context, c_<i) over the tokens c of the continuation, P_l = softmax(W_U norm(x_l)).
    White space at the end of a context goes to its continuation; then continuation = tokens(context +
    continuation) behind the first len(tokens(context)). An empty context is the tokenizer's BOS, or EOS where
    there is none. Where a pair is too long for the model, the context is cut on the left, BOS included. A
    pair that comes twice is run once.

    Args:
        model: as in `logit_lens`, with a tokenizer.
        pairs: contexts and continuations; a continuation begins with the space that parts the two.
        lens: a tuned lens, or any object with `translate(stream, depth)`; None for the logit lens.
        prepend_bos: as in `measure`. lm-evaluation-harness leaves it to the tokenizer instead: for one that
            has a BOS and adds none (GPT-2, GPT-NeoX), False gives its numbers.
        interventions: edits made before anything is read.
        batch_size: pairs that run together, at most.
        tokenizer: that of a plain Hugging Face model.

    Returns:
        `log_likelihood` [pair, depth] in nats; `is_greedy` [pair, depth], 1 where no token is more likely
        than the right one all along; `mean_log_likelihood` [depth] with the ends of its 95 % interval over
        pairs; coordinates `n_tokens` of the continuation and `truncated` [pair]. At the last depth they are
        the model's own.

    Raises:
        CannotReadOutError: an encoder, or a model whose predictions do not come out of its last depth.
        TypeError, ValueError: no pairs, something else than two texts, a continuation without tokens of its
            own or too long for the model, no tokenizer; what is allowed.
        NonFiniteActivationError, HookDidNotFireError: after a batch.
        PromptWarning: contexts were cut.

    Source: lm-evaluation-harness, `loglikelihood` (encoding of pairs); nostalgebraist 2020 (the lens).
    """
    model = hooked(model, tokenizer)
    interventions = listed(interventions)
    check_eval(model)
    chosen = lens_of(model, lens)
    asked = encode(model, _checked(pairs), prepend_bos=prepend_bos)
    warn_of_cuts(asked)
    sums, greedy = read(
        model, asked, chosen, interventions=interventions, batch_size=batch_size, progress=progress
    )
    attrs = about("nats", "Log-likelihood of the continuation", f"{HARNESS}; {LENS}", "higher")
    sample = {name: value for name, value in attrs.items() if name != "better"} | {"group": "sample"}
    mean = {**attrs, "long_name": "Mean log-likelihood of the continuation"}
    values = ratio_interval(sums, np.ones(len(asked)))
    sampled = {"samples": "log_likelihood"}
    variables = with_interval("mean_log_likelihood", *values, mean, over="pairs", sampled=sampled)
    variables["log_likelihood"] = (("pair", "depth"), sums, sample)
    told = {**sample, "units": "1", "long_name": "Every token of the continuation ranked first"}
    variables["is_greedy"] = (("pair", "depth"), greedy.astype(float), told)
    coords = {
        "pair": np.arange(len(asked)),
        "n_tokens": ("pair", np.array([len(one.targets) for one in asked])),
        "truncated": ("pair", np.array([one.truncated for one in asked])),
    }
    return readout(
        model, variables, task="continuations", score="mean_log_likelihood", coords=coords,
        lens=name_of(lens), reads_with=chosen.unembedding.how,
        interventions=interventions,
    )  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What the model is given, and the tokens it is asked for: the last of them is never given."""

    given: tuple[int, ...]
    targets: tuple[int, ...]
    truncated: bool

    @property
    def predicting(self) -> Tensor:
        """The positions that predict the targets."""
        return torch.arange(len(self.given) - len(self.targets), len(self.given))


def lens_of(model: HookedModel, lens: Any) -> Lens:
    """How streams are read: as they are, or translated by a lens.

    Raises:
        TypeError: something that does not translate.
        CannotReadOutError: as `unembedding`.

    Source: this library.
    """
    if lens is None:
        return Lens(unembedding(model))
    texts = str | bytes | bytearray  # these have a method of that name too
    if isinstance(lens, texts) or not callable(getattr(lens, "translate", None)):
        raise TypeError(
            f"lens came as {type(lens).__name__}; pass None for the logit lens, or a tuned lens, which has a "
            "method translate(stream, depth)"
        )
    if hasattr(lens, "check"):
        lens.check(model)  # a tuned lens knows which model it is of
    return Lens(unembedding(model), lens.translate)


def name_of(lens: Any) -> str:
    """What a result calls the lens.

    Source: this library.
    """
    return "logit lens" if lens is None else "tuned lens"


def encode(
    model: HookedModel,
    pairs: Sequence[Pair],
    *,
    prepend_bos: bool | Literal["auto"] = "auto",
    names: Sequence[str] | None = None,
) -> list[Asked]:
    """Token ids of pairs, cut on the left to what the model takes; `names` call them in errors.

    Raises:
        ValueError: as `continuation_log_likelihood`.

    Source: lm-evaluation-harness, `_encode_pair` and `loglikelihood`.
    """
    if not isinstance(prepend_bos, bool) and not (isinstance(prepend_bos, str) and prepend_bos == "auto"):
        raise ValueError(f"prepend_bos={as_shown(prepend_bos)}: pass 'auto', True or False")
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(f"{model_name(model)} has no tokenizer, so it cannot read text; pass tokenizer=")
    known: dict[Pair, Asked] = {}
    for number, pair in enumerate(pairs):
        if pair not in known:
            name = names[number] if names else f"pair {number}"
            known[pair] = _encode(model, pair, prepend_bos, name)
    return [known[pair] for pair in pairs]


def _encode(model: Any, pair: Pair, prepend_bos: bool | str, name: str) -> Asked:
    context, continuation = pair
    if not encodable(context + continuation):
        raise ValueError(f"{name} is not valid text (a lone surrogate); clean it")
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    if bare:
        whole = _ids(model, bare + continuation, prepend_bos, name)
        start = len(_ids(model, bare, prepend_bos, name))
    else:
        whole, start = _behind_prefix(model, continuation), 1
    targets = whole[start:]
    if not targets:
        raise ValueError(
            f"{name}: {continuation[:40]!r} has no tokens of its own behind {bare[-40:]!r}; begin it with a "
            "space, or leave it out"
        )
    limit = context_length(model)
    if limit is not None and len(targets) > limit:
        raise ValueError(
            f"{name}: {continuation[:40]!r} has {len(targets)} tokens and the model takes {limit}; leave it "
            "out"
        )
    given = whole[:-1] if limit is None else whole[:-1][-limit:]
    return Asked(tuple(given), tuple(targets), len(given) < len(whole) - 1)


def _ids(model: Any, text: str, prepend_bos: bool | str, name: str) -> list[int]:
    """Token ids with BOS as in `measure`; an EOS that a tokenizer adds would stand amid the text."""
    ids = prompt_from_text(model, text, name, prepend_bos, None).ids.tolist()
    eos = model.tokenizer.eos_token_id
    if eos is not None and ids[-1] == eos:
        plain = list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return ids if plain[-1:] == [eos] else ids[:-1]
    return ids


def _behind_prefix(model: Any, continuation: str) -> list[int]:
    """A continuation of nothing: behind BOS, or EOS where there is none."""
    tokenizer = model.tokenizer
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise ValueError(
            "a context is empty, and the tokenizer has neither BOS nor EOS to stand for it; write a context"
        )
    ids = list(tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"])
    return ids if ids[:1] == [prefix] else [prefix, *ids]


def warn_of_cuts(asked: Sequence[Asked]) -> None:
    """One warning for all contexts that were cut.

    Source: this library.
    """
    cut = sum(one.truncated for one in asked)
    if cut:
        longest = max(len(one.given) for one in asked)
        warnings.warn(
            f"{cut} of {len(asked)} contexts were too long for the {longest} tokens the model takes; they "
            "were cut on the left",
            PromptWarning,
            stacklevel=3,
        )


def read(
    model: HookedModel,
    asked: Sequence[Asked],
    lens: Lens,
    *,
    interventions: Sequence[Intervention] = (),
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods in nats, and whether all tokens were ranked first: two arrays [pair, depth].

    What is given to the model several times runs once: pairs that come twice, and choices of a single token
    behind the same context.

    Raises:
        As `by_depth`.

    Source: this library.
    """
    unique = list(dict.fromkeys(asked))
    given = list(dict.fromkeys(one.given for one in unique))
    places = {row: number for number, row in enumerate(given)}
    of_row: list[list[int]] = [[] for _ in given]  # who asks something of this row
    for number, one in enumerate(unique):
        of_row[places[one.given]].append(number)
    predicting = [torch.cat([unique[number].predicting for number in who]) for who in of_row]
    edits = hooks_of(model, interventions)
    sums, ranked = (np.zeros((len(unique), model.cfg.n_layers + 1)) for _ in range(2))

    def reduce(stream: Float[Tensor, "batch pos d_model"], batch: Batch) -> Tensor:
        """Only the positions that predict something are kept."""
        columns = [predicting[number] for number in batch.numbers]
        rows = torch.repeat_interleave(torch.tensor([len(c) for c in columns]))
        return stream.detach()[rows.to(stream.device), torch.cat(columns).to(stream.device)]

    def score(batch: Batch, streams: list[Tensor]) -> tuple[np.ndarray, dict[str, Tensor]]:
        numbers = [number for row in batch.numbers for number in of_row[row]]
        targets = torch.tensor([token for number in numbers for token in unique[number].targets])
        owner = np.repeat(numbers, [len(unique[number].targets) for number in numbers])
        return owner, token_scores(lens, streams, targets, ("cross_entropy", "accuracy"))

    prompts = [Prompt(torch.tensor(row), None, False, False) for row in given]
    for _, (owner, scores) in by_depth(
        model, prompts, reduce, batch_size=batch_size, edits=edits, then=score, progress=progress
    ):
        np.add.at(sums, owner, -scores["cross_entropy"].double().numpy().T)
        np.add.at(ranked, owner, scores["accuracy"].double().numpy().T)
    back = {one: number for number, one in enumerate(unique)}
    order = [back[one] for one in asked]
    counts = np.array([len(one.targets) for one in unique])
    return sums[order], (ranked == counts[:, None])[order]


def _checked(pairs: Any) -> list[Pair]:
    if isinstance(pairs, str) or not is_iterable(pairs):
        raise TypeError(f"pairs came as {type(pairs).__name__}; pass a list of (context, continuation)")
    found = list(pairs)
    if not found:
        raise ValueError("no pairs were given; pass at least one (context, continuation)")
    for number, pair in enumerate(found):
        whole = isinstance(pair, tuple | list) and len(pair) == 2
        if not whole or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pair {number} is not two texts; pass (context, continuation)")
    return [(context, continuation) for context, continuation in found]
