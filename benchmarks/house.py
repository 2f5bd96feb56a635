"""How far one step of training reaches into the code, and how large the parts of the code are.

`.venv/bin/python benchmarks/house.py` (half a minute on one core) prints four numbers and writes them to
benchmarks/results/house.json under the name that `--name` gives, beside those that are there already:

- the files that one step of the `digits` recipe runs through, from one update of the weights to the next,
  with the data read in the trainer and nothing logged or saved; set-up is over by then;
- the longest function, in lines, docstring included;
- the largest number of arguments of a function, `self` not counted;
- the files that name one kind of target, the caption of an image.

`before` was measured at commit 43ca31c: `--root CHECKOUT --name before`, with a PYTHONPATH whose folder
`packvit` has links to that checkout's rooms.
"""

import argparse
import ast
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from packvit.data import write_digits

ROOT = Path(__file__).parent.parent
NOT_ROOMS = {"tests", "benchmarks", "docs", "typings", "runs"}
STEPS, TRACED = 6, 4  # of the run, and the step that is followed; the first ones still fill caches
CAPTION = re.compile(r"caption_field|captions|read_caption|caption=|TextTarget|text_targets")


def source_files(root: Path) -> list[Path]:
    """All Python files of the rooms."""
    rooms = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in NOT_ROOMS]
    rooms = [path for path in rooms if not path.name.startswith(".")]
    return [path for room in rooms for path in sorted(room.rglob("*.py"))]


def functions(root: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(file:name, definition) of every function and method."""
    for path in source_files(root):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(root)}:{node.name}", node


def number_of_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Arguments of a function; neither `self` nor `cls` counts."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for i, name in enumerate(names) if i or name not in ("self", "cls")])


def files_of_a_step(root: Path, folder: Path) -> list[str]:
    """The files of `root` whose functions are called between two updates of the weights."""
    found: set[str] = set()
    updates = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    def count(optimizer: Optimizer, *_: object) -> None:
        nonlocal updates
        if isinstance(optimizer, import_module("torch.optim").Muon):  # the last of a step's two
            updates += 1
            sys.setprofile(note if updates == TRACED else None)

    write_digits(folder / "set", 400, 10)
    handle = register_optimizer_step_post_hook(count)
    arguments = ["digits", "--run-dir", str(folder / "run"), "--data.shards", str(folder / "set/train")]
    arguments += ["--data.workers", "0", "--train.steps", str(STEPS), "--train.log-every", str(STEPS)]
    try:
        train(root, arguments)
    finally:
        handle.remove()
        sys.setprofile(None)
    ours = {path.resolve(): str(path.relative_to(root)) for path in source_files(root)}
    assert updates == STEPS
    return sorted(ours[path] for name in found if (path := Path(name).resolve()) in ours)


def train(root: Path, arguments: list[str]) -> None:
    """`packvit train ARGUMENTS` of a checkout, in this process."""
    # Before the commands had a room of their own they were in train/.
    dispatch = import_module("packvit.cli" if (root / "cli").exists() else "packvit.train.cli").dispatch
    assert dispatch(["train", *arguments]) == 0


def measure(root: Path) -> dict[str, Any]:
    """All numbers."""
    lines = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions(root)}
    arguments = {name: number_of_arguments(node) for name, node in functions(root)}
    longest, widest = (
        max(lines, key=lambda name: lines[name]),
        max(arguments, key=lambda name: arguments[name]),
    )
    with tempfile.TemporaryDirectory() as folder:
        step = files_of_a_step(root, Path(folder))
    captions = [str(p.relative_to(root)) for p in source_files(root) if CAPTION.search(p.read_text())]
    return {
        "files_in_a_step": len(step),
        "longest_function": [lines[longest], longest],
        "most_arguments": [arguments[widest], widest],
        "files_that_name_captions": len(captions),
        "step": step,
        "captions": captions,
    }


def main() -> None:
    """Measure, print, and keep the numbers under a name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="a checkout whose rooms are the ones imported"
    )
    parser.add_argument("--name", default="after", help="under which the numbers are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/house.json", help="JSON file")
    options = parser.parse_args()
    numbers = measure(options.root.resolve())
    for name, value in numbers.items():
        print(f"{name}: {value}")
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.write_text(json.dumps(kept | {options.name: numbers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
