"""Options from arguments; what a check of packvit refuses among them is an error like any other."""

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def read_options(kind: type[T], prog: str, arguments: Sequence[str], **more: Any) -> T:
    """The options of a command.

    Args:
        kind: a dataclass of them.
        prog: the command's name.
        more: of tyro.cli.

    Raises:
        ValueError: see `refused_plainly`.
        SystemExit: see `refused_plainly`.
    """
    return refused_plainly(lambda: tyro.cli(kind, prog=prog, args=arguments, **more))


def refused_plainly(read: Callable[[], T]) -> T:
    """What `read` makes of arguments by tyro.

    Raises:
        ValueError: a check of packvit refuses a value. tyro would print what it says in a box.
        SystemExit: tyro has printed help, or what it cannot read itself.
    """
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            found = read()
    except SystemExit as ended:
        refusal = refusal_before(ended)
    else:
        sys.stderr.write(said.getvalue())
        return found
    if refusal is not None:
        raise refusal
    return read()  # prints to the terminal, whose width and colours tyro looks at


def refusal_before(ended: SystemExit) -> ValueError | None:
    """The error of a check of packvit on which tyro ended the process; None where it was none."""
    error = ended.__context__
    while error is not None:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        if isinstance(error, ValueError) and place is not None:
            module = str(place.tb_frame.f_globals.get("__name__"))
            if module.startswith("packvit."):
                return error
        error = error.__context__
    return None
