"""Models whose answer is known: is it in the weights as it was asked for, and does the library find it?"""

import math
from dataclasses import dataclass

import pytest
import torch
import transformers

from mcr_lens import find_massive, find_sinks, load_model, measure, phenomena, zero_ablation, zero_bos_mlp
from mcr_lens.findings import Phenomena
from mcr_lens.testing.planted import (
    BOS,
    DELIMITER,
    MECHANISMS,
    CommonDirection,
    Massive,
    PlantedModel,
    Sinks,
    plant,
    planted_model,
    planted_prompts,
    truth_of,
)

pytestmark = pytest.mark.once

FAMILIES = ("gpt2", "neox", "llama3")
SEEDS = range(10)
QUICK = ("nothing", "massive", "two_massive")
"""What one family is asked for whenever tests run; `make test-all` asks the others too."""
NAMES = [
    "top_norm", "top_norm_token", "other_norm_median", "matrix_entropy", "frobenius_norm", "top_sink_score",
    "top_sink_token",
]  # fmt: skip
"""What `phenomena` reads."""
FEW = 4
"""A key that fewer other queries see is judged by too few numbers."""


@dataclass(frozen=True)
class Numbers:
    """One prompt through one model, computed here and not by the library."""

    tokens: torch.Tensor
    norms: torch.Tensor  # [depth, pos]
    entropy: torch.Tensor  # [depth], over ln min(T, d)
    top_share: torch.Tensor  # [depth]
    patterns: torch.Tensor  # [layer, head, query, key]

    def times(self, position: int) -> torch.Tensor:
        """Norm of a row over the median of the others, by depth."""
        others = torch.cat([self.norms[:, :position], self.norms[:, position + 1 :]], 1)
        return self.norms[:, position] / others.quantile(0.5, dim=1)

    def score(self, key: int) -> torch.Tensor:
        """Mean attention of the later queries to a key, by layer and head."""
        return self.patterns[:, :, key + 1 :, key].mean(-1)

    def position(self, token: int) -> int:
        return int((self.tokens == token).nonzero()[0])


def numbers(model, tokens: torch.Tensor) -> Numbers:
    body = model.base_model
    blocks = body.h if hasattr(body, "h") else body.layers
    stream: list[torch.Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, given: stream.append(given[0][0])) for b in blocks]
    after = blocks[-1].register_forward_hook(
        lambda _, given, out: stream.append((out[0] if isinstance(out, tuple) else out)[0])
    )
    with torch.no_grad():
        seen = model(input_ids=tokens[None], output_attentions=True, use_cache=False)
    for hook in (*hooks, after):
        hook.remove()
    values = torch.linalg.svdvals(torch.stack(stream).double()).square()
    share = values / values.sum(-1, keepdim=True)
    return Numbers(
        tokens,
        torch.stack([x.norm(dim=-1) for x in stream]),
        -(share * share.clamp_min(1e-300).log()).sum(-1) / math.log(share.shape[-1]),
        share[:, 0],
        torch.cat(list(seen.attentions)),
    )


def library(model, prompts, *interventions):
    return measure(model, prompts, NAMES, progress=False, interventions=interventions)


@dataclass(frozen=True)
class Case:
    seed: int
    planted: PlantedModel
    seen: list[Numbers]
    found: Phenomena
    rows: object
    heads: object


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((m, f), marks=[] if f == "llama3" and m in QUICK else pytest.mark.slow, id=f"{m}-{f}")
        for m in MECHANISMS
        for f in FAMILIES
    ],
)
def cases(request):
    """One mechanism in one family, ten times, each on three prompts of 16 to 48 tokens."""
    made = []
    for seed in SEEDS if request.param[0] != "nothing" else SEEDS[:3]:
        planted = planted_model(*request.param, seed=seed)
        prompts = planted_prompts(3, seed=100 + seed)
        seen = [numbers(planted.model, row) for row in prompts]
        ds = library(load_model(planted.model, verbose=False), prompts)  # wraps in place: last
        made.append(Case(seed, planted, seen, phenomena(ds), find_massive(ds), find_sinks(ds)))
    return made


