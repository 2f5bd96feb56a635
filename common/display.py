"""What a person sees: lines, tables, and a progress bar in a terminal."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Bar:
    """A progress bar in a terminal and nothing elsewhere; a context manager.

    Args:
        console: where it is drawn.
        what: in a word or two.
        total: how far it goes; None while that is unknown.
        transient: whether it disappears at its end.
    """

    def __init__(
        self, console: Console, what: str, total: float | None = None, transient: bool = False
    ) -> None:
        self._progress = Progress(
            TextColumn(what),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=transient,
            disable=not console.is_terminal or console.quiet,
        )
        self._task = self._progress.add_task(what, total=total, state="")
        self.shown = not self._progress.disable

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, done: float, total: float | None = None, state: str = "") -> None:
        """So much of the total is done."""
        self._progress.update(self._task, completed=done, total=total, state=state)


class Display:
    """Reports to standard output; `quiet` (all ranks but one) reports nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False)
        self.bar: Bar | None = None

    def say(self, text: str) -> None:
        """Print one line of text."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, unit: str, done: float, total: float) -> None:
        """Training goes from `done` to `total` units."""
        self.unit, self.first, self.total, self.began = unit, done, total, time.perf_counter()
        self.bar = Bar(self.console, unit, total).__enter__()
        self.bar.update(done)

    def update(self, done: float, step: int, state: str) -> None:
        """Training has come as far as `done` and is at `step`; off a terminal this is a line of text."""
        if self.bar is None:
            return
        if self.bar.shown:
            self.bar.update(min(done, self.total), state=state)
            return
        left = (time.perf_counter() - self.began) / max(1, done - self.first) * max(0, self.total - done)
        share = f"/{self.total}" if self.unit == "step" else f" ({done / self.total:.1%})"
        self.say(f"step {step}{share}  {state}  ETA {int(left) // 60}:{int(left) % 60:02d}")
        sys.stdout.flush()

    def stop(self) -> None:
        """Training is over, for good or not; safe to call twice."""
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None

    def draw(self, picture: Callable[[], None]) -> None:
        """Draw; without matplotlib, say how to get it instead of failing a run that is otherwise fine."""
        try:
            picture()
        except ImportError as error:
            self.say(f"No picture: {error}")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table; the first column is left-aligned, the others right-aligned."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
