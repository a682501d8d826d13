"""Is the difference of two conditions taken prompt by prompt?"""

import numpy as np
import pytest
from samples import numbers, sample

from mcr_lens.statistics import confidence_interval, paired_difference

pytestmark = pytest.mark.once


def test_difference_of_pairs():
    """The interval of a − b, and what the prompts share cancels."""
    common = sample(24, seed=1)
    a, b = common + sample(24, seed=2) / 100, common
    found = paired_difference(a, b)
    np.testing.assert_array_equal(numbers(found), numbers(confidence_interval(a - b)))
    alone = confidence_interval(a)
    assert ((found.high - found.low) < (alone.high - alone.low) / 20).all()


def test_difference_matches_by_hash():
    """Never by order alone."""
    names = np.array([f"h{i}" for i in range(24)])
    a = sample(24, prompt_hash=("prompt", names))
    b = sample(24, seed=9, prompt_hash=("prompt", names))
    order = np.random.default_rng(0).permutation(24)
    assert paired_difference(a, b.isel(prompt=order)).identical(paired_difference(a, b))
    assert not np.allclose(
        numbers(paired_difference(a, b)),
        numbers(paired_difference(a, b.isel(prompt=order).drop_vars("prompt_hash"))),
    )


def test_difference_matches_by_prompt_where_one_has_no_hash():
    """The coordinate `prompt` is the second choice."""
    a = sample(24, prompt=np.arange(24))
    order = np.random.default_rng(0).permutation(24)
    assert paired_difference(a, a.isel(prompt=order)).high.max() == 0


def test_difference_keeps_missing_prompts_out():
    """A prompt missing on either side does not count."""
    a, b = sample(), sample(seed=1)
    a[0, 0, 0], b[1, 0, 0] = np.nan, np.nan
    assert paired_difference(a, b).n.values.tolist() == [[22, 24], [24, 24], [24, 24]]


def test_difference_is_labelled():
    """What minus what."""
    a, b = sample(), sample().assign_attrs(long_name="Other")
    assert paired_difference(a, b)["mean"].long_name == "Mean of Score − Other"
    assert paired_difference(a, a)["mean"].long_name == "Mean of the difference of Score"
    assert paired_difference(a, a)["mean"].units == "1"


def test_difference_refuses():
    """Other prompts, other axes, other units."""
    hashes = np.array([f"h{i}" for i in range(24)])
    a = sample(24, prompt_hash=("prompt", hashes))
    other = np.concatenate([hashes[:20], ["x0", "x1", "x2", "x3"]])
    b = sample(24, prompt_hash=("prompt", other))
    with pytest.raises(ValueError, match=r"a holds 24 prompts and b 24, with 20 in common by prompt_hash"):
        paired_difference(a, b)
    with pytest.raises(ValueError, match="a holds 24 prompts and b 20, with 20 in common by prompt_hash"):
        paired_difference(a, a[:20])
    with pytest.raises(ValueError, match="a holds 24 prompts and b 20, with 20 in common by prompt;"):
        paired_difference(sample(), sample()[:20])
    unknown = sample(24, prompt_hash=("prompt", np.array(["", *hashes[1:]])))
    with pytest.raises(ValueError, match="with 23 in common by prompt_hash"):
        paired_difference(unknown, unknown[::-1])
    with pytest.raises(ValueError, match="a has the axes prompt, layer, head and b prompt, layer; select"):
        paired_difference(a, a.mean("head"))
    with pytest.raises(ValueError, match="a and b differ along 'layer'; select the same of both first"):
        paired_difference(a, a.isel(layer=[0, 1]))
    with pytest.raises(ValueError, match="a and b differ along 'layer'; select the same of both first"):
        paired_difference(a, a.isel(layer=[0, 2, 1]))
    with pytest.raises(ValueError, match="a is in '1' and b in 'nats'; subtract what has the same units"):
        paired_difference(a, a.assign_attrs(units="nats"))
    with pytest.raises(TypeError, match="b is a float; pass one variable"):
        paired_difference(a, 1.0)  # type: ignore[arg-type]
