"""How do the numbers of a training reach the trackers of transformers' Trainer, every so many steps?"""

import sys
import time
import warnings
import weakref
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from mcr_lens._checks import as_shown
from mcr_lens.live_metrics import LENGTH, check_options, refuse_shards, training_metrics, unwrapped
from mcr_lens.observer import NonFiniteActivationError
from mcr_lens.prompts import items_of

if TYPE_CHECKING:
    from transformers import TrainerCallback

MANY = 16
"""Prompts above which a warning says that fewer would do: each costs a forward pass of the training."""

MAX_SHARE = 0.02
"""Share of the training time above which a warning says so."""


class TrainingWatchWarning(UserWarning):
    """Watching a training costs more than it should, or a measurement was left out."""


def training_callback(
    prompts: Any,
    *,
    every: int = 500,
    tokenizer: Any = None,
    at_start: bool = True,
    at_end: bool = True,
    position: int = 0,
    threshold: float = 0.3,
    max_length: int | None = LENGTH,
    prefix: str = "mcr/",
    trainer: Any = None,
) -> "TrainerCallback":
    """A callback of transformers' `Trainer` that logs `training_metrics` to whatever it reports to.

        Trainer(model, args, ..., callbacks=[mcr_lens.training_callback(prompts)])

    The numbers go through `trainer.log`: to every tracker and, with their step, to
    `trainer.state.log_history`. With them goes `share_of_time`, the seconds spent on measuring over those
    since training began (not at step 0); it is an attribute of the callback too. Training itself is bit for
    bit what it is without. Process 0 alone measures. Where the numbers are not finite any more, the step is
    left out with a warning.

    What it costs in a training run of Trainer is measured by `benchmarks/bench_watch.py`; for a GPT-2 of 4
    layers it is well below 1 % at the default interval.

    Args:
        prompts: texts or token ids, as `training_metrics`.
        every: optimiser steps between two measurements.
        tokenizer: by default the Trainer's `processing_class`.
        at_start: measure before the first step, as step 0.
        at_end: measure after the last step, whatever its number.
        position, threshold, max_length, prefix: as `training_metrics`.
        trainer: the Trainer whose `log` is called; by default the one that calls this callback.
            `callback.attach(trainer)` says it later.

    Warns:
        TrainingWatchWarning: many prompts, measuring took more than 2 % of the time between two measurements,
            or a measurement was left out.

    Raises:
        TypeError, ValueError: what came, what is allowed, what to do. When training begins: no tokenizer for
            texts, or a model whose weights are split over processes (FSDP, DeepSpeed ZeRO-3).
        RuntimeError: when training begins, no Trainer was found.

    Source: this library.
    """
    check_options(threshold, prefix)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every={as_shown(every)}: pass a number of optimiser steps, at least 1")
    items = items_of(prompts)
    if not items:
        raise ValueError("no prompts were given; pass at least one string or row of token ids")
    if len(items) > MANY:
        warnings.warn(
            f"{len(items)} prompts run through the model at each measurement; {MANY} are enough to watch a "
            "training, and measure takes the others afterwards",
            TrainingWatchWarning,
            stacklevel=2,
        )
    options = {
        "position": position, "threshold": threshold, "max_length": max_length, "prefix": prefix,
    }  # fmt: skip
    made = _callback_class()(items, every, tokenizer, (at_start, at_end), options)
    return made if trainer is None else made.attach(trainer)


