"""How are metrics computed during somebody's forward pass, without a trace?

`Observer` holds the callbacks; `observe` installs them for the length of a `with` block. Values are
reduced at the hook, so no attention pattern and no residual stream outlives its layer.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import einops
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mcr_lens.hookpoints import HookDidNotFireError, HookedModel, check_model, check_pattern, is_trying
from mcr_lens.passes import Pass, Statics
from mcr_lens.plan import Plan, make_plan
from mcr_lens.prompts import own_bos
from mcr_lens.provenance import describe
from mcr_lens.results import to_dataset
from mcr_lens.rows import Rows, describe_rows, ids_at, spans_of, texts_of


class NonFiniteActivationError(RuntimeError):
    """The residual stream holds NaN or infinity."""


class ObservationWarning(UserWarning):
    """Something the observer saw was left out of the result, or may not be what it seems."""


class Observer:
    """Callbacks that measure every forward pass they see, and the Dataset they add up to.

    For TransformerLens by hand: `model.run_with_hooks(tokens, fwd_hooks=observer.fwd_hooks)`. What the
    rows hold (token ids, padding) is told with `expect` before a pass; `observe` finds out by itself.

    Raises:
        TypeError: not a TransformerLens model.
        UnknownMetricError, MissingHookPointError, PatternNotComputedError, ValueError: before any run.
    """

    def __init__(
        self,
        model: HookedModel,
        metrics: Any = None,
        *,
        position: int = 0,
        interventions: tuple[Any, ...] = (),
    ) -> None:
        check_model(model)
        self.plan: Plan = make_plan(model, metrics, position=position)
        if self.plan.skipped:
            for name, reason in self.plan.skipped.items():
                warnings.warn(f"{name} is left out: {reason}", ObservationWarning, stacklevel=3)
        if "pattern" in self.plan.hooks:
            check_pattern(model, self.plan.hooks["pattern"])
        self.position = position
        self._model, self._interventions = model, interventions
        self._statics = Statics(model, self.plan.statics, position)
        self._expected: dict[str, Any] = {}
        self._current: Pass | None = None
        self._incomplete: set[str] | None = None
        self._passes: list[tuple[Rows, dict[str, Tensor]]] = []
        self._dropped = {"incomplete": 0, "decoding": 0, "short": 0}
        self._error: Exception | None = None  # found inside a hook, raised outside
        self._release = False
        self._suspected_padding = False

    @property
    def fwd_hooks(self) -> list[tuple[str, Any]]:
        """Pairs (hook name, callback) for `run_with_hooks` or `model.hooks`."""
        return [
            (name, partial(self._callback, read=read, index=index))
            for read, names in self.plan.hooks.items()
            for index, name in enumerate(names)
        ]

    def expect(
        self, tokens: Tensor | None = None, attention_mask: Tensor | None = None, **about: Any
    ) -> None:
        """Say what the next forward pass holds: token ids [batch, pos], and 1 for every real token.

        Raises:
            ValueError: a mask of the wrong shape, or with gaps inside a prompt.
        """
        spans = None if attention_mask is None else spans_of(attention_mask, tokens)
        self.finish()
        self._expected = {"tokens": tokens, "spans": spans, **about}

    def result(self) -> xr.Dataset:
        """Everything seen so far as one Dataset, prompts in the order they came.

        Raises:
            HookDidNotFireError: a hook point was never reached.
            NonFiniteActivationError: NaN or infinity in the residual stream.
            ValueError: nothing was run, or a metric returned the wrong shape.
        """
        self.finish()
        if self._incomplete and not self._passes:
            some = sorted(self._incomplete)
            raise HookDidNotFireError(
                f"{len(some)} hook points were registered and never fired, among them {some[0]!r}: the "
                "forward pass stopped early, or this attention implementation does not compute it"
            )
        self._warn()
        if not self._passes:
            raise ValueError("nothing was measured: run the model inside the `with observe(...)` block")
        rows = Rows.join([rows for rows, _ in self._passes])
        order = sorted(range(len(rows.spans)), key=lambda i: rows.about[i].get("prompt", i))
        values = {
            m.name: torch.cat([v[m.name] for _, v in self._passes])[order].cpu().numpy()
            for m in self.plan.metrics
        }
        tokenizer, rows = getattr(self._model, "tokenizer", None), rows.reordered(order)
        coords = describe_rows(rows, tokenizer, own_bos(tokenizer), self.position)
        places = {m.name: values[m.name] for m in self.plan.metrics if m.units == "token"}
        token_ids = {name: ids_at(rows, positions) for name, positions in places.items()}
        seen = sorted({int(i) for ids in token_ids.values() for i in np.unique(ids)} - {-1})
        vocabulary = dict(zip(seen, texts_of(seen, tokenizer), strict=True))
        attrs = describe(self._model, position=self.position, interventions=self._interventions)
        attrs["batch_size"] = max(len(rows.spans) for rows, _ in self._passes)
        attrs["skipped_metrics"] = ", ".join(sorted(self.plan.skipped))
        return to_dataset(values, self.plan.metrics, coords, attrs, token_ids, vocabulary)

    def finish(self, logits: Tensor | None = None, clean_logits: Tensor | None = None) -> None:
        """Close the current forward pass, handing over its logits (and those without interventions).

        Raises:
            NonFiniteActivationError: NaN or infinity in the residual stream of this or an earlier pass.
            ValueError: a metric returned the wrong shape, or reads logits that were not handed over.
        """
        if self._current is not None and self.plan.steps["pass"]:
            self._current.receive_logits(logits, clean_logits)
        self._finish()
        if self._error is not None:
            raise self._error

    def mark(self) -> tuple[Any, ...]:
        """What has been seen so far, to come back to with `forget_since`."""
        incomplete = None if self._incomplete is None else set(self._incomplete)
        return len(self._passes), dict(self._dropped), incomplete, self._error, self._suspected_padding

    def forget_since(self, mark: tuple[Any, ...]) -> None:
        """Forget every pass since a mark, and one that was broken off; nothing of it is held any more."""
        seen, self._dropped, self._incomplete, self._error, self._suspected_padding = mark
        del self._passes[seen:]
        self._current, self._expected = None, {}
        for layer in range(self._model.cfg.n_layers if self._release else 0):
            _release_pattern(self._model, layer)

    def _callback(self, tensor: Any, hook: Any = None, *, read: str, index: int) -> None:
        if is_trying():
            return
        if self._current is None or (read, index) in self._current.fired:
            self._finish()
            self._begin(tensor)
        current = self._current
        assert current is not None
        current.fired.add((read, index))
        tensor = tensor.detach()
        if read in ("pattern", "attention") and tensor.shape[-1] != tensor.shape[-2]:
            current.problem = "decoding"
        if current.problem is None:
            if read == "value" and tensor.shape[2] != self._model.cfg.n_heads:
                group = self._model.cfg.n_heads // tensor.shape[2]
                tensor = einops.repeat(tensor, "b pos kv d -> b pos (kv group) d", group=group)
            current.receive(read, index, tensor)
        if self._release and read == "resid" and index:
            _release_pattern(self._model, index - 1)

    def _begin(self, tensor: Tensor) -> None:
        expected, self._expected = self._expected, {}
        cached = expected.pop("cached", False)
        rows = Rows.of(tensor.shape[0], tensor.shape[1], **expected)
        self._current = Pass(rows, self.plan, self._statics)
        shortest = min(length for _, length in rows.spans)
        if cached:
            self._current.problem = "decoding"
        elif shortest <= self.position:
            self._current.problem = "short"
            self._error = self._error or ValueError(
                f"position={self.position}, but a prompt has {shortest} tokens; leave it out or choose an "
                "earlier position"
            )
        elif rows.looks_padded(getattr(self._model, "tokenizer", None)):
            self._suspected_padding = True

    def _finish(self) -> None:
        """Turn the pass that has just gone through into values, or note why it cannot be."""
        current, self._current = self._current, None
        if current is None:
            return
        if current.problem is not None:
            self._dropped[current.problem] += 1
            return
        missed = {
            name
            for read, names in self.plan.hooks.items()
            for index, name in enumerate(names)
            if (read, index) not in current.fired
        }
        if missed:
            self._incomplete = missed if self._incomplete is None else self._incomplete & missed
            self._dropped["incomplete"] += 1
            return
        try:
            self._passes.append(self._values(current))
        except (ValueError, NonFiniteActivationError) as error:
            self._error = self._error or error

    def _values(self, current: Pass) -> tuple[Rows, dict[str, Tensor]]:
        """All variables of one complete pass, and what stands in their rows."""
        n_layers = self._model.cfg.n_layers
        counts = {"depth": n_layers + 1, "layer": n_layers, "pass": 1}
        finite = current.values("(finite)", "depth", n_layers + 1)
        rows = current.rows
        if not bool(finite.all()):
            bad = (~finite).any(1).nonzero()[:, 0].tolist()
            depth = int((~finite).any(0).nonzero()[0, 0])
            raise NonFiniteActivationError(
                f"the residual stream is NaN or infinite from depth {depth} on, in "
                f"{len(bad)} of {len(finite)} prompts of a batch (the first: "
                f"{rows.name(bad[0])}); run the model in float32 or bfloat16, or leave those prompts out"
            )
        values = {}
        for m in self.plan.metrics:
            value = current.values(m.name, m.site, counts[m.site])
            if value.ndim != len(m.axes):
                raise ValueError(
                    f"metric {m.name!r} declares the axes {m.axes} and returned an array of shape "
                    f"{tuple(value.shape)}; correct its return annotation or its value"
                )
            values[m.name] = value
            if m.group == "loss":
                self._check_predictions(m.name, value, rows)
        return rows, values

    def _check_predictions(self, name: str, value: Tensor, rows: Rows) -> None:
        """A stream may be finite and its predictions not: NaN in the last norm or the unembedding."""
        told = torch.tensor([length > 1 for _, length in rows.spans])
        bad = (value.isnan().flatten(1).any(1) if value.ndim > 1 else value.isnan()).cpu() & told
        if bool(bad.any()):
            raise NonFiniteActivationError(
                f"{name} is NaN for {rows.name(int(bad.nonzero()[0, 0]))}, although the residual stream is "
                "finite: the last norm or the unembedding holds NaN or infinity; look at their weights"
            )

    def _warn(self) -> None:
        notes = {
            "incomplete": "forward passes did not reach every hook point and were not measured",
            "decoding": "decoding steps with a key-value cache were not measured: only a whole prompt "
            "has whole attention patterns",
        }
        for what, note in notes.items():
            if self._dropped[what]:
                warnings.warn(f"{self._dropped[what]} {note}", ObservationWarning, stacklevel=3)
        if self._suspected_padding:
            warnings.warn(
                "rows end in padding tokens and no attention mask came with them, so padding was "
                "counted as text; pass attention_mask= to the model or to observe()",
                ObservationWarning,
                stacklevel=3,
            )


def _release_pattern(model: Any, layer: int) -> None:
    """Let go of the pattern that joint-QKV bridges keep after the forward pass (O(L H T²))."""
    attention: Any = getattr(model.blocks[layer], "attn", None)
    if getattr(attention, "_pattern", None) is not None:
        attention._pattern = None


@contextmanager
def observe(
    model: HookedModel,
    metrics: Any = None,
    *,
    attention_mask: Tensor | None = None,
    position: int = 0,
) -> Iterator[Observer]:
    """Measure every forward pass inside the block, whoever runs it; the model's outputs do not change.

    Token ids and attention masks are picked up from the calls themselves; `attention_mask` is for
    batches whose mask the model does not get. Decoding steps with a key-value cache are left out.

        with mcr_lens.observe(model, ["bos_norm"]) as watch:
            loss = model("A sentence not measured yet.", return_type="loss")
        ds = watch.result()

    Raises:
        As `Observer`.
    """
    watch = Observer(model, metrics, position=position)
    if getattr(model, "training", False):
        warnings.warn(
            "the model is in training mode: dropout changes what is measured; call model.eval() first "
            "unless that is what you want",
            ObservationWarning,
            stacklevel=3,
        )
    with ExitStack() as stack:
        for module, callback in _input_watchers(model, watch, attention_mask):
            handle = module.register_forward_pre_hook(callback, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(model.hooks(fwd_hooks=watch.fwd_hooks))
        yield watch


def _input_watchers(model: Any, watch: Observer, mask: Tensor | None) -> list[tuple[Any, Any]]:
    """Where token ids and masks pass by: the embedding, and the wrapped model or the first block."""

    def tokens_pass(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = next((a for a in (*args, *kwargs.values()) if torch.is_tensor(a)), None)
        if ids is not None and not ids.is_floating_point() and ids.ndim == 2:
            watch._expected["tokens"] = ids
            if mask is not None and watch._expected.get("spans") is None:
                watch._expected["spans"] = spans_of(mask, ids)

    def mask_passes(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values", kwargs.get("past_kv_cache_entry"))
        watch._expected["cached"] = _cache_length(cache) > 0
        given = kwargs.get("attention_mask")
        if torch.is_tensor(given) and given.ndim == 2 and not watch._expected["cached"]:
            watch._expected["spans"] = spans_of(given, watch._expected.get("tokens"))

    outer = getattr(model, "original_model", None) or model.blocks[0]
    found = [(outer, mask_passes)]
    if isinstance(getattr(model, "embed", None), torch.nn.Module):
        found.append((model.embed, tokens_pass))
    return found


def _cache_length(cache: Any) -> int:
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    keys = getattr(cache, "past_keys", None)
    return 0 if keys is None else int(keys.shape[1])
