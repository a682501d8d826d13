"""Does watching a training reach the trackers at the right steps, and leave the training as it was?"""

import math
import warnings

import pytest
import torch
import transformers as hf
from models import bridge, tokenizer
from torch import nn
from torch.utils.data import Dataset

import mcr_lens
from mcr_lens import (
    CannotServeError,
    NonFiniteActivationError,
    TrainingWatchWarning,
    live_metrics,
    measure,
    training_callback,
    training_metrics,
    training_watch,
)

LENGTH, STEPS = 12, 10
NAMES = {
    "mcr/bos_ratio", "mcr/bos_ratio_depth", "mcr/entropy_min", "mcr/entropy_min_depth", "mcr/valley_drop",
    "mcr/sink_rate_max", "mcr/sink_rate_max_layer", "mcr/sink_rate_mean", "mcr/sink_score_mean",
}  # fmt: skip
TEXTS = ["The river runs to the sea.", "A cat sat down on the mat."]


class Rows(Dataset):
    """Random rows of token ids, always the same."""

    def __init__(self, count: int = 64) -> None:
        g = torch.Generator().manual_seed(7)
        self.ids = torch.randint(3, 128, (count, LENGTH), generator=g)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


class Tracker(hf.TrainerCallback):
    """What a tracker is: a callback that stands before ours and keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, dict(logs)))


def gpt2(seed: int = 0) -> hf.GPT2LMHeadModel:
    """With the dropout that it comes with, and in training mode."""
    torch.manual_seed(seed)
    config = hf.GPT2Config(
        n_layer=2, n_head=4, n_embd=32, vocab_size=128, n_positions=32, bos_token_id=0, eos_token_id=1
    )
    return hf.GPT2LMHeadModel(config).train()


def trainer(tmp_path, callbacks, model=None, **options) -> hf.Trainer:
    settings = {
        "output_dir": str(tmp_path), "max_steps": STEPS, "per_device_train_batch_size": 4, "report_to": [],
        "logging_steps": 2, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "seed": 3,
        "learning_rate": 1e-2, "dataloader_pin_memory": False,
    }  # fmt: skip
    args = hf.TrainingArguments(**{**settings, **options})
    return hf.Trainer(gpt2() if model is None else model, args, train_dataset=Rows(), callbacks=callbacks)


def prompts() -> torch.Tensor:
    return Rows(3).ids


def ours(records) -> list[int]:
    """The steps at which our numbers are in a log."""
    return [step for step, logs in records if "mcr/bos_ratio" in logs]


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """These trainings last a second, and measuring takes much of it."""
    monkeypatch.setattr(training_watch, "MAX_SHARE", math.inf)


# -- the Trainer --


def test_numbers_reach_the_tracker_and_the_history_at_their_steps(tmp_path):
    tracker = Tracker()
    made = trainer(tmp_path, [tracker, callback := training_callback(prompts(), every=4)])
    made.train()
    history = [(entry["step"], entry) for entry in made.state.log_history]
    assert ours(tracker.seen) == ours(history) == [0, 4, 8, STEPS]
    for step, logs in tracker.seen:
        if "mcr/bos_ratio" in logs:
            assert set(logs) >= NAMES and all(math.isfinite(logs[name]) for name in NAMES)
            assert ("mcr/share_of_time" in logs) == (step > 0)
    # The losses are where they are without us, also at the steps that are ours too.
    assert [step for step, logs in tracker.seen if "loss" in logs] == [2, 4, 6, 8, 10]
    assert 0 < callback.share_of_time < 1 and callback.seconds > 0
    assert isinstance(callback, hf.TrainerCallback)


def test_the_last_numbers_are_those_of_the_trained_model(tmp_path):
    tracker = Tracker()
    made = trainer(tmp_path, [tracker, training_callback(prompts(), every=100)])
    made.train()
    assert ours(tracker.seen) == [0, STEPS]
    wanted = training_metrics(made.model, prompts())
    last = [logs for _, logs in tracker.seen if "mcr/bos_ratio" in logs][-1]
    assert {name: last[name] for name in NAMES} == {name: wanted[name] for name in NAMES}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"at_start": False}, [4, 8, 10]),
        ({"at_end": False}, [0, 4, 8]),
        ({"at_start": False, "at_end": False}, [4, 8]),
    ],
)
def test_ends_can_be_left_out(tmp_path, options, steps):
    tracker = Tracker()
    trainer(tmp_path, [tracker, training_callback(prompts(), every=4, **options)]).train()
    assert ours(tracker.seen) == steps


def test_each_step_once_with_accumulation_epochs_and_a_last_step_that_is_due_anyway(tmp_path):
    tracker = Tracker()
    made = trainer(
        tmp_path, [tracker, training_callback(prompts(), every=4)], max_steps=-1, num_train_epochs=2,
        gradient_accumulation_steps=4,
    )  # fmt: skip
    made.train()
    assert made.state.global_step == 8 and ours(tracker.seen) == [0, 4, 8]


def test_weights_are_bitwise_those_without_it(tmp_path):
    """Dropout is on: one random number drawn by us, and every weight would differ."""
    weights, losses = [], []
    for callbacks in ([], [training_callback(prompts(), every=3)]):
        made = trainer(tmp_path, callbacks)
        made.train()
        weights.append({name: p.detach().clone() for name, p in made.model.named_parameters()})
        losses.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
        assert made.model.training and not hooks(made.model)
    assert losses[0] == losses[1] and len(losses[0]) == STEPS // 2
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_texts_are_read_with_the_tokenizer_of_the_trainer(tmp_path):
    tracker = Tracker()
    made = trainer(tmp_path, [tracker, training_callback(TEXTS, every=100)])
    with pytest.raises(ValueError, match="has no processing_class, so training_callback cannot read texts"):
        made.train()
    made.processing_class = made.callback_handler.processing_class = tokenizer(bos=True)
    made.train()
    assert ours(tracker.seen) == [0, STEPS]


def test_a_trainer_that_hides_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training_watch, "_calling_trainer", lambda callback: None)
    tracker, callback = Tracker(), training_callback(prompts())
    made = trainer(tmp_path, [tracker, callback])
    with pytest.raises(RuntimeError, match=r"found no Trainer .* call callback.attach\(trainer\) before"):
        made.train()
    assert callback.attach(made) is callback
    made.train()
    assert ours(tracker.seen) == [0, STEPS]
    made.remove_callback(callback)
    made.add_callback(training_callback(prompts(), trainer=made))
    made.train()
    assert ours(tracker.seen) == [0, STEPS, 0, STEPS]


def test_other_processes_and_mixed_precision(tmp_path):
    """Process 1 measures nothing; under autocast the numbers are those of the forward pass in training."""
    tracker = Tracker()
    made = trainer(tmp_path, [tracker, training_callback(prompts())], bf16=True)
    made.train()
    assert ours(tracker.seen) == [0, STEPS]
    made.state.is_world_process_zero = False
    callback = training_callback(prompts(), trainer=made)
    callback._measure(made.state, made.control, made.model)
    assert callback.seconds == 0


def test_a_diverged_training_goes_on_with_a_warning(tmp_path):
    class Diverge(hf.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                model.transformer.wte.weight.data.fill_(torch.nan)

    made = trainer(tmp_path, [Diverge(), training_callback(prompts(), every=99)], logging_strategy="no")
    with pytest.warns(TrainingWatchWarning, match="step 10 was not measured: the residual stream is NaN"):
        made.train()
    assert made.state.global_step == STEPS and made.model.training


def test_a_costly_watch_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training_watch, "MAX_SHARE", 1e-4)
    made = trainer(tmp_path, [training_callback(prompts(), every=5)])
    with pytest.warns(TrainingWatchWarning, match=r"measuring took .* 5 steps ago; pass every=\d+ or fewer"):
        made.train()
    with pytest.warns(TrainingWatchWarning, match="20 prompts run through the model at each measurement; 16"):
        training_callback(Rows(20).ids)


# -- any loop --


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def state(model: nn.Module):
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [m.training for m in model.modules()], gradients, torch.get_rng_state(), hooks(model)


def same(one, other) -> bool:
    gradients = all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for a, b in zip(one[1], other[1], strict=True)
    )
    return one[0] == other[0] and gradients and torch.equal(one[2], other[2]) and one[3] == other[3]


def test_a_plain_loop_finds_everything_as_it_was():
    model = gpt2()
    model.transformer.h[1].eval()  # a frozen part stays in evaluation mode
    model(input_ids=prompts(), labels=prompts()).loss.backward()
    before = state(model)
    found = training_metrics(model, prompts())
    assert same(before, state(model)) and set(found) == NAMES
    assert all(isinstance(value, float) for value in found.values())
    assert training_metrics(model, prompts()) == found


def test_numbers_are_those_of_measure():
    model = gpt2()
    found = training_metrics(model, prompts(), threshold=0.27, prefix="")
    ds = measure(model.eval(), prompts(), progress=False)
    ratio = ds.massive_activation_ratio.mean("prompt")
    assert found["bos_ratio"] == pytest.approx(float(ratio.max()))
    assert found["bos_ratio_depth"] == int(ratio.argmax("depth"))
    valley = mcr_lens.entropy_valley(ds)
    assert (found["entropy_min"], found["entropy_min_depth"]) == (pytest.approx(valley.entropy), valley.depth)
    assert found["valley_drop"] == pytest.approx(valley.drop)
    rate = mcr_lens.sink_rate(ds, 0.27).mean("prompt")
    assert found["sink_rate_max"] == pytest.approx(float(rate.max()))
    assert found["sink_rate_mean"] == pytest.approx(float(rate.mean()))
    assert found["sink_score_mean"] == pytest.approx(float(ds.sink_score.mean()))


def test_texts_wrappers_and_lengths():
    model = gpt2()
    compiled = torch.compile(model, backend="eager")
    assert training_metrics(compiled, prompts()) == training_metrics(model, prompts())
    assert training_metrics(nn.DataParallel(model), prompts()) == training_metrics(model, prompts())
    long = ["A sentence that goes on. " * 9]
    short = training_metrics(model, long, tokenizer=tokenizer(bos=True), max_length=16)
    assert short != training_metrics(model, long, tokenizer=tokenizer(bos=True))  # cut to the context, 32
    assert short == training_metrics(model, [tokenizer(bos=True)("<bos>" + long[0])["input_ids"][:16]])


def test_one_token_has_no_ratio():
    with pytest.warns(mcr_lens.PromptWarning), warnings.catch_warnings():
        warnings.simplefilter("ignore", mcr_lens.ShortPromptWarning)
        found = training_metrics(gpt2(), [[5]])
    assert math.isnan(found["mcr/bos_ratio"]) and math.isnan(found["mcr/bos_ratio_depth"])


def test_an_error_inside_leaves_flags_and_random_numbers(monkeypatch):
    model = gpt2()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.fill_(torch.inf)
    before = state(model)
    with pytest.raises(NonFiniteActivationError, match="NaN or infinite from depth 2 on"):
        training_metrics(model, prompts())
    assert same(before, state(model))

    def broken(*given, **options):
        torch.rand(3)
        raise KeyError("inside")

    monkeypatch.setattr(live_metrics, "measure", broken)
    with pytest.raises(KeyError, match="inside"):
        training_metrics(model, prompts())
    assert same(before, state(model)) and model.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_numbers_of_a_gpu_are_left_alone(monkeypatch):
    model, own = gpt2().cuda(), live_metrics.measure

    def drawing(*given, **options):
        torch.rand(3, device="cuda")
        return own(*given, **options)

    monkeypatch.setattr(live_metrics, "measure", drawing)
    before = torch.cuda.get_rng_state()
    assert set(training_metrics(model, prompts())) == NAMES
    assert torch.equal(before, torch.cuda.get_rng_state())


class FullyShardedDataParallel(nn.Module):
    """By its name what FSDP makes of a block."""


def sharded() -> hf.GPT2LMHeadModel:
    model = gpt2()
    model.transformer.extra = FullyShardedDataParallel()
    return model


def zero3() -> hf.GPT2LMHeadModel:
    model = gpt2()
    model.lm_head.weight.ds_id = 4
    return model


def unserved() -> hf.PreTrainedModel:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 128}
    return hf.GPTNeoForCausalLM(hf.GPTNeoConfig(**sizes, attention_types=[[["global", "local"], 1]]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: training_metrics(nn.Linear(2, 2), prompts()), TypeError, "a Hugging Face model, got Linear"),
        (lambda: training_metrics(bridge("llama"), prompts()), TypeError, "got TransformerBridge; pass what"),
        (lambda: training_metrics(gpt2(), "text"), ValueError, "has no tokenizer, so it cannot read text"),
        (lambda: training_metrics(gpt2(), prompts(), threshold=2), ValueError, "threshold=2: mean attention"),
        (lambda: training_metrics(gpt2(), prompts(), prefix=1), ValueError, "prefix=1: pass a text"),
        (
            lambda: training_metrics(gpt2(), prompts(), position=50),
            ValueError,
            "position=50, but the",
        ),
        (
            lambda: training_metrics(gpt2(), prompts(), max_length=0),
            ValueError,
            "max_length=0: pass a",
        ),
        (lambda: training_metrics(sharded(), prompts()), ValueError, "weights of this model are split over"),
        (lambda: training_metrics(zero3(), prompts()), ValueError, "DeepSpeed ZeRO-3 or tensor parallel"),
        (
            lambda: training_metrics(unserved(), prompts()),
            CannotServeError,
            r"cannot be watched while .* \(GPTNeoForCausalLM computes .* mcr_lens.emergence instead",
        ),
        (lambda: training_callback([]), ValueError, "no prompts were given"),
        (lambda: training_callback(3), TypeError, "prompts must be strings or token ids, got int"),
        (lambda: training_callback(prompts(), every=0), ValueError, "every=0: pass a number of optimiser"),
        (lambda: training_callback(prompts(), every=True), ValueError, "every=True: pass"),
        (lambda: training_callback(prompts(), threshold=-1), ValueError, "threshold=-1: mean attention"),
        (
            lambda: training_callback(prompts(), trainer=3),
            TypeError,
            "a transformers.Trainer, got int",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message) as seen:
        call()
    assert "\n" not in str(seen.value)


def test_a_sharded_model_is_refused_when_training_begins(tmp_path):
    callback = training_callback(prompts(), trainer=trainer(tmp_path, None))
    made = trainer(tmp_path, None)
    callback.attach(made)
    with pytest.raises(ValueError, match="split over processes"):
        callback.on_train_begin(made.args, made.state, made.control, model=zero3())
