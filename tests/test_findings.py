"""Whose token is it: are massive rows, sinks and valleys found where they are, and only there?"""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from handmade import HEADS, LAYERS, result
from models import bridge, tokenizer

from mcr_lens import (
    ResultSchemaError,
    ShortPromptWarning,
    entropy_valley,
    find_massive,
    find_sinks,
    measure,
    merge,
    observe,
    phenomena,
)
from mcr_lens.reading import reading

NEEDED = (
    "top_norm", "top_norm_token", "other_norm_median", "frobenius_norm", "matrix_entropy", "top_sink_score",
    "top_sink_token", "sink_queries",
)  # fmt: skip
DEPTHS = LAYERS + 1
LN = np.log(16)


def quiet(**changes) -> xr.Dataset:
    """Two prompts of 40 and 30 tokens in which nothing stands out, and what is changed in them."""
    values = {
        "top_norm": np.broadcast_to([1.3, 1.2, 1.1], (2, DEPTHS, 3)),
        "top_norm_token": np.broadcast_to([7, 8, 9], (2, DEPTHS, 3)),
        "other_norm_median": np.ones((2, DEPTHS)),
        "frobenius_norm": np.full((2, DEPTHS), np.sqrt(35.0)),
        "matrix_entropy": np.full((2, DEPTHS), 0.8 * LN),
        "top_sink_score": np.full((2, LAYERS, HEADS, 3), 0.1),
        "top_sink_token": np.broadcast_to([0, 1, 2], (2, LAYERS, HEADS, 3)),
        "sink_queries": np.full((2, LAYERS), 30),
    }
    ds = result(values, n_tokens=(40, 30))
    for name, edit in changes.items():
        array = ds[name].values.copy()
        edit(array)
        ds[name] = (ds[name].dims, array, ds[name].attrs)
    return ds


def put(*index):
    """An edit: the last argument is written at the others."""

    def edit(array: np.ndarray) -> None:
        array[index[:-1]] = index[-1]

    return edit


def test_nothing_is_found_where_nothing_is():
    """No rows, no sinks, no valley."""
    ds = quiet()
    assert find_massive(ds).empty and find_sinks(ds).empty
    found = phenomena(ds)
    assert (found.massive, found.sinks, found.valley, found.valley_cause) == ((), (), None, None)
    assert list(find_massive(ds)) == [
        "prompt", "position", "token", "first_depth", "last_depth", "peak_depth", "ratio",
    ]  # fmt: skip
    assert list(find_sinks(ds)) == ["prompt", "layer", "head", "position", "token", "score"]


def test_a_massive_row_with_its_depths():
    """Position 7 of prompt 1 is massive at depths 1 and 2, most at 2."""
    ds = quiet(top_norm=lambda a: a.__setitem__((1, slice(1, 3), 0), [12.0, 50.0]))
    (line,) = find_massive(ds).to_dict("records")
    assert line == {
        "prompt": 1, "position": 7, "token": "", "first_depth": 1, "last_depth": 2, "peak_depth": 2,
        "ratio": 50.0,
    }  # fmt: skip
    assert find_massive(ds, ratio=60.0).empty
    assert find_massive(ds, ratio=20.0).first_depth.tolist() == [2]


def test_the_ratio_is_to_the_median_of_the_others():
    """A row of 12 among rows of 2 is six times as long."""
    ds = quiet(top_norm=put(0, 1, 0, 12.0), other_norm_median=put(0, 1, 2.0))
    assert find_massive(ds, ratio=5.0).ratio.tolist() == [6.0]


def test_sinks_by_head():
    """Each head and key on a line of its own; a key counts from the threshold on."""
    ds = quiet(top_sink_score=put(0, 2, 1, slice(0, 2), [0.6, 0.3]), top_sink_token=put(0, 2, 1, 1, 5))
    lines = find_sinks(ds).to_dict("records")
    assert [(x["prompt"], x["layer"], x["head"], x["position"], x["score"]) for x in lines] == [
        (0, 2, 1, 0, 0.6), (0, 2, 1, 5, 0.3),
    ]  # fmt: skip
    assert len(find_sinks(ds, threshold=0.31)) == 1


def test_places_need_half_of_the_prompts():
    """In one prompt of two a place counts, in one of three it does not."""
    one = quiet(top_norm=put(0, 1, 0, 50.0))
    (place,) = phenomena(one).massive
    assert (place.position, place.sites, place.strength, place.share) == (7, (1,), 50.0, 0.5)
    other = quiet().isel(prompt=[0])
    other["prompt_hash"] = other.prompt_hash + "'"
    assert phenomena(merge(one, other)).massive == ()


def test_a_token_that_stands_elsewhere_in_every_prompt():
    """Found by its spelling when no position holds it in half of the prompts."""
    ds = xr.concat([quiet(top_norm=put(slice(None), 1, 0, 50.0)).isel(prompt=[0])] * 3, "prompt")
    ds = ds.assign_coords(prompt=range(3))
    ds["top_norm_token"][:, 1, 0] = [3, 5, 9]
    ds["top_norm_token_id"] = xr.where(ds.top_norm > 10, 6, -1)
    ds = ds.assign_coords(token_id=[6], token_text=("token_id", [";"]))
    (place,) = phenomena(ds).massive
    assert (place.position, place.token, place.share) == (None, ";", 1.0)
    assert "';' (wherever it stands)" in " ".join(reading(ds))


