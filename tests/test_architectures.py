"""Does the page about architectures say what the code finds?"""

from pathlib import Path

from models import FAMILIES

from mcr_lens.testing.architectures import page

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"


def test_the_page_is_what_the_code_writes():
    """On both generations of TransformerLens, word for word."""
    written = PAGE.read_text(encoding="utf-8")
    assert written == page() + "\n", "run: python -m mcr_lens.testing.architectures > docs/architectures.md"
    assert all(f"| `{family}` |" in written for family in FAMILIES)
