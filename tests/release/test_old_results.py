"""Can this version read what every earlier layout of a result held?

`results/schema_N.nc` is a result of two prompts of the demo model, written when layout N was new.
"""

from pathlib import Path

import numpy as np
import pytest

import mcr_lens
from mcr_lens.schema import SCHEMA

FOLDER = Path(__file__).with_name("results")
EVERY = pytest.mark.parametrize("schema", range(1, SCHEMA + 1))


@EVERY
def test_it_loads_as_todays_layout(schema, tmp_path):
    """Whoever raises SCHEMA keeps a file of the new layout here, and makes `load` lift the older ones."""
    kept = FOLDER / f"schema_{schema}.nc"
    assert kept.is_file(), f"keep a result of layout {schema} as {kept}; docs/releasing.md says how"
    ds = mcr_lens.load(kept)
    assert ds.attrs["schema"] == SCHEMA
    assert mcr_lens.load(mcr_lens.save(ds, tmp_path / "again.nc")).identical(ds)


@EVERY
def test_it_says_what_it_said(schema):
    """Numbers of the old file, as they were read when it was written."""
    ds = mcr_lens.load(FOLDER / f"schema_{schema}.nc")
    assert ds.text.values.tolist() == [
        "Once upon a time there was a small cat.", "The sun was warm, and the day was long."
    ]  # fmt: skip
    assert ds.n_tokens.values.tolist() == [40, 40] and ds.attrs["position"] == 0
    np.testing.assert_allclose(ds.massive_activation_ratio.sel(prompt=0)[:2], [0.706771, 11.26975], rtol=1e-5)
    assert mcr_lens.sink_rate(ds).max() == 0.75


@EVERY
def test_it_is_measured_on(schema):
    """What reads a result reads it."""
    ds = mcr_lens.load(FOLDER / f"schema_{schema}.nc")
    assert mcr_lens.massive_layer(ds) == 0
    assert mcr_lens.normalized_entropy(ds).sizes == {"prompt": 2, "depth": 9}
    assert len(mcr_lens.tidy(ds, "bos_norm")) == 18
    assert mcr_lens.preset(ds, "queipo2025").sizes["prompt"] == 2


def test_what_an_older_file_lacks_is_said():
    """Rows at any position came after this file was written."""
    ds = mcr_lens.load(FOLDER / "schema_1.nc")
    with pytest.raises(
        mcr_lens.ResultSchemaError, match=r"the result has no top_norm, top_norm_token; measure again with"
    ):
        mcr_lens.find_massive(ds)
