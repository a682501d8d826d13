"""Which heads are chosen: the best of each kind, none twice, not all from one layer, always the same ones."""

import numpy as np
import pytest
import xarray as xr
from handmade import result

from mcr_lens.notable import notable_heads
from mcr_lens.schema import ResultSchemaError


def scored(sink, identity, **options) -> xr.Dataset:
    """A result of two prompts with these scores, [layer, head] or [prompt, layer, head]."""
    return result({"sink_score": sink, "identity_score": identity}, **options)


SINK = [[0.9, 0.1], [0.5, 0.8], [0.2, 0.3]]
IDENTITY = [[0.0, 0.7], [0.6, 0.0], [0.1, 0.5]]


def test_the_best_of_each_kind():
    """Sink-like ones first, best first."""
    assert notable_heads(scored(SINK, IDENTITY), 2) == [(0, 0), (1, 1), (0, 1), (1, 0)]
    assert notable_heads(scored(SINK, IDENTITY), 1) == [(0, 0), (0, 1)]


def test_no_head_twice():
    """A head that is best at both is a sink head; the next one takes its place."""
    found = notable_heads(scored(SINK, SINK), 2)
    assert found == [(0, 0), (1, 1), (1, 0), (2, 1)]
    assert len(set(found)) == 4


def test_half_of_all_heads_where_there_are_few():
    """Six heads: three of each kind, not six sinks and nothing."""
    found = notable_heads(scored(SINK, IDENTITY))
    assert len(found) == 6 == len(set(found)) and found[:3] == [(0, 0), (1, 1), (1, 0)]
    one = scored(SINK, IDENTITY).isel(layer=[1], head=[0])
    assert notable_heads(one) == [(1, 0)]


def wide(scores) -> xr.Dataset:
    """A result of three layers and four heads with these sink scores, and the same identity for all."""
    ds = scored(0.0, 0.0)
    about = {"sink_score": np.broadcast_to(scores, (2, 3, 4)), "identity_score": np.zeros((2, 3, 4))}
    bare = ds.drop_dims(["layer", "head"]).assign_coords(layer=np.arange(3), head=np.arange(4))
    return bare.assign({name: (("prompt", "layer", "head"), values) for name, values in about.items()})


def test_one_layer_does_not_take_all():
    """Half of them come from the best layer, while others reach half of the best score."""
    full, near, far = [0.9, 0.88, 0.87, 0.86], [0.5, 0.4, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]
    assert notable_heads(wide([full, near, far]), 4)[:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert notable_heads(wide([full, near, near]), 4)[:4] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert notable_heads(wide([full, near, near]), 3)[:3] == [(0, 0), (0, 1), (1, 0)]
    assert notable_heads(wide([full, far, far]), 4)[:4] == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_ties_are_settled_by_place():
    """All alike: lower layers and heads, from more than one layer, and the same each time."""
    ds = scored(0.5, 0.5)
    assert notable_heads(ds, 2) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert notable_heads(ds, 2) == notable_heads(ds.isel(layer=[2, 1, 0]), 2)


def test_means_over_prompts_and_nan():
    """A prompt without a number is left out of the mean, a head without any out of the choice."""
    prompts = np.stack([SINK, SINK]).astype(float)
    prompts[1] = [[0.1, 0.1], [0.1, 0.9], [0.1, 0.1]]
    assert notable_heads(scored(prompts, IDENTITY), 1)[0] == (1, 1)
    prompts[1] = np.nan
    assert notable_heads(scored(prompts, IDENTITY), 1)[0] == (0, 0)
    prompts[0, 0, 0] = np.nan
    assert notable_heads(scored(prompts, IDENTITY), 1)[0] == (1, 1)
    assert notable_heads(scored(SINK, np.full((3, 2), np.nan)), 2) == [(0, 0), (1, 1)]


def test_plain_numbers():
    """Pairs of plain integers, as `close_up` takes them."""
    found = notable_heads(scored(SINK, IDENTITY).assign_coords(layer=[4, 5, 6]), 1)
    assert found == [(4, 0), (4, 1)] and all(type(n) is int for pair in found for n in pair)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, None])
def test_a_count_that_is_none(count):
    with pytest.raises(ValueError, match=rf"count={count}: pass how many heads of each kind, a positive"):
        notable_heads(scored(SINK, IDENTITY), count)


def test_refusals():
    ds = scored(SINK, IDENTITY)
    with pytest.raises(ResultSchemaError, match="has no identity_score; measure again"):
        notable_heads(ds.drop_vars("identity_score"))
    with pytest.raises(ResultSchemaError, match="the result holds no prompts"):
        notable_heads(ds.isel(prompt=slice(0)))
    with pytest.raises(ResultSchemaError, match=r"several conditions \(a, b\); pick one"):
        notable_heads(xr.concat([ds, ds], dim=xr.DataArray(["a", "b"], dims="condition", name="condition")))