# --- what was planted is there, and nothing else ------------------------------------------------------


def test_massive_rows_are_as_large_as_asked_and_where_asked(cases):
    for case in cases:
        asked = {p.token: p for p in case.planted.plants if isinstance(p, Massive)}
        for seen in case.seen:
            for token, p in asked.items():
                times, span = seen.times(seen.position(token)), case.planted.truth.massive[token]
                assert abs(times[p.block + 1] / p.ratio - 1) < 0.1, case.seed
                assert times[list(span)].min() > 0.5 * p.ratio, case.seed
                outside = [d for d in range(len(times)) if d not in span]
                assert times[outside].max() < 2, case.seed
            for position, token in enumerate(seen.tokens.tolist()):
                if token not in asked:
                    assert seen.times(position).max() < 2, (case.seed, position)


def test_the_chosen_heads_attend_to_the_token_and_no_other_does(cases):
    for case in cases:
        wanted = case.planted.truth.sinks
        for seen in case.seen:
            several = {(layer, h) for layer, h, a in wanted for _, _, b in wanted
                       if a != b and (layer, h, b) in wanted}  # fmt: skip
            for key, token in enumerate(seen.tokens.tolist()):
                if len(seen.tokens) - 1 - key < FEW:
                    continue
                for layer, by_head in enumerate(seen.score(key).tolist()):
                    for head, score in enumerate(by_head):
                        where = (case.seed, layer, head, key)
                        if (layer, head, token) in wanted:
                            assert score > (0.4 if (layer, head) in several else 0.85), where
                        else:
                            assert score < 0.28, where


def test_entropy_falls_where_planted_and_is_high_elsewhere(cases):
    for case in cases:
        truth = case.planted.truth
        low = {d for span in (*truth.massive.values(), truth.valley_depths) for d in span}
        for seen in case.seen:
            for depth, entropy in enumerate(seen.entropy.tolist()):
                assert entropy < 0.3 if depth in low else entropy > 0.6, (case.seed, depth)


def test_the_common_direction_has_the_share_asked_for(cases):
    for case in cases:
        for p in case.planted.plants:
            if isinstance(p, CommonDirection):
                for seen in case.seen:
                    assert abs(seen.top_share[p.block + 1] - p.share) < 0.02, case.seed


# --- the library finds it -----------------------------------------------------------------------------


def test_each_prompt_has_exactly_the_planted_rows_and_heads(cases):
    for case in cases:
        truth = case.planted.truth
        for prompt in range(len(case.seen)):
            rows = case.rows[case.rows.prompt == prompt]
            spans = {int(r.token): range(r.first_depth, r.last_depth + 1) for r in rows.itertuples()}
            assert spans == truth.massive, (case.seed, prompt)
            heads = case.heads[case.heads.prompt == prompt]
            assert {(r.layer, r.head, int(r.token)) for r in heads.itertuples()} == truth.sinks, case.seed
            assert len(heads) == len(truth.sinks)


def test_mechanisms_are_told_apart(cases):
    answers = {name: answer(truth_of(*plants)) for name, plants in MECHANISMS.items()}
    assert len(set(answers.values())) == len(answers)
    for case in cases:
        given = answers[next(m for m, p in MECHANISMS.items() if p == case.planted.plants)]
        assert said(case.found) == given, case.seed
        if case.found.valley is not None:
            assert case.found.valley.depth in case.planted.truth.valley_depths, case.seed


def answer(truth):
    """What a reader is told: massive tokens and depths, tokens sunk on and layers, the valley's cause."""
    layers = {
        t: tuple(sorted({a for a, _, b in truth.sinks if b == t})) for t in {t for *_, t in truth.sinks}
    }
    massive = {(t, tuple(span)) for t, span in truth.massive.items()}
    return frozenset(massive), frozenset(layers.items()), truth.valley_cause


