"""Does a lens read at the last depth what the model says, and at the others what the last would say?"""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, GENERATION, bridge, hooked_twin, hugging_face, tokenizer
from real_data import real
from test_plots import means

import mcr_lens as mcr
from mcr_lens.prompts import Prompt
from mcr_lens.readouts import lens as lenses
from mcr_lens.readouts import unembedding as heads
from mcr_lens.readouts.lens import Lens, token_scores
from mcr_lens.readouts.ratios import ratio_interval
from mcr_lens.readouts.streams import by_depth
from mcr_lens.readouts.unembedding import CannotReadOutError, unembedding

CAUSAL = [family for family in FAMILIES if family != "bert"]
SERVED = [family for family in CAUSAL if family != "bloom"]
NAMES = list(lenses.SCORES)


def rows(*lengths: int, seed: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 128, (n,), generator=g) for n in lengths]


def own_losses(model, ids: torch.Tensor) -> torch.Tensor:
    """−ln P of every token but the first, by the model's own logits."""
    with torch.no_grad():
        logits = model(ids[None], return_type="logits")[0].double()
    return -logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]


@pytest.mark.parametrize("family", CAUSAL)
def test_the_last_depth_is_the_model(family):
    model = bridge(family)
    given = rows(12, 5, 17)
    ds = mcr.logit_lens(model, given, progress=False)
    losses = torch.cat([own_losses(model, ids) for ids in given])
    assert float(ds.cross_entropy[-1]) == pytest.approx(float(losses.mean()), abs=1e-5)
    assert float(ds.perplexity[-1]) == pytest.approx(float(losses.mean().exp()), rel=1e-5)
    assert float(ds.kl_to_final[-1]) == 0
    assert ds.n_scored.values.tolist() == [11, 4, 16]
    assert (ds.kl_to_final >= 0).all() and (ds["rank"] >= 1).all() and (ds.next_token_entropy > 0).all()
    assert ds.sizes["depth"] == model.cfg.n_layers + 1


