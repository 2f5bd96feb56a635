"""The documentation names what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_that_the_page_on_reliability_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    written = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = {name for text in written for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    assert len(named) > 40
    assert named - there == set()