def said(found: Phenomena):
    massive, sinks = ({(int(p.token), p.sites) for p in places} for places in (found.massive, found.sinks))
    return frozenset(massive), frozenset(sinks), found.valley_cause or "none"


# --- and the cause is the one that was planted --------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


def before_and_after(family, plants, *cuts):
    """What is found in one planted model, and what with each of the cuts."""
    prompts = planted_prompts(3, seed=7)
    model = load_model(plant(family, *plants, seed=3), verbose=False)
    return [library(model, prompts, *cut) for cut in ((), *((c,) for c in cuts))]


def test_cutting_the_write_removes_spike_valley_and_sinks(family):
    cuts = zero_bos_mlp(1), zero_bos_mlp(0)
    before, after, elsewhere = before_and_after(family, MECHANISMS["massive_sinks"], *cuts)
    assert phenomena(before).massive and phenomena(before).sinks and phenomena(before).valley
    assert said(phenomena(after)) == (frozenset(), frozenset(), "none")
    assert float((after.top_norm.isel(top=0) / after.other_norm_median).max()) < 2
    assert float(after.top_sink_score.max()) < 0.3
    assert said(phenomena(elsewhere)) == said(phenomena(before))


def test_identity_sinks_do_not_care_about_the_cut(family):
    before, after = before_and_after(family, MECHANISMS["identity_sinks"], zero_bos_mlp(1))
    assert (
        said(phenomena(after)) == said(phenomena(before)) == answer(truth_of(*MECHANISMS["identity_sinks"]))
    )
    change = abs(after.top_sink_score - before.top_sink_score).isel(top=0, head=[0, 1, 2], layer=[2, 3, 4])
    assert float(change.max()) < 0.02


def test_sinks_beside_a_massive_activation_outlive_it(family):
    """The same picture as massive_sinks; only the cut tells them apart."""
    plants = (Massive(1, removed_by=4), Sinks((2, 3, 4), (0, 1, 2), reads="identity"))
    before, after = before_and_after(family, plants, zero_bos_mlp(1))
    assert said(phenomena(before)) == answer(truth_of(*MECHANISMS["massive_sinks"]))
    assert said(phenomena(after)) == answer(truth_of(*MECHANISMS["identity_sinks"]))


def test_the_delimiter_alone_still_makes_the_valley(family):
    before, after = before_and_after(family, MECHANISMS["two_massive"], zero_bos_mlp(1))
    assert {p.token for p in phenomena(before).massive} == {str(BOS), str(DELIMITER)}
    left = phenomena(after)
    assert {p.token for p in left.massive} == {p.token for p in left.sinks} == {str(DELIMITER)}
    assert left.valley_cause == "massive rows"


def test_the_common_direction_is_every_rows_doing(family):
    cuts = zero_bos_mlp(1), zero_ablation("mlp_out", layers=1, positions=None)
    before, bos, everywhere = before_and_after(family, MECHANISMS["common_direction"], *cuts)
    assert phenomena(before).valley_cause == phenomena(bos).valley_cause == "common direction"
    assert phenomena(everywhere).valley is None


# --- composing, keeping, refusing ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama2", "llama3", "qwen2"])
def test_other_tokens_ratios_and_sizes(name):
    """A row far down the prompt, whose norm depends on what came before, is taken out again all the same."""
    token = 77
    model = plant(
        name, Massive(1, ratio=300.0, removed_by=3, token=token), Sinks((2, 3), (1,), token=token),
        seed=5, layers=5, width=48, heads=4,
    )  # fmt: skip
    for row in planted_prompts(3, seed=2, shortest=30):
        row[row == token] = token + 1
        row[[5, 20]] = token
        seen = numbers(model, row)
        for position in (5, 20):
            assert seen.times(position)[2] == pytest.approx(300, rel=0.1)
            assert seen.times(position)[[0, 1, 4, 5]].max() < 2
        later = seen.patterns[[2, 3], 1, 21:]
        assert (later[..., 5] + later[..., 20]).mean() > 0.85
        assert seen.patterns[[0, 1, 4]][..., 6:, 5].mean() < 0.2


