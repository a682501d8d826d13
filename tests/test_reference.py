"""Does every metric agree, for every family, with a float64 reference that shares no code with it?

The reference (`tests/reference`) reads a raw Hugging Face model with plain module hooks, one prompt at a time
and without padding, and computes each metric with a few lines of numpy. mcr_lens reads the same weights
behind TransformerLens, prompts of mixed length in one batch.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import FAMILIES, GENERATION, HOOKED, bridge, hooked_twin, hugging_face
from reference.capture import Trace, capture
from reference.expected import expected, visible
from reference.formulas import DEPTH, LAYER, OUTPUT

from mcr_lens import list_metrics, load_model, measure

METRICS = [m for m in list_metrics() if m.function.__module__.startswith("mcr_lens.")]
REFERENCE = {**DEPTH, **LAYER, **OUTPUT}
PLACES = ("top_activation_token", "top_activation_dimension")

WINDOWS = {
    "mistral": [4, 4, 4, 4],
    "gemma2": [4, None, 4, None],
    "gemma3": [4, None, 4, None],
    "gpt_oss": [4, None, 4, None],
}
"""Keys that a query sees in each layer of the tiny models, written down by hand; elsewhere no limit."""

STORIES = [
    folder
    for root in (Path(__file__).parents[1], Path(__file__).parents[2])
    if (folder := root / "shared" / "models" / "stories260K").is_dir()
]

# Relative, and for numbers near zero absolute: an entropy (nats) or a concentration near zero is what is
# left of numbers near one that cancel, so it carries their absolute error, some 1e-7 in float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def rows(*lengths: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return [torch.randint(3, 128, (n,), generator=g) for n in lengths]


PROMPTS = rows(12, 5, 17, 2, 12)


def shape_of_attention(family: str) -> dict:
    """Which keys the queries of a tiny model see."""
    return {"windows": WINDOWS.get(family, [None] * 4), "causal": family != "bert"}


@cache
def raw_traces(family: str, dtype: torch.dtype = torch.float32) -> list[Trace]:
    """What runs through the untouched model, prompt by prompt."""
    model = hugging_face(family, dtype=dtype)
    return [capture(model, family, prompt) for prompt in PROMPTS]


@cache
def raw_values(family: str, position: int = 0) -> list[dict[str, np.ndarray]]:
    return [expected(t, **shape_of_attention(family), position=position) for t in raw_traces(family)]


def agree(ds, values: list[dict[str, np.ndarray]], *, metrics=METRICS) -> None:
    """Every metric, every prompt, every depth, layer and head: integers equal, numbers close."""
    for metric in metrics:
        got, wanted = ds[metric.name].values, np.stack([v[metric.name] for v in values])
        assert got.shape == wanted.shape, metric.name
        assert (got.dtype.kind == "i") == (wanted.dtype.kind == "i"), metric.name
        if got.dtype.kind == "i":
            np.testing.assert_array_equal(got, wanted, err_msg=metric.name)
        else:
            np.testing.assert_allclose(got, wanted, **CLOSE, err_msg=metric.name)


def test_every_metric_has_a_reference():
    """A metric without an independent definition in tests/reference is not finished."""
    assert {m.name for m in METRICS} == set(REFERENCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_agrees_with_itself(family):
    """Captured where it should be: z is attention times values, and the stream is the sum of the writes."""
    for trace in raw_traces(family):
        z = np.einsum("lhij,ljhe->lihe", trace.pattern, trace.value)
        np.testing.assert_allclose(trace.z, z, atol=1e-6)
        written = np.einsum("lihe,lhed->lid", trace.z, trace.output)
        if family not in ("gemma2", "gemma3"):  # norms stand between W_O and the stream
            bias = trace.attention - written
            np.testing.assert_allclose(bias, np.broadcast_to(bias[:, :1], bias.shape), atol=1e-5)
        if family != "bert":
            added = trace.stream[:-1] + trace.attention + trace.mlp
            np.testing.assert_allclose(trace.stream[1:], added, atol=1e-5)
        for layer, window in enumerate(WINDOWS.get(family, [None] * 4)):
            seen = visible(len(trace.tokens), causal=family != "bert", window=window)
            np.testing.assert_array_equal((trace.pattern[layer] > 0).all(0), seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_of_every_family(family):
    """Through the bridge, in float32, prompts of mixed length together."""
    agree(measure(bridge(family), PROMPTS, "all", batch_size=5, progress=False), raw_values(family))


@pytest.mark.skipif(GENERATION >= 4, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("family", HOOKED)
def test_every_metric_through_hooked_transformer(family):
    """The same weights in a HookedTransformer give the same numbers."""
    agree(measure(hooked_twin(family), PROMPTS, "all", batch_size=5, progress=False), raw_values(family))


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gpt_oss", "bert"])
def test_every_metric_at_another_position(family):
    """Another token taken for BOS: other queries see it, other rows are the others."""
    long = [i for i, prompt in enumerate(PROMPTS) if len(prompt) > 3]
    ds = measure(bridge(family), [PROMPTS[i] for i in long], "all", position=3, progress=False)
    traces = [raw_traces(family)[i] for i in long]
    agree(ds, [expected(trace, **shape_of_attention(family), position=3) for trace in traces])


@pytest.mark.parametrize("family", FAMILIES)
def test_against_a_model_that_runs_in_float64(family):
    """Float32 itself costs no more than that: the same weights run in float64 give the same numbers."""
    model = hugging_face(family).double()
    if hasattr(model.config, "num_local_experts"):
        model.set_experts_implementation("eager")  # the fused one has no float64
    values = [expected(capture(model, family, p), **shape_of_attention(family)) for p in PROMPTS[:3]]
    agree(measure(bridge(family), PROMPTS[:3], "all", progress=False), values)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_in_bfloat16(family):
    """Of a bfloat16 model, the metrics are those of its own activations, taken at face value.

    The reference takes them from the raw model, except for Bloom, where TransformerLens adds up attention in
    another order than Hugging Face does, so that the activations themselves differ in their eighth bit: there
    it takes TransformerLens' own cache.
    """
    model = bridge(family, dtype=torch.bfloat16)
    traces = [cached(model, p) for p in PROMPTS] if family == "bloom" else raw_traces(family, torch.bfloat16)
    ds = measure(model, PROMPTS, "all", batch_size=1, progress=False)
    values = [expected(trace, **shape_of_attention(family)) for trace in traces]
    agree(ds, values, metrics=[m for m in METRICS if m.name not in PLACES])
    # With eight bits, many activations are equally large: any of them may be named.
    for prompt, trace in enumerate(traces):
        found = ds.isel(prompt=prompt)
        for depth, x in enumerate(trace.stream):
            at = found.sel(depth=depth)
            places = list(zip(at[PLACES[0]].values, at[PLACES[1]].values, strict=True))
            assert len(set(places)) == 3
            np.testing.assert_array_equal([abs(x[place]) for place in places], at.top_activation)


def cached(model, tokens: torch.Tensor) -> Trace:
    """A trace out of TransformerLens' own cache."""
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens[None])

    def layers(name: str) -> np.ndarray:
        return np.stack([cache[f"blocks.{i}.{name}"][0].double().numpy() for i in range(model.cfg.n_layers)])

    first = cache["blocks.0.hook_resid_pre"].double().numpy()
    return Trace(
        stream=np.concatenate([first, layers("hook_resid_post")]),
        pattern=layers("attn.hook_pattern"),
        attention=layers("hook_attn_out"),
        mlp=layers("hook_mlp_out"),
        value=layers("attn.hook_v"),
        z=layers("attn.hook_z"),
        output=np.stack([block.attn.W_O.detach().double().numpy() for block in model.blocks]),
        logits=logits[0].double().numpy(),
        tokens=tokens.numpy(),
    )


