"""The display: lines, tables, and a progress bar in a terminal or a notebook."""

import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

WIDTH = 120  # characters of a line where no terminal says it
NOTEBOOK_EVERY = 0.25  # seconds between two pictures of a bar in a notebook


class Bar:
    """A progress bar in a terminal or a notebook, and nothing elsewhere; a context manager.

    A notebook's bar is one output that is redrawn, because rich's own bar needs ipywidgets there.

    Args:
        console: where it is drawn.
        what: description in a word or two.
        total: the value at its end; None while that is unknown.
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
            disable=not console.is_terminal or console.is_jupyter or console.quiet,
        )
        self._task = self._progress.add_task(what, total=total, state="")
        self._notebook = console.is_jupyter and not console.quiet
        self._transient = transient
        self._output: Any = None  # a notebook's, while it is shown
        self._drawn = 0.0
        self.shown = self._notebook or not self._progress.disable

    def __enter__(self) -> "Bar":
        if self._notebook:
            self._output = import_module("IPython.display").display(self._progress, display_id=True)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._output is not None:
            last = {"text/plain": "", "text/html": ""} if self._transient else None
            self._output.update(last or self._progress, raw=last is not None)
            self._output = None

    def update(self, done: float, total: float | None = None, state: str = "") -> None:
        """Show that so much of the total is done."""
        self._progress.update(self._task, completed=done, total=total, state=state)
        if self._output is not None and time.monotonic() >= self._drawn + NOTEBOOK_EVERY:
            self._output.update(self._progress)
            self._drawn = time.monotonic()


class Display:
    """Reports to standard output; `quiet` (all ranks but one) reports nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False)
        if not (self.console.is_terminal or self.console.is_jupyter or "COLUMNS" in os.environ):
            self.console.width = WIDTH
        self.bar: Bar | None = None

    def say(self, text: str) -> None:
        """Print one line of text."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, unit: str, done: float, total: float) -> None:
        """Start to show the progress of training, from `done` to `total` units."""
        self.unit, self.first, self.total, self.began = unit, done, total, time.perf_counter()
        self.bar = Bar(self.console, unit, total).__enter__()
        self.bar.update(done)

    def update(self, done: float, step: int, state: str) -> None:
        """Show that training has reached `done` and is at `step`; outside a terminal this is a line of
        text."""
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
        """Stop showing the progress of training, however it ended; may be called twice."""
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None

    def draw(self, picture: Callable[[], None]) -> None:
        """Draw a figure; without matplotlib, say how to install it instead of failing an otherwise good
        run."""
        try:
            picture()
        except ImportError as error:
            self.say(f"No picture: {error}")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table; the first column is left-aligned, the others right-aligned."""
        table = Table(title=title, title_justify="left")
        # Names are cut only where they would take more than half of the width.
        whole = max((len(row[0]) for row in rows), default=0) <= self.console.width // 2
        for index, column in enumerate(columns):
            if index == 0:
                table.add_column(column, overflow="fold", no_wrap=whole)
            else:
                table.add_column(column, justify="right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