def test_a_massive_row_within_a_common_direction(family):
    """Both make the stream nearly rank one; each has its own depths."""
    plants = (Massive(2, removed_by=4), CommonDirection(1, removed_by=5))
    model = plant(family, *plants, layers=7)
    truth = truth_of(*plants, layers=7)
    assert (truth.valley_cause, truth.valley_depths) == ("both", range(2, 6))
    for row in planted_prompts(3, seed=6):
        seen = numbers(model, row)
        times = seen.times(0)
        assert times[3] == pytest.approx(100, rel=0.1) and times[[0, 1, 2, 5, 6, 7]].max() < 2
        assert seen.entropy[2:6].max() < 0.3 and seen.entropy[[0, 1, 6, 7]].min() > 0.6
        assert seen.top_share[2] == pytest.approx(0.95, abs=0.02)


def test_a_planted_model_is_saved_and_loaded(family, tmp_path):
    planted, prompts = planted_model("two_massive", family, seed=1), planted_prompts(2, seed=4)
    planted.model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        assert torch.equal(planted.model(prompts[0][None]).logits, again(prompts[0][None]).logits)
    found = phenomena(library(load_model(again, verbose=False), prompts))
    assert said(found) == answer(planted.truth)


def test_a_seed_names_the_weights_and_the_global_numbers_stay():
    torch.manual_seed(11)
    first = plant("llama3", Massive(1), seed=1)
    drawn = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(3))
    same, other = plant("llama3", Massive(1), seed=1), plant("llama3", Massive(1), seed=2)
    pairs = list(zip(first.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs if a.dim() > 1)


def test_prompts_begin_with_bos_and_hold_one_delimiter():
    for row in planted_prompts(20, seed=1):
        assert 16 <= len(row) <= 48
        assert row[0] == BOS and (row == BOS).sum() == 1
        assert (row == DELIMITER).sum() == 1 and len(row) // 4 <= (row == DELIMITER).nonzero() < len(row) // 2


@pytest.mark.parametrize(
    "plants, message",
    [
        ([Massive(6)], "blocks run from 0 to 5"),
        ([Massive(2, removed_by=2)], "removed_by comes after block"),
        ([Massive(1, ratio=1.5)], "a ratio below 2 is not massive"),
        ([Massive(1), Massive(2)], "one Massive per token"),
        ([CommonDirection(1, share=1.0)], "share between 0 and 1"),
        ([Sinks((2,), (0,))], "token 0 is not massive in all of these layers"),
        ([Massive(1, removed_by=3), Sinks((3, 4), (0,))], "token 0 is not massive in all of these layers"),
        ([Sinks((2,), (4,), reads="identity")], "heads from 0 to 3"),
        ([Sinks((2,), (0,), reads="identity", attention=1.0)], "attention between 0 and 1"),
        ([Sinks((2,), (0,), token=t, reads="identity") for t in range(5)], "5 Sinks in layer 2"),
        ([Massive(1, token=t) for t in range(8)], "width=64: these plants need 17 directions"),
        ([Massive(1, token=128)], r"tokens \[128\]: pass up to 8 different ones, from 0 to 127"),
        ([Massive(1), CommonDirection(1, removed_by=4)], "taken out where Massive.* is massive"),
    ],
)
def test_plants_that_do_not_fit_are_refused(plants, message):
    with pytest.raises(ValueError, match=message):
        plant("gpt2", *plants)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(KeyError, match="family 'bloom' cannot be planted: pass one of gpt2, neox"):
        plant("bloom")
    with pytest.raises(KeyError, match="unknown mechanism 'sink': pass one of nothing, massive"):
        planted_model("sink", "gpt2")
    with pytest.raises(ValueError, match="heads=3, width=64: pass an even number"):
        plant("gpt2", heads=3)
