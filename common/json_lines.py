"""JSON without NaN, and files of one JSON object a line that a resumed run goes on with."""

import json
import math
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """A file of one JSON object a line, each with its `step`.

    Args:
        path: made if missing.
        step: lines of later steps are removed, because the run repeats those steps.
        write: False writes nothing; for all ranks but one.
    """

    def __init__(self, path: Path, step: int, write: bool = True) -> None:
        self.path = path
        self.enabled = write
        if not write:
            return
        kept = [line for line in read_json_lines(path) if line["step"] <= step] if path.exists() else []
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, path)

    def write(self, line: dict) -> None:
        """Append one line."""
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps(finite(line), allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same with None for each number that is not finite, because JSON has none of them."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json_lines(path: Path) -> list[dict]:
    """All complete lines; a last line that a kill cut short is left out.

    Raises:
        ValueError: a line is not JSON; names the file and the line.
    """
    found = []
    for number, line in enumerate(path.read_text().split("\n")[:-1], 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is damaged ({error})") from error
    return found