@pytest.mark.parametrize("family", CAUSAL)
def test_every_depth_is_read_by_norm_and_unembedding(family, monkeypatch):
    """The modules that are found by a trial read what TransformerLens' own readout reads."""
    model = bridge(family)
    with monkeypatch.context() as patch:
        patch.setattr(heads, "_transformer_lens", lambda: None)
        found = unembedding(model)
    assert found.how.split(", ")[0].endswith(("norm", "ln_f")) and not found.normalised
    stream = 3 * torch.randn(7, model.cfg.d_model)
    with torch.no_grad():
        logits = model.unembed(model.ln_final(stream[None]))[0]
        if family == "gemma2":
            cap = model.original_model.config.final_logit_softcapping
            logits = cap * torch.tanh(logits / cap)
        torch.testing.assert_close(found.log_probs(stream), logits.log_softmax(-1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(unembedding(model).log_probs(stream), found.log_probs(stream))
    if GENERATION >= 4:
        assert unembedding(model).how == "logit_readout of TransformerLens"


@pytest.mark.skipif(GENERATION < 4, reason="TransformerLens 3.9 has no logit lens of its own")
def test_it_is_the_logit_lens_of_transformer_lens():
    from transformer_lens.tools.analysis import logit_lens as theirs

    model, ids = bridge("llama"), rows(14)[0]
    read = theirs(model, ids[None, :-1], positions=None, targets=ids[None, 1:], return_type="log_probs")
    values = read.values[..., 0, :, 0] if read.values.ndim == 4 else read.values.reshape(-1, len(ids) - 1)
    ours = mcr.logit_lens(model, [ids], progress=False)
    np.testing.assert_allclose(ours.cross_entropy, -values.detach().mean(-1), atol=1e-5)


@pytest.mark.parametrize("family", SERVED)
def test_a_served_model_reads_as_the_bridge_does(family):
    given = rows(9, 15)
    ours = mcr.logit_lens(hugging_face(family), given, progress=False)
    theirs = mcr.logit_lens(bridge(family), given, progress=False)
    for name in NAMES:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4, rtol=1e-4)


@pytest.mark.skipif(GENERATION >= 4, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("family", ["gpt2", "llama3", "gemma2"])
def test_a_hooked_transformer_reads_as_the_bridge_does(family):
    given = rows(9, 15)
    ours = mcr.logit_lens(hooked_twin(family), given, progress=False)
    theirs = mcr.logit_lens(bridge(family), given, progress=False)
    for name in NAMES:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4, rtol=1e-4)


def test_scores_are_what_they_are_called():
    """Against float64 written out, over several parts of the tokens."""
    model, ids = bridge("gpt2"), rows(40)[0]
    with torch.no_grad():
        _, cache = model.run_with_cache(ids[None])
        streams = [cache["blocks.0.hook_resid_pre"]]
        streams += [cache[f"blocks.{i}.hook_resid_post"] for i in range(model.cfg.n_layers)]
        logits = [model.unembed(model.ln_final(s))[0, :-1].double() for s in streams]
    said = torch.stack([one.log_softmax(-1) for one in logits])
    right = ids[1:].expand(len(said), -1)[..., None]
    of_right = said.gather(-1, right)
    wanted = {
        "cross_entropy": -of_right[..., 0].mean(-1),
        "next_token_entropy": -(said.exp() * said).sum(-1).mean(-1),
        "kl_to_final": (said[-1].exp() * (said[-1] - said)).sum(-1).mean(-1),
        "rank": 1.0 + (said > of_right).sum(-1).double().mean(-1),
        "accuracy": (said.argmax(-1) == right[..., 0]).double().mean(-1),
    }
    ds = mcr.logit_lens(model, [ids], progress=False)
    for name, values in wanted.items():
        np.testing.assert_allclose(ds[name], values, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(ds[f"window_{name}"][0], values, atol=2e-6)


def test_memory_does_not_hold_all_predictions(monkeypatch):
    """A prediction is never made for more tokens than fit, and the parts are the whole."""
    model, given = bridge("llama"), rows(20, 30, 25)
    whole = mcr.logit_lens(model, given, progress=False)
    seen: list[int] = []
    reader = heads.Unembedding.log_probs
    monkeypatch.setattr(lenses, "LOGITS", 4 * 128 * 7)
    monkeypatch.setattr(
        heads.Unembedding, "log_probs", lambda self, stream: seen.append(len(stream)) or reader(self, stream)
    )
    parts = mcr.logit_lens(model, given, progress=False)
    assert max(n for n in seen if n != heads.TOKENS) == 7  # the trial runs on a few tokens of its own
    xr.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)


def test_batches_and_order_change_nothing():
    model, given = bridge("gpt2"), rows(12, 5, 17, 12)
    whole = mcr.logit_lens(model, given, batch_size=4, progress=False)
    alone = mcr.logit_lens(model, given, batch_size=1, progress=False)
    turned = mcr.logit_lens(model, given[::-1], progress=False)
    for name in NAMES:
        np.testing.assert_allclose(whole[name], alone[name], atol=1e-5)
        np.testing.assert_allclose(whole[name], turned[name], atol=1e-5)
        np.testing.assert_allclose(whole[f"window_{name}"], turned[f"window_{name}"][::-1], atol=1e-5)


def test_an_edit_changes_later_depths_only():
    model, given = bridge("llama"), rows(12, 9)
    clean = mcr.logit_lens(model, given, progress=False)
    cut = mcr.logit_lens(model, given, interventions=[mcr.zero_bos_mlp(1)], progress=False)
    for name in NAMES:
        if name != "kl_to_final":  # the final prediction is another one
            np.testing.assert_array_equal(clean[name][:2], cut[name][:2])
    assert (clean.cross_entropy[2:] != cut.cross_entropy[2:]).all()


def test_one_intervention_needs_no_list():
    model, given, cut = bridge("llama"), rows(8, 9), mcr.zero_bos_mlp(1)
    one = mcr.logit_lens(model, given, interventions=cut, progress=False)
    np.testing.assert_array_equal(
        one.cross_entropy, mcr.logit_lens(model, given, interventions=[cut], progress=False).cross_entropy
    )
    assert "zero_ablation" in one.attrs["interventions"]
    for function in (mcr.logit_lens, mcr.measure):
        with pytest.raises(
            TypeError, match=r"interventions: got a int; pass an intervention such as zero_bos"
        ):
            function(model, given, interventions=3, progress=False)
        function(model, given, interventions=None, progress=False)


def test_logits_are_the_models_own_and_no_hook_stays():
    model, given = bridge("llama"), rows(10)
    before = model(given[0][None])
    mcr.logit_lens(model, given, progress=False)
    assert torch.equal(model(given[0][None]), before)
    assert not any(p.fwd_hooks for p in model.hook_dict.values())
    plain = hugging_face("llama")
    mcr.logit_lens(plain, given, progress=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


def test_what_cannot_be_read_is_said():
    with pytest.raises(CannotReadOutError, match="looks both ways, so no depth of it predicts the next"):
        mcr.logit_lens(bridge("bert"), rows(8), progress=False)
    training = hugging_face("llama").train()
    with pytest.raises(
        ValueError, match=r"training mode, so dropout would be measured; call model\.eval\(\)"
    ):
        mcr.logit_lens(training, rows(8), progress=False)
    with pytest.raises(ValueError, match="window=65: pass a number of tokens"):
        mcr.logit_lens(bridge("llama"), rows(8), window=65, progress=False)


def test_a_model_that_does_more_behind_its_last_block_is_refused():
    odd = hugging_face("llama")
    real = odd.model.forward

    def forward(*args, **kwargs):
        out = real(*args, **kwargs)
        out.last_hidden_state = out.last_hidden_state.roll(1, -1)
        return out

    odd.model.forward = forward
    with pytest.raises(CannotReadOutError, match="in a way that is not known, so a lens would not read"):
        mcr.logit_lens(odd, rows(8), progress=False)


def test_nan_is_an_error():
    model = bridge("llama")
    with torch.no_grad():
        model.blocks[1].mlp.out.weight.fill_(float("nan"))
    with pytest.raises(mcr.NonFiniteActivationError, match="predicts NaN or infinity for a few plain tokens"):
        mcr.logit_lens(model, rows(8), progress=False)
    prompts = [Prompt(ids, None, False, False) for ids in rows(8, 5)]
    with pytest.raises(mcr.NonFiniteActivationError, match="NaN or infinite at depth 2 in prompt 0"):
        list(by_depth(model, prompts, lambda stream, batch: None))


@pytest.mark.parametrize("served", [True, False])
def test_infinite_logits(served):
    """−∞ stands for a token that is never said; +∞ is an error."""
    plain = hugging_face("llama")
    plain.lm_head.bias = torch.nn.Parameter(torch.zeros(128))
    plain.lm_head.bias.data[7] = -torch.inf
    model = mcr.serve(plain) if served else mcr.load_model(plain, verbose=False)
    ids = torch.tensor([5, 9, 20, 11])
    ds = mcr.logit_lens(model, [ids], progress=False)
    assert float(ds.cross_entropy[-1]) == pytest.approx(float(own_losses(model, ids).mean()), abs=1e-5)
    assert np.isfinite(ds.kl_to_final).all() and np.isfinite(ds.next_token_entropy).all()
    plain.lm_head.bias.data[7] = torch.inf
    with pytest.raises(mcr.NonFiniteActivationError, match="predicts NaN or infinity for a few plain tokens"):
        mcr.logit_lens(model, [ids], progress=False)


def test_impossible_tokens_are_no_nan():
    """Logits of −∞ mean a probability of 0, and 0 · −∞ is 0."""
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    lens = Lens(heads.Unembedding(lambda stream: logits.expand(len(stream), -1), "by hand"))
    found = token_scores(lens, [torch.zeros(2, 3)] * 2, torch.tensor([0, 1]))
    np.testing.assert_allclose(found["next_token_entropy"], np.log(2), rtol=1e-6)
    assert (found["kl_to_final"] == 0).all()


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 10**6))
def test_with_equal_counts_the_interval_is_students(units, seed):
    from scipy.stats import t

    values = np.random.default_rng(seed).normal(size=(units, 2))
    mean, low, high = ratio_interval(5 * values, np.full(units, 5.0))
    half = t.ppf(0.975, units - 1) * values.std(0, ddof=1) / np.sqrt(units)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(high - mean, half, rtol=1e-6)
    np.testing.assert_allclose(mean - low, half, rtol=1e-6)


