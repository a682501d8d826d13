"""How a refusal is held against what it should say."""

from typing import Any

import pytest

from mcr_lens import measure

ROWS = [[5, 6, 7], [8, 9, 10]]
"""Two prompts that nothing is wrong with."""


def refused(error: type[Exception], message: str, model: Any, prompts: Any = ROWS, *args, **options) -> None:
    """`measure` refuses with this error, in one line that matches the message."""
    with pytest.raises(error, match=message) as seen:
        measure(model, prompts, *args, progress=False, **options)
    text = str(seen.value)
    assert "\n" not in text and len(text) < 600
