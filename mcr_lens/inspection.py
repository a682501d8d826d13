"""What does mcr_lens see in this model, before anything is measured?

One forward pass on a few random tokens, with a hook at every place a metric can read: what is there, what
fires, in which shape, which keys the queries really see, and whether what is read adds up to the model.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mcr_lens.hookpoints import (
    READS,
    HookedModel,
    MissingHookPointError,
    PatternNotComputedError,
    WrongWeightsError,
    check_model,
    check_pattern,
    context_length,
    hook_names,
    model_name,
    output_projection,
)
from mcr_lens.liveness import check_edit
from mcr_lens.probing import LayerFacts, Probe, layer_facts
from mcr_lens.prompts import own_bos
from mcr_lens.provenance import processing
from mcr_lens.visibility import is_causal

NEEDED = ("resid", "attn_out", "mlp_out", "value", "pattern", "z")
"""What the default metrics read."""


@dataclass(frozen=True)
class ReadFacts:
    """One kind of tensor in this model."""

    name: str
    hook: str  # TransformerLens' own name of the first of its hook points
    shape: str  # of the probe: "batch=1 pos=16 d_model=32"
    problem: str = ""  # why it cannot be read


@dataclass(frozen=True)
class Inspection:
    """What mcr_lens sees in a model; `print` it.

    >>> seen = mcr.inspect_model(model)
    >>> isinstance(seen, mcr.Inspection), seen.bos
    (True, "'<bos>' (id 0) is prepended to every text")
    """

    model: str
    wrapped: str
    dtype: str
    size: str
    weights: str
    causal: bool
    bos: str
    tokens: int  # length of the probe
    reads: tuple[ReadFacts, ...]
    layers: tuple[LayerFacts, ...]
    edits: Mapping[str, str]  # what a block writes -> "exact", "through a norm", or why not
    caveats: tuple[str, ...]

    @property
    def supported(self) -> bool:
        """Whether every default metric can be measured, on the weights as they are."""
        readable = {read.name for read in self.reads if not read.problem}
        needed = {"attention" if read == "pattern" and "attention" in readable else read for read in NEEDED}
        return needed <= readable and not any(c.startswith("not supported") for c in self.caveats)

    def __str__(self) -> str:
        facts = {
            "model": f"{self.model} ({self.wrapped}, {self.dtype})",
            "size": self.size,
            "weights": self.weights,
            "attention": f"{'causal' if self.causal else 'bidirectional'}, {_windows(self.layers)}",
            "BOS": self.bos,
            "edits": ", ".join(f"{site}: {how}" for site, how in self.edits.items()),
        }
        lines = [f"{name:<10} {fact}" for name, fact in facts.items()]
        lines += ["", f"{'read':<10} {'hook point':<34} shape of {self.tokens} tokens"]
        lines += [f"{r.name:<10} {r.hook or '-':<34} {r.shape or 'see below'}" for r in self.reads]
        lines += ["", f"{'every' if self.supported else 'not every'} default metric can be measured"]
        return "\n".join(lines + [f"- {caveat}" for caveat in self.caveats])


def inspect_model(model: HookedModel) -> Inspection:
    """Find out what mcr_lens can read in a model, and what to know before believing it.

    Runs random tokens (a few more than the shortest attention window, at most 1,032) and, for each layer,
    four passes of two tokens that try out edits. Nothing is changed, and observers look away. What would be
    an error in `measure` is a sentence here.

    Raises:
        TypeError: not a TransformerLens model.

    Source: this library.
    """
    problems: list[str] = []
    try:
        check_model(model)
    except WrongWeightsError as error:
        problems.append(f"not supported because {error}")
    names, missing = _find_hooks(model)
    probe = Probe(model, names)
    failure = probe.run()
    if failure:
        problems.append(f"not supported because the forward pass fails under hooks: {failure}")
    reads = tuple(_read_facts(read, names, missing, probe) for read in reads_of(model))
    layers = () if failure else tuple(layer_facts(model, probe, i) for i in range(model.cfg.n_layers))
    edits = {} if failure else {site: _edit(model, site) for site in ("mlp_out", "attn_out")}
    cfg = model.cfg
    grouped = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    return Inspection(
        model=model_name(model),
        wrapped=f"{type(model).__name__}, TransformerLens {version('transformer-lens')}",
        dtype=str(probe.dtype or getattr(cfg, "dtype", "unknown")).removeprefix("torch."),
        size=f"{cfg.n_layers} layers, {cfg.n_heads} heads ({grouped} key-value), width {cfg.d_model}, "
        f"context {context_length(model) or 'unknown'}",
        weights=processing(model),
        causal=is_causal(model),
        bos=_bos(model),
        tokens=probe.length,
        reads=reads,
        layers=layers,
        edits=edits,
        caveats=(*problems, *_caveats(model, reads, layers, edits, probe.length)),
    )


def reads_of(model: Any) -> list[str]:
    """What can be asked of a model: its patterns, or of one as it is served the queries and keys instead."""
    other = "pattern" if hasattr(model, "lacks") else "attention"
    return [read for read in READS if read != other]


def _find_hooks(model: HookedModel) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The hook points of every read, and why those that are missing are."""
    names: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for read in reads_of(model):
        try:
            names[read] = hook_names(model, read)
            if read == "pattern":
                check_pattern(model, names[read])
        except (MissingHookPointError, PatternNotComputedError) as error:
            names.pop(read, None)
            missing[read] = f"not supported because {error}"
    return names, missing


