"""What a person sees of a run: a progress bar in a terminal, a line a log entry elsewhere."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table


class Progress:
    """Reports to standard output; `quiet` (all ranks but one) reports nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False)
        self.field, self.first, self.length = "step", 0, 0
        self.began = 0.0
        self.bar: Bar | None = None

    def say(self, text: str) -> None:
        """One line of text."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, field: str, first: int, length: int) -> None:
        """Training goes from `first` to `length` of what `field` of metrics.jsonl counts."""
        self.field, self.first, self.length, self.began = field, first, length, time.perf_counter()
        if self.console.is_terminal and not self.console.quiet:
            self.bar = Bar(
                TextColumn(field.removesuffix("_seen")),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[state]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task("train", total=length, completed=first, state="")

    def update(self, line: dict) -> None:
        """Show a line of metrics.jsonl."""
        loss = "not finite" if line["loss"] is None else f"{line['loss']:.3f}"
        state = f"loss {loss}  {line['images_per_s']:,.0f} images/s  padding {line['padding_fraction']:.2%}"
        if self.bar is not None:
            self.bar.update(self.task, completed=min(line[self.field], self.length), state=state)
            return
        done = line[self.field] - self.first
        left = (time.perf_counter() - self.began) / max(1, done) * max(0, self.length - line[self.field])
        share = f"/{self.length}" if self.field == "step" else f" ({line[self.field] / self.length:.1%})"
        self.say(f"step {line['step']}{share}  {state}  ETA {int(left) // 60}:{int(left) % 60:02d}")
        sys.stdout.flush()

    def stop(self) -> None:
        """Training is over, for good or not; safe to call twice."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def draw(self, picture: Callable[[], None]) -> None:
        """Draw; without matplotlib, say how to get it instead of failing a run that is otherwise fine."""
        try:
            picture()
        except ImportError as error:
            self.say(f"No picture: {error}")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table; the first column is left-aligned, the others right-aligned."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
