"""Which tokens are edited: by number, slice, name and token, padded, cached and decoded?"""

import pytest
import torch
from models import GENERATION, bridge, hooked_transformer, hugging_face, tokenizer

from mcr_lens import (
    PatternNotComputedError,
    at_tokens,
    intervene,
    load_model,
    measure,
    zero_ablation,
    zero_bos_mlp,
)


def written(model, tokens, *edits, layer=1) -> torch.Tensor:
    """Norms of what the MLP of a layer writes, [batch, pos], with edits."""
    seen = []
    with torch.no_grad(), intervene(model, *edits):
        hook = ("blocks.1.hook_mlp_out", lambda t, hook=None: seen.append(t.norm(dim=-1)))
        model.run_with_hooks(tokens, fwd_hooks=[hook])
    return seen[0]


def zeroed(model, tokens, positions) -> list[list[int]]:
    """Which positions of each row write nothing."""
    norms = written(model, tokens, zero_ablation("mlp_out", layers=1, positions=positions))
    return [(row == 0).nonzero()[:, 0].tolist() for row in norms]


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        (0, [0]),
        ("bos", [0]),
        ([3, 1, 3], [1, 3]),
        (slice(4, None), [4, 5, 6]),
        (slice(None, 2), [0, 1]),
        (slice(1, 6, 2), [1, 3, 5]),
        (slice(5, 99), [5, 6]),
        ([2, 99], [2]),
        (None, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_positions_by_number(llama, positions, wanted):
    """Numbers, slices and the name "bos"; what a prompt does not have is not edited."""
    assert zeroed(llama, torch.randint(3, 128, (2, 7)), positions) == [wanted, wanted]


def models():
    """A bridge, an encoder and, where there still is one, a HookedTransformer."""
    yield bridge("llama")
    yield bridge("gemma2")
    yield bridge("bloom")
    if GENERATION < 4:
        yield hooked_transformer()


def test_positions_by_token():
    """Wherever the token stands, in every row; a row without it is not edited."""
    tokens = torch.tensor([[7, 9, 7, 5, 11], [9, 5, 5, 5, 7], [4, 4, 4, 4, 4]])
    for model in models():
        assert zeroed(model, tokens, at_tokens(7)) == [[0, 2], [4], []]
        assert zeroed(model, tokens, at_tokens(9, 11)) == [[1, 4], [0], []]
        assert zeroed(model, tokens, at_tokens(100)) == [[], [], []]


def test_tokens_by_text():
    """As the tokenizer spells them; what is no single token is refused with its pieces."""
    model = load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    ids = torch.tensor([model.tokenizer.get_vocab()[c] for c in "a.b."])[None]
    assert zeroed(model, ids, at_tokens(".")) == [[1, 3]]
    with pytest.raises(ValueError, match=r"'ab' is not a token of .*: it falls apart into \['a', 'b'\]"):
        zero_ablation("mlp_out", layers=1, positions=at_tokens("ab")).fwd_hooks(model)
    with pytest.raises(ValueError, match="token id 128 is outside the vocabulary"):
        zero_ablation("mlp_out", layers=1, positions=at_tokens(128)).fwd_hooks(model)
    with pytest.raises(ValueError, match=r"has no tokenizer to look up '\.'; pass its id"):
        zero_ablation("mlp_out", layers=1, positions=at_tokens(".")).fwd_hooks(bridge("llama"))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("eos", "positions='eos': the only name is 'bos'"),
        (slice(-3, None), "a slice counts from 0 and holds at least one position"),
        (slice(3, 3), "a slice counts from 0"),
        (slice(0, 9, -1), "a slice counts from 0"),
        ([], r"positions=\[\]: pass one or more numbers counted from 0"),
        ([-1], r"positions=\[-1\]: pass one or more numbers"),
        (1.5, "positions=1.5: pass one or more numbers"),
        (slice(0.5, None), "a slice counts from 0"),
    ],
)
def test_nonsense_is_refused(positions, message):
    """When the edit is made, before any model is there."""
    with pytest.raises(ValueError, match=message):
        zero_ablation("mlp_out", layers=1, positions=positions)


def test_at_tokens_needs_tokens():
    """No token, an empty one, or something else."""
    for nothing in ((), ("",), (1.5,), (True,)):
        with pytest.raises(ValueError, match="pass one or more token ids, or tokens as the tokenizer spells"):
            at_tokens(*nothing)


def generated(model, tokens, *edits, steps=6) -> list[torch.Tensor]:
    """Norms of what the MLP writes in the prompt and in each decoding step."""
    seen = []
    with (
        torch.no_grad(),
        intervene(model, *edits),
        model.hooks(
            fwd_hooks=[("blocks.1.hook_mlp_out", lambda t, hook=None: seen.append(t.norm(dim=-1)[0]))]
        ),
    ):
        model.generate(tokens, max_new_tokens=steps, do_sample=False, verbose=False, stop_at_eos=False)
    return seen


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_positions_are_absolute_while_decoding(family):
    """With a key-value cache each new token comes alone; sliding layers (window 4) forget, yet count."""
    model = load_model(hugging_face(family), tokenizer=tokenizer(), verbose=False)
    tokens = torch.randint(3, 128, (1, 6), generator=torch.Generator().manual_seed(0))
    for positions, wanted in ((0, {0}), ([3, 8], {3, 8}), (slice(7, 10), {7, 8, 9}), ([10], {10})):
        steps = generated(model, tokens, zero_ablation("mlp_out", layers=1, positions=positions))
        assert [len(step) for step in steps] == [6, 1, 1, 1, 1, 1]
        assert set((torch.cat(steps) == 0).nonzero()[:, 0].tolist()) == wanted


def test_a_second_generation_counts_anew():
    """The same hooks, two prompts one after the other."""
    model = load_model(hugging_face("mistral"), tokenizer=tokenizer(), verbose=False)
    tokens = torch.randint(3, 128, (1, 6), generator=torch.Generator().manual_seed(0))
    edit = zero_ablation("mlp_out", layers=1, positions=8)
    with intervene(model, edit):
        for _ in range(2):
            steps = generated(model, tokens)
            assert (torch.cat(steps) == 0).nonzero()[:, 0].tolist() == [8]


def test_tokens_are_found_while_decoding():
    """A generated token is edited like one of the prompt."""
    model = load_model(hugging_face("llama"), tokenizer=tokenizer(), verbose=False)
    tokens = torch.randint(3, 128, (1, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model.generate(tokens, max_new_tokens=6, do_sample=False, verbose=False, stop_at_eos=False)
    edit = zero_ablation("mlp_out", layers=1, positions=at_tokens(*range(3, 60)))
    with torch.no_grad(), intervene(model, edit):
        out = model.generate(tokens, max_new_tokens=6, do_sample=False, verbose=False, stop_at_eos=False)
    steps = torch.cat(generated(model, tokens, edit))
    wanted = [i for i, t in enumerate(out[0].tolist()[: len(steps)]) if 3 <= t < 60]
    assert (steps == 0).nonzero()[:, 0].tolist() == wanted and any(i >= 6 for i in wanted)


def test_without_the_pattern_nothing_tells_the_place():
    """Under sdpa the pattern is never computed, so the length of the cache cannot be known: refused."""
    model = load_model(hugging_face("opt"), verbose=False)
    model.set_attn_implementation("sdpa")
    with pytest.raises(PatternNotComputedError, match="sdpa"):
        measure(model, [[5, 6, 7]], ["bos_norm"], interventions=[zero_bos_mlp(1)], progress=False)