def _read_facts(
    read: str, names: Mapping[str, Sequence[str]], missing: Mapping[str, str], probe: Probe
) -> ReadFacts:
    if read in missing:
        return ReadFacts(read, "", "", missing[read])
    hook, wanted = names[read][0], READS[read].dims.split()
    fired = sum((read, index) in probe.last for index in range(len(names[read])))
    shape = probe.shapes.get(read, ())
    if shape and len(shape) != len(wanted):
        return ReadFacts(
            read, hook, "", f"not supported because its shape is {shape}, not [{', '.join(wanted)}]"
        )
    if fired < len(names[read]):
        return ReadFacts(
            read, hook, "", f"not supported because it fires in {fired} of {len(names[read])} places"
        )
    return ReadFacts(read, hook, " ".join(f"{axis}={size}" for axis, size in zip(wanted, shape, strict=True)))


def _edit(model: HookedModel, site: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check_edit(model, site, range(model.cfg.n_layers))
    except (ValueError, RuntimeError) as error:
        return f"not supported because {error}"


def _bos(model: HookedModel) -> str:
    """What will stand at position 0 of a text prompt."""
    tokenizer: Any = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return "no tokenizer: prompts are token ids, taken as they are"
    own = own_bos(tokenizer)
    if own is None:
        begins = tokenizer("a")["input_ids"][0] == getattr(tokenizer, "cls_token_id", None)
        first = repr(tokenizer.cls_token) if begins else "the first token"
        return f"the tokenizer has none of its own: position 0 is {first}"
    alone = (
        "" if getattr(model.cfg, "default_prepend_bos", True) else ", which TransformerLens alone leaves out"
    )
    return f"{tokenizer.convert_ids_to_tokens(own)!r} (id {own}) is prepended to every text{alone}"


def _caveats(
    model: Any,
    reads: Iterable[ReadFacts],
    layers: Sequence[LayerFacts],
    edits: Mapping[str, str],
    length: int,
) -> list[str]:
    """What to know before believing the numbers, one sentence each."""
    found = [f"{read.name}: {read.problem}" for read in reads if read.problem]
    if processing(model).startswith("processed"):
        found.append("weights were processed: norms and entropies are not the trained model's")
    if getattr(model, "training", False):
        found.append("the model is in training mode: dropout would be measured; call model.eval() first")
    if not is_causal(model):
        found.append("every token sees every token: there is no first token that all others must see")
    found += [
        f"not supported in layer {at.layer}: {at.mask_problem}, so means over the queries that see a key are "
        "wrong there"
        for at in layers
        if at.mask_problem
    ]
    if any(at.window for at in layers):
        found.append(
            f"{_windows(layers)}: later queries do not see BOS there, and sink scores are means over those "
            "that do"
        )
        far = [at.layer for at in layers if (at.window or 0) >= length]
        if far:
            found.append(f"the windows of {_spell(far)} are as configured, not checked on {length} tokens")
    lost = [at for at in layers if at.row_sum[0] < 1 - 0.02]  # more than half precision rounds away
    if lost:
        least, most = min(at.row_sum[0] for at in lost), max(at.row_sum[1] for at in lost)
        found.append(
            f"attention rows of {_spell([at.layer for at in lost])} sum to less than 1 (here {least:.2f} to "
            f"{most:.2f}): a learned sink logit takes the rest (`row_mass`)"
        )
    bent = [at.layer for at in layers if not at.adds_up]
    if bent:
        found.append(f"in {_spell(bent)} the stream is not the sum of what attention and MLP write")
    wrong = [at.layer for at in layers if not at.mid_adds_up]
    if wrong:
        found.append(f"in {_spell(wrong)} resid_mid is not the stream with what attention writes")
    loose = [at.layer for at in layers if not at.heads_add_up]
    if loose:
        found.append(
            f"not supported in {_spell(loose)}: attention times values is not what the heads put out, so "
            "value_drain and sink_output_share are wrong there"
        )
    if "through a norm" in edits.values():
        found.append("edits go through a norm: the stream changes by something else than the edited vector")
    found += [f"edits of {site}: {how}" for site, how in edits.items() if how.startswith("not supported")]
    if output_projection(model, 0) is None:
        found.append("W_O is not at hand as [head, d_head, d_model]: sink_output_share is left out")
    return found


def _windows(layers: Sequence[LayerFacts]) -> str:
    """The windows of all layers in words."""
    sizes = sorted({at.window for at in layers if at.window})
    parts = [f"{size} keys in {_spell([a.layer for a in layers if a.window == size])}" for size in sizes]
    return "a window of " + ", ".join(parts) if parts else "no window"


def _spell(numbers: Sequence[int]) -> str:
    """`layer 3`, `layers 0, 2`, `layers 0-31`."""
    ranges: list[list[int]] = []
    for n in numbers:
        if ranges and n == ranges[-1][1] + 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    spelled = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return f"layer{'s' if len(numbers) > 1 else ''} {spelled}"
