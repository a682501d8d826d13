"""Does the paper's claim hold in this model? Every experiment it takes, and a verdict on each part."""

import json
import random
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr

from mcr_lens._checks import as_shown, check_seed
from mcr_lens.ablations import zero_ablation
from mcr_lens.claims import Claim
from mcr_lens.comparison import compare
from mcr_lens.conclusion import conclude
from mcr_lens.controls import induction, matched_controls
from mcr_lens.culprit import norm_sources
from mcr_lens.evidence import Findings
from mcr_lens.findings import Phenomena, Place, phenomena
from mcr_lens.hookpoints import HookDidNotFireError, HookedModel, MissingHookPointError
from mcr_lens.interventions import Intervention
from mcr_lens.judging import check_cut_offs, judge
from mcr_lens.liveness import SwallowedEditError
from mcr_lens.measurement import PromptWarning, measure
from mcr_lens.minimal import minimal_ablation
from mcr_lens.neurons import writing_neurons
from mcr_lens.nulls import other_positions
from mcr_lens.observer import ObservationWarning
from mcr_lens.phases import detect_phases
from mcr_lens.positions import at_tokens
from mcr_lens.prompts import items_of
from mcr_lens.reading import subject
from mcr_lens.results import vocabulary_of
from mcr_lens.served import hooked
from mcr_lens.summaries import ShortPromptWarning

READ = (
    "massive_activation_ratio", "matrix_entropy", "sink_score", "sink_queries", "top_norm", "top_norm_token",
    "other_norm_median",
)  # fmt: skip
"""What the experiments are read by."""

NOT_EDITABLE = (SwallowedEditError, MissingHookPointError, HookDidNotFireError)


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a model, claim by claim, with everything it rests on.

    `findings` holds the measurements: `findings.clean` is a result as `measure` gives it,
    `findings.experiments` one of `compare` with the cut and its controls. `rejudge` applies other cut-offs to
    the same numbers.
    """

    claims: tuple[Claim, ...]
    findings: Findings = field(repr=False, compare=False)
    cut_offs: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Claim:
        """One claim by its name.

        Raises:
            KeyError: which claims there are.
        """
        for claim in self.claims:
            if claim.name == name:
                return claim
        raise KeyError(f"no claim {as_shown(name)}; there are {', '.join(c.name for c in self.claims)}")

    @property
    def summary(self) -> str:
        """What the verdicts say, taken together."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortPromptWarning)
            seen = phenomena(self.findings.clean, **self.cut_offs)
        return conclude({claim.name: claim for claim in self.claims}, self.findings.clean, seen)

    def rejudge(self, *, ratio: float = 10.0, threshold: float = 0.3, valley: float = 0.2) -> "Diagnosis":
        """The same measurements with other cut-offs (see `judge`); no model is needed."""
        cut_offs = {"ratio": ratio, "threshold": threshold, "valley": valley}
        return Diagnosis(tuple(_judged(self.findings, cut_offs)), self.findings, cut_offs)

    def to_json(self) -> dict[str, Any]:
        """Claims, summary, cut-offs and provenance as JSON values."""
        clean = self.findings.clean
        about = {
            k: clean.attrs[k] for k in ("model", "revision", "dtype", "processing", "position", "created")
        }
        return {
            **about,
            "n_prompts": clean.sizes["prompt"],
            "cut_offs": self.cut_offs,
            "summary": self.summary,
            "claims": [claim.to_json() for claim in self.claims],
        }

    def __str__(self) -> str:
        """Summary and claims as text."""
        width = max(len(c.verdict) for c in self.claims)
        lines = [self.summary]
        for c in self.claims:
            lines += [f"{c.verdict:<{width}}  {c.statement}", f"{'':<{width}}  {c.evidence}"]
        return "\n".join(lines)


