"""JSON without NaN, and files of one JSON object a line that a resumed run continues."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from packvit.common.files import write_whole


class JsonLines:
    """A file of one JSON object a line, each with its `step`.

    Args:
        path: the file, which is created if missing; damaged lines at its end, as after a power failure, are
            removed and reported.
        step: lines of later steps are removed, because the run repeats those steps.
        write: whether to write at all; False on all ranks but one.
    """

    def __init__(self, path: Path, step: int, write: bool = True) -> None:
        self.path = path
        self.enabled = write
        if not write:
            return
        found, damaged = _read(path) if path.exists() else ([], 0)
        if damaged:
            print(f"{path}: its last {damaged} lines are damaged and were removed", file=sys.stderr)
        kept = [line for line in found if line["step"] <= step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, line: dict) -> None:
        """Append one line."""
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps(finite(line), allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same value with None for each number that is not finite, because JSON cannot hold them."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json_lines(path: Path) -> list[dict]:
    """All complete lines; a last line that a kill cut short, and damaged lines at the end, are left out.

    Raises:
        ValueError: a line before the end is not a JSON object; names the file and the line.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict], int]:
    """See `read_json_lines`; also the number of damaged lines at the end.

    A machine that loses its power leaves zeros where lines did not reach the disk, and what is written next
    comes right behind them.
    """
    found: list[dict] = []
    damaged: list[str] = []
    for number, text in enumerate(path.read_text(errors="replace").split("\n")[:-1], 1):
        try:
            line = json.loads(text.lstrip("\0"))
            if not isinstance(line, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            damaged.append(f"{path}, line {number}, is damaged ({error})")
            continue
        if damaged:
            raise ValueError(damaged[0])
        found.append(line)
    return found, len(damaged)