@pytest.mark.parametrize("family", ["gpt2", "llama3", "gemma2"])
def test_a_massive_first_token(family):
    """Where one row is thousands of times the others, the small remainder still agrees."""
    raw, wrapped = hugging_face(family), hugging_face(family)
    prompts = [torch.cat([torch.tensor([0]), p]) for p in PROMPTS]
    for model in (raw, wrapped):
        with torch.no_grad():
            model.get_input_embeddings().weight[0] *= 3000
    values = [expected(capture(raw, family, p), **shape_of_attention(family)) for p in prompts]
    ds = measure(load_model(wrapped, verbose=False), prompts, "all", batch_size=5, progress=False)
    assert (ds.massive_activation_ratio.sel(depth=0) > 500).all()
    assert (ds.matrix_entropy.sel(depth=0) < 1e-3).all()
    agree(ds, values)
    np.testing.assert_allclose(  # and relatively so, small as it is
        ds.matrix_entropy.sel(depth=0), [v["matrix_entropy"][0] for v in values], rtol=1e-5
    )


@pytest.mark.skipif(not STORIES, reason="the pretrained model stories260K is not here")
def test_every_metric_of_a_pretrained_model():
    """A small trained Llama on stories, from its folder: not only random weights agree."""
    raw = transformers.AutoModelForCausalLM.from_pretrained(STORIES[0], attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES[0])
    texts = [
        "Once upon a time, there was a little girl named Lily. She loved to play in the park.",
        "Tom had a red ball.",
        'The dog and the cat were friends. One day the dog said, "Let us go and find the big tree!"',
    ]
    prompts = [torch.tensor([1, *tokenizer(t, add_special_tokens=False).input_ids]) for t in texts]
    values = [expected(capture(raw, "llama2", p), windows=[None] * 5) for p in prompts]
    ds = measure(load_model(STORIES[0], verbose=False), prompts, "all", batch_size=3, progress=False)
    agree(ds, values)