def diagnose(
    model: Any,
    prompts: Any,
    *,
    ratio: float = 10.0,
    threshold: float = 0.3,
    valley: float = 0.2,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    max_length: int | None = None,
    prepend_bos: bool | Literal["auto"] = "auto",
    position: int = 0,
    tokenizer: Any = None,
    progress: bool = True,
) -> Diagnosis:
    """Ask a model for every part of the paper's claim: what is there, what makes what, what it costs.

    Measures the prompts; finds the minimal set of MLPs whose write at BOS must be cut for the massive
    activation to be gone; measures again with that cut, with matched controls, and with the write moved to
    another token; judges each claim by its effect and its 95 % interval over prompts. With one prompt nothing
    can be told; a dozen are a start.

    Args:
        ratio, threshold, valley: cut-offs, see `judge`; `Diagnosis.rejudge` changes them afterwards.
        seed: of the controls' draws.
        batch_size, max_length, prepend_bos, position, tokenizer, progress: as `measure`.

    A prompt that comes twice counts once: what is no new prompt narrows no interval.

    Raises:
        ValueError: a cut-off out of range; as `measure`.
        As `measure`.

    Source: arXiv 2510.06477; controls, intervals and verdicts: this library.
    """
    options = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": progress}
    options |= {"max_length": max_length, "position": position}
    cut_offs = {"ratio": ratio, "threshold": threshold, "valley": valley}
    check_cut_offs(**cut_offs)
    check_seed(seed)
    model = hooked(model, tokenizer)
    prompts = items_of(prompts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* come more than once", PromptWarning)  # they do not count here
        clean = measure(model, prompts, **options)
    different = sorted(np.unique(clean.prompt_hash.values, return_index=True)[1].tolist())
    if len(different) < clean.sizes["prompt"]:
        clean, prompts = clean.isel(prompt=different), [prompts[i] for i in different]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortPromptWarning)  # the claim on sinks says it
        seen = phenomena(clean, ratio=ratio, threshold=threshold, valley=valley)
        # What is wrong with the prompts, or cannot be read, was said when they were measured first.
        warnings.simplefilter("ignore", PromptWarning)
        warnings.simplefilter("ignore", ObservationWarning)
        findings = _Experiments(model, prompts, clean, seen, ratio, seed, options).run()
    return Diagnosis(tuple(_judged(findings, cut_offs)), findings, cut_offs)


def _judged(findings: Findings, cut_offs: dict[str, float]) -> list[Claim]:
    return judge(findings, **cut_offs)


