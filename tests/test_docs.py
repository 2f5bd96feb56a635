"""The documentation names what is there."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from packvit.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent
ROOMS = ("common", "packing", "models", "data", "evaluate", "analyze", "train", "cli")
MADE = {"commands.md", "security.md", "changelog.md", "contributing.md"}  # by docs/hooks.py


def test_every_test_that_the_page_on_reliability_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    written = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = {name for text in written for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    assert len(named) > 40
    assert named - there == set()


def sentences() -> str:
    """All strings of the code, a line each; `…` for what is filled in."""
    found = []
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_every_sentence_of_the_page_on_troubleshooting_is_in_the_code():
    quoted = re.findall(r"^\*\*`(.+)`\*\*$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    code = sentences()
    assert len(quoted) > 25
    assert [sentence for sentence in quoted if sentence.strip() not in code] == []


def places(entry: object) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [place for part in parts for place in places(part)]  # type: ignore[union-attr]


def test_every_page_has_one_place_in_the_navigation():
    named = places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(named) == sorted(there | MADE)


PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_between_pages_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


def test_the_commands_of_the_pages_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"^    (?:\.venv/bin/)?packvit ([a-z]+)\b", text, re.MULTILINE))
    assert len(named) > 8
    assert named <= set(COMMANDS)