def valley_of_rows(share: float) -> xr.Dataset:
    """At depth 2 one row holds this share of the energy; the rest has entropy 0.8 ln 16."""
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share) + (1 - share) * 0.8 * LN
    norm = np.sqrt(share / (1 - share) * 34)
    return quiet(
        matrix_entropy=put(slice(None), 2, entropy), top_norm=put(slice(None), 2, 0, norm),
        frobenius_norm=put(slice(None), 2, np.sqrt(34 / (1 - share))),
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.9, 0.99, 1 - 1e-6])
def test_a_valley_that_one_row_makes(share):
    """Take the row out and the entropy is back."""
    found = phenomena(valley_of_rows(share), ratio=5.0)
    assert found.valley.depth == 2 and found.valley_cause == "massive rows"
    assert phenomena(valley_of_rows(share), ratio=1e4).valley_cause == "long rows"
    assert found.valley.drop == pytest.approx(0.8 - found.valley.entropy)


def test_a_valley_that_no_row_makes():
    """The rows point the same way: no massive row, or one that explains little."""
    ds = quiet(matrix_entropy=put(slice(None), 2, 0.1 * LN))
    found = phenomena(ds)
    assert found.valley_cause == "common direction" and found.valley.entropy == pytest.approx(0.1)
    assert "No massive row explains the valley" in " ".join(reading(ds))
    beside = quiet(
        matrix_entropy=put(slice(None), 2, 0.1 * LN), top_norm=put(slice(None), 2, 0, 10.0),
        frobenius_norm=put(slice(None), 2, 100.0),
    )  # fmt: skip
    assert phenomena(beside).massive and phenomena(beside).valley_cause == "common direction"


def test_a_slope_is_no_valley():
    """Entropy that falls and stays down has no second side."""
    ds = quiet(matrix_entropy=put(slice(None), slice(2, None), 0.1 * LN))
    assert phenomena(ds).valley is None
    lowest = entropy_valley(ds)
    assert lowest.drop == pytest.approx(0) and lowest.before == pytest.approx(0.8)


def test_few_queries_are_told():
    """Where few queries see a key, a previous-token head passes as well."""
    with pytest.warns(ShortPromptWarning, match=r"a key is seen by 8 queries at most"):
        find_sinks(quiet(sink_queries=put(1, 2, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_sinks(quiet(sink_queries=put(1, 2, 9)))


def test_bad_input():
    """Missing variables and senseless cut-offs are refused in words."""
    for call in (find_massive, find_sinks, phenomena, entropy_valley):
        with pytest.raises(ResultSchemaError, match="measure again"):
            call(result({"bos_norm": 1.0}))
    with pytest.raises(ValueError, match="above 1"):
        find_massive(quiet(), ratio=1.0)
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            find_sinks(quiet(), threshold=wrong)
    with pytest.raises(ResultSchemaError, match="no prompts"):
        phenomena(quiet().isel(prompt=[]))


@pytest.fixture(scope="module")
def model():
    return bridge("llama")


PLACES = (
    "top_norm_token",
    "top_sink_token",
    "strongest_token",
    "strongest_sink_token",
    "top_activation_token",
)


def test_token_ids_are_those_at_the_positions(model, prompts):
    """Mixed lengths: every position comes with the id that stands there."""
    ds = measure(model, prompts, list(PLACES), progress=False)
    for name in PLACES:
        for i, prompt in enumerate(prompts):
            places = ds[name].values[i]
            wanted = np.where(places >= 0, prompt.numpy()[places], -1)
            assert np.array_equal(ds[f"{name}_id"].values[i], wanted), name
    held = {i for name in PLACES for i in np.unique(ds[f"{name}_id"])} - {-1}
    assert set(ds.token_id.values.tolist()) == held
    assert ds.token_text.values.tolist() == [str(i) for i in ds.token_id.values]  # no tokenizer: numbers


def test_left_padding_in_a_loop_of_ones_own(model, tokens):
    """Positions count from the first real token, and so do ids."""
    alone = measure(model, tokens, ["top_norm_token"], progress=False)
    padded = torch.cat([torch.full((3, 4), 2), tokens], 1)
    mask = torch.cat([torch.zeros(3, 4), torch.ones(3, 12)], 1).long()
    with observe(model, ["top_norm_token"]) as watch:
        model(padded, attention_mask=mask)
    ds = watch.result()
    assert np.array_equal(ds.top_norm_token, alone.top_norm_token)
    assert np.array_equal(ds.top_norm_token_id, alone.top_norm_token_id)


def test_tokens_are_spelled_by_the_tokenizer():
    """`token` holds what the tokenizer calls the id; split and merged equals measured at once."""
    from models import hugging_face

    from mcr_lens import load_model

    model = load_model(hugging_face("llama"), tokenizer=tokenizer(prepends=True), verbose=False)
    texts = ["one two; three", "four five six seven eight"]
    whole = measure(model, texts, list(PLACES + NEEDED), progress=False)
    spelled = find_massive(whole, ratio=1.0001)
    ids = dict(zip(whole.token_id.values.tolist(), whole.token_text.values.tolist(), strict=True))
    assert ids[0] == "<bos>" and len(spelled)
    for line in spelled.itertuples():
        at = model.tokenizer.convert_ids_to_tokens(model.tokenizer(texts[line.prompt]).input_ids)
        assert line.token == at[line.position]
    parts = merge(*(measure(model, [t], list(PLACES + NEEDED), progress=False) for t in texts))
    xr.testing.assert_equal(parts.token_text, whole.token_text)
    for name in PLACES:
        assert np.array_equal(parts[f"{name}_id"], whole[f"{name}_id"])