class _Experiments:
    """What is run for one diagnosis, and why something was not."""

    def __init__(
        self, model: HookedModel, prompts: Any, clean: xr.Dataset, seen: Phenomena, ratio: float, seed: int,
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.clean, self.seen = model, prompts, clean, seen
        self.ratio, self.seed, self.options = ratio, seed, options
        self.position = int(options["position"])
        self.why_not: dict[str, str] = {}

    def run(self) -> Findings:
        phases = self._tried("phases", ValueError, lambda: detect_phases(self.clean))
        mlp_share = neurons = removal = experiments = moved = None
        null = self._tried("null", ValueError, self._null)
        if any(p.position == self.position for p in self.seen.massive):
            unreadable = (ValueError, *NOT_EDITABLE)
            mlp_share = self._tried("mlp_share", unreadable, self._mlp_share)
            if mlp_share is not None and mlp_share.sizes["layer"]:
                neurons = self._tried("neurons", unreadable, lambda: self._neurons(mlp_share))
            removal = self._tried("experiments", (ValueError, *NOT_EDITABLE), self._removal)
        else:
            name = subject(self.clean)
            self.why_not["experiments"] = (
                f"no row at {name} reached a ratio of {self.ratio:g}: nothing was cut"
            )
        layers = removal.layers if removal is not None and removal.removed else ()
        if removal is not None and not removal.removed:
            self.why_not["experiments"] = f"no set of MLPs removes it: it {removal}"
        rows = self._all_rows(layers)
        self.why_not["rows"] = "the other massive rows are not written by an MLP, so they cannot be cut"
        if layers or rows:
            experiments = self._tried("experiments", NOT_EDITABLE, lambda: self._compare(layers, rows))
        moved_to = self._target()
        if len(layers) == 1 and moved_to is not None and experiments is not None:
            moved = self._tried("moved", NOT_EDITABLE, lambda: self._moved(layers[0], moved_to))
        else:
            self.why_not["moved"] = (
                "prompts are too short to move it"
                if moved_to is None
                else "several blocks write it, so there is no single write to move"
                if len(layers) > 1
                else self.why_not.get("experiments", "nothing was cut")
            )
        return Findings(
            clean=self.clean,
            phases=phases,
            cut_layers=layers,
            null=null,
            mlp_share=mlp_share,
            neurons=neurons,
            experiments=experiments,
            moved=moved,
            moved_to=moved_to if moved is not None else None,
            why_not=self.why_not,
        )

    def _tried(self, what: str, errors: Any, run: Any) -> Any:
        """What an experiment gives, or a note of why the model does not allow it."""
        try:
            return run()
        except errors as error:
            self.why_not[what] = str(error)
            return None

    def _mlp_share(self) -> xr.DataArray:
        return norm_sources(self.model, self.prompts, **self.options).write_share.sel(part="mlp")

    def _neurons(self, mlp_share: xr.DataArray) -> xr.Dataset:
        layer = int(mlp_share.mean("prompt").argmax("layer"))
        return writing_neurons(self.model, self.prompts, layer, top=1, **self.options)

    def _null(self) -> xr.Dataset:
        options = {k: v for k, v in self.options.items() if k != "batch_size"}
        ratio = ["massive_activation_ratio"]
        return other_positions(self.model, self.prompts, ratio, count=4, seed=self.seed, **options)

    def _removal(self) -> Any:
        return minimal_ablation(self.model, self.prompts, ratio=self.ratio, **self.options)

    def _all_rows(self, layers: tuple[int, ...]) -> list[Intervention]:
        """The writes at every massive token, where there are others than BOS."""
        others = [p for p in self.seen.massive if p.position != self.position and p.sites[0] > 0]
        if not others:
            return []
        ids = {text: i for i, text in vocabulary_of(self.clean).items()}
        cuts = [zero_ablation("mlp_out", layers=layers, positions=self.position)] if layers else []
        for place in others:
            where = self._where(place, ids)
            if where is not None:
                cuts.append(zero_ablation("mlp_out", layers=place.sites[0] - 1, positions=where))
        return cuts

    def _where(self, place: Place, ids: dict[str, int]) -> Any:
        if place.position is not None:
            return place.position
        return at_tokens(ids[place.token]) if place.token in ids else None

    def _compare(self, layers: tuple[int, ...], rows: list[Intervention]) -> xr.Dataset:
        conditions: dict[str, Any] = {"clean": []}
        if layers:
            cut = zero_ablation("mlp_out", layers=layers, positions=self.position)
            conditions |= {"cut": [cut], **matched_controls(cut, self.clean, seed=self.seed)}
        if rows:
            conditions["all rows cut"] = rows
        return compare(self.model, self.prompts, conditions, READ, **self.options)

    def _target(self) -> int | None:
        """Another token that every prompt has, with room for queries behind it."""
        shortest = int(self.clean.n_tokens.min())
        free = [p for p in range(1, shortest // 2) if p != self.position]
        return random.Random(int(self.seed)).choice(free) if free else None

    def _moved(self, layer: int, target: int) -> xr.Dataset:
        tell = {k: self.options[k] for k in ("prepend_bos", "batch_size")}
        conditions = induction(
            self.model, self.prompts, layer=layer, positions=target, source=self.position, **tell
        )
        del conditions["added"]
        options = {**self.options, "position": target}
        return compare(self.model, self.prompts, conditions, READ, **options)


def to_json_text(diagnosis: Diagnosis) -> str:
    """The diagnosis as a JSON document."""
    return json.dumps(diagnosis.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