def test_coverage_of_intervals_over_windows_of_different_length():
    """1,000 samples of 20 windows: 95 % intervals of a mean over tokens hold it in 92 to 97 %."""
    g = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        counts = g.integers(5, 60, 20).astype(float)
        sums = (counts * (2 + g.normal(0, 0.5, 20)) + np.sqrt(counts) * g.normal(size=20))[:, None]
        _, low, high = ratio_interval(sums, counts)
        held += bool(low[0] <= 2 <= high[0])
    assert 920 <= held <= 970


def test_coverage_where_neighbours_go_together():
    """Windows of one text whose means are correlated by 0.3: 90 to 96 % of 1,000 samples, and 86 without."""
    g, held, plain = np.random.default_rng(1), 0, 0
    counts = np.full(60, 10.0)
    for _ in range(1000):
        noise = [g.normal()]
        while len(noise) < 60:
            noise.append(0.3 * noise[-1] + np.sqrt(1 - 0.09) * g.normal())
        sums = (counts * np.array(noise))[:, None]
        for follows in (np.zeros(60), None):
            _, low, high = ratio_interval(sums, counts, follows=follows)
            inside = bool(low[0] <= 0 <= high[0])
            held, plain = (held + inside, plain) if follows is not None else (held, plain + inside)
    assert 900 <= held <= 960 and plain <= 880, (held, plain)


def test_windows_of_different_texts_have_nothing_to_do_with_each_other():
    sums, counts = np.random.default_rng(0).normal(size=(8, 2)), np.full(8, 3.0)
    alone = ratio_interval(sums, counts)
    np.testing.assert_array_equal(ratio_interval(sums, counts, follows=np.arange(8)), alone)
    wider = ratio_interval(np.sort(sums, 0), counts, follows=np.zeros(8))
    assert (wider[2] - wider[1] > alone[2] - alone[1]).all()


