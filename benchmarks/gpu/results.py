"""Results on disk, and the page's sections that are made from them."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "benchmarks/results"
ROOMS = ("common", "packing", "models", "data", "evaluate", "train")
PAGE = ROOT / "docs/gpu.md"


def load(path: Path) -> dict[str, Any]:
    """A file of results; empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def save(path: Path, results: dict[str, Any]) -> None:
    """Write results so that an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, path)


def slug(device: str) -> str:
    """The name of a device as a file's: "NVIDIA H200" is h200."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce", "tesla")) or "unknown"


def commit() -> str:
    """The last commit that changed the rooms, with + where they were changed since."""
    try:
        last, changed = (
            subprocess.run(
                ["git", "-C", str(ROOT), *words, "--", *ROOMS], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["log", "-1", "--abbrev=7", "--format=%h"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return last + ("+" if changed else "")


def replace_section(name: str, lines: list[str], page: Path = PAGE) -> None:
    """Put lines between the marks of a section of the page."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = page.read_text().split(start)
    after = rest.split(end)[1]
    page.write_text(f"{before}{start}\n" + "\n".join(lines) + f"\n\n{end}{after}")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the first column is text."""
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (header, marks, *rows)]