class TrainingWatch:
    """What `training_callback` returns, apart from being a `TrainerCallback`."""

    def __init__(
        self, prompts: list[Any], every: int, tokenizer: Any, ends: tuple[bool, bool], options: dict[str, Any]
    ) -> None:
        self.every = every
        self.seconds: float = 0.0
        self.share_of_time: float = float("nan")
        self._prompts, self._tokenizer, self._options = prompts, tokenizer, options
        self._at_start, self._at_end = ends
        self._trainer: Any = None
        self._measured: int | None = None
        self._began = self._ended = 0.0

    def attach(self, trainer: Any) -> "TrainingWatch":
        """Say whose `log` is to be called.

        Raises:
            TypeError: not a Trainer.
        """
        if not callable(getattr(trainer, "log", None)):
            raise TypeError(f"attach: expected a transformers.Trainer, got {type(trainer).__name__}")
        self._trainer = weakref.ref(trainer)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **about: Any) -> None:
        """Find the Trainer, and refuse now what could not be measured later."""
        found = _calling_trainer(self)
        if found is not None:
            self.attach(found)
        if self._trainer is None or self._trainer() is None:
            raise RuntimeError(
                "training_callback found no Trainer that calls it, so it cannot log; call "
                "callback.attach(trainer) before trainer.train()"
            )
        refuse_shards(unwrapped(model))
        if self._tokenizer is None:
            given = about.get("processing_class")
            self._tokenizer = getattr(given, "tokenizer", given)  # a processor of several kinds has one
        if self._tokenizer is None and any(isinstance(prompt, str) for prompt in self._prompts):
            raise ValueError(
                "the Trainer has no processing_class, so training_callback cannot read texts; pass "
                "tokenizer= to it, or token ids as prompts"
            )
        self.seconds, self._measured = 0.0, None
        self._began = self._ended = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **about: Any) -> None:
        """Step 0: here, and not when training begins, because every tracker is ready here."""
        if self._at_start and state.global_step == 0 and self._measured is None:
            self._measure(state, control, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **about: Any) -> None:
        """Every so many optimiser steps."""
        if state.global_step % self.every == 0:
            self._measure(state, control, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **about: Any) -> None:
        """The last step: here, and not when training has ended, because trackers close there."""
        if self._at_end and control.should_training_stop and self._measured != state.global_step:
            self._measure(state, control, model)

    def _measure(self, state: Any, control: Any, model: Any) -> None:
        self._measured, before = state.global_step, self._measured
        if not state.is_world_process_zero:
            return
        _wait_for(model)  # or what is still queued on the device would count as measuring
        began = time.perf_counter()
        try:
            values = training_metrics(model, self._prompts, tokenizer=self._tokenizer, **self._options)
        except NonFiniteActivationError as error:
            warnings.warn(
                f"step {state.global_step} was not measured: {error}", TrainingWatchWarning, stacklevel=2
            )
            return
        now = time.perf_counter()
        self.seconds += now - began
        self.share_of_time = self.seconds / (now - self._began)
        if state.global_step:
            values[f"{self._options['prefix']}share_of_time"] = self.share_of_time
        if before is not None and state.global_step - before == self.every:
            self._warn((now - began) / (now - self._ended))
        self._ended = now
        wanted = control.should_log
        self._trainer().log(values)
        control.should_log = wanted  # `log` takes it back, and the loss of this step would be lost

    def _warn(self, share: float) -> None:
        if share > MAX_SHARE:
            warnings.warn(
                f"measuring took {share:.1%} of the time since the last measurement, {self.every} steps ago; "
                f"pass every={self.every * ceil(share / MAX_SHARE)} or fewer prompts to stay below "
                f"{MAX_SHARE:.0%}",
                TrainingWatchWarning,
                stacklevel=3,
            )


@cache
def _callback_class() -> Any:
    """The class is made when it is needed: importing mcr_lens does not import transformers."""
    from transformers import TrainerCallback

    return type("TrainingCallback", (TrainingWatch, TrainerCallback), {"__doc__": TrainingWatch.__doc__})


def _calling_trainer(callback: Any) -> Any:
    """The object, further up in the calls, whose callback handler holds this callback.

    A callback is told everything but who calls it, and `logs` in `on_log` have been to the trackers already.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        handler = getattr(owner, "__dict__", {}).get("callback_handler")
        if any(each is callback for each in getattr(handler, "callbacks", ())):
            return owner
        frame = frame.f_back
    return None


def _wait_for(model: Any) -> None:
    if any(p.device.type == "cuda" for p in model.parameters()):
        torch.cuda.synchronize()