def test_one_window_has_no_interval_and_the_result_says_what_it_is():
    ds = mcr.logit_lens(bridge("llama"), rows(8), progress=False)
    assert np.isnan(ds.cross_entropy_low).all() and np.isfinite(ds.cross_entropy).all()
    assert ds.attrs["task"] == "next token (logit lens)" and ds.attrs["score"] == "cross_entropy"
    assert ds.cross_entropy.attrs["units"] == "nats/token" and ds.cross_entropy.attrs["better"] == "lower"
    for name in ds.data_vars:
        assert {"units", "long_name", "source", "group"} <= set(ds[name].attrs), name


def test_windows_of_a_long_text_agree_with_the_model_where_context_does():
    """Text that fits is the model's own loss; longer text scores every token once."""
    model = mcr.load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    text = "the quick brown fox " * 20
    ds = mcr.logit_lens(model, text, window=32, stride=8, progress=False)
    ids = torch.tensor([0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    assert int(ds.n_scored.sum()) == len(ids) - 1
    losses = list(own_losses(model, ids[:32]))
    done = 32
    while done < len(ids):
        end = min(done + 8, len(ids))
        seen = torch.cat([ids[:1], ids[max(1, end - 31) : end]])
        losses += list(own_losses(model, seen)[-(end - done) :])
        done = end
    assert float(ds.cross_entropy[-1]) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


@pytest.mark.demo
def test_the_demo_model_by_depth():
    model = mcr.load_model("demo", verbose=False)
    text = "The handler receives the exception, and the rest of the block is not executed."
    ds = mcr.logit_lens(model, text, progress=False)
    with torch.no_grad():
        own = float(model(model.to_tokens(text, prepend_bos=True), return_type="loss"))
    assert float(ds.cross_entropy[-1]) == pytest.approx(own, abs=1e-4)
    assert float(ds.perplexity[-1]) == pytest.approx(np.exp(own), abs=1e-4 * np.exp(own))


def test_a_real_model_on_wikitext():
    model = mcr.load_model(str(real("models/stories260K")), verbose=False)
    text = real("data/wikitext2/valid.txt").read_text()[:4000]
    ds = mcr.logit_lens(model, text, progress=False)
    assert (np.diff(ds.cross_entropy) < 0).all()  # each block brings it nearer to its prediction
    ids = model.tokenizer(text)["input_ids"]
    ids = torch.tensor(ids if ids[0] == model.tokenizer.bos_token_id else [1, *ids])
    first = own_losses(model, ids[: model.cfg.n_ctx])
    assert float(ds.window_cross_entropy[0, -1]) == pytest.approx(float(first.mean()), abs=1e-4)


def test_a_readout_is_saved_and_read(tmp_path):
    ds = mcr.logit_lens(bridge("llama"), rows(8, 9), progress=False)
    xr.testing.assert_identical(mcr.load(mcr.save(ds, tmp_path / "lens.nc")), ds)
    with pytest.raises(mcr.ResultSchemaError, match="is a readout, which has no `prompt` axis"):
        mcr.merge(ds)


def test_readouts_are_drawn():
    ds = mcr.logit_lens(bridge("llama"), rows(8, 9, 10), progress=False)
    fig = mcr.plot_readouts(ds)
    names = ["cross_entropy", "perplexity", "next_token_entropy", "kl_to_final", "rank", "accuracy"]
    for line, name in zip(means(fig), names, strict=True):
        np.testing.assert_allclose(line.y, ds[name])
        np.testing.assert_allclose(
            np.asarray(line.customdata)[:, 1:].T, [ds[f"{name}_low"], ds[f"{name}_high"]]
        )
    assert "next token (logit lens), 3 windows" in fig.layout.title.text
    assert "95 % interval over windows" in [trace.name for trace in fig.data if trace.showlegend]


def test_a_readout_says_what_was_edited():
    model, edit, tok = bridge("llama"), mcr.zero_bos_mlp(1), tokenizer()
    model.tokenizer = tok
    item = mcr.ChoiceItem(("The sky is",) * 2, (" blue", " green"), 0)
    for read, texts in (
        (mcr.logit_lens, ["some text"]),
        (mcr.tuned_lens, ["some more text to learn from"] * 9),
        (mcr.continuation_log_likelihood, [("some", " text")]),
        (mcr.multiple_choice, [item]),
    ):
        options = {"steps": 2, "tokens_per_step": 20} if read is mcr.tuned_lens else {}
        ds = read(model, texts, interventions=[edit], progress=False, **options)
        assert json.loads(ds.attrs["interventions"]) == [edit.describe()]
