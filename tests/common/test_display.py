"""What a notebook shows of progress: one output that is drawn anew, and no lines."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from packvit.common import display as display_module
from packvit.common.display import Bar, Display


class Output:
    """Of a notebook's cell, as IPython's display(..., display_id=True) gives it."""

    def __init__(self, first: Any) -> None:
        self.texts = [self.text(first)]

    def update(self, value: Any, raw: bool = False) -> None:
        self.texts.append(value["text/plain"] if raw else self.text(value))

    @staticmethod
    def text(value: Any) -> str:
        return value._repr_mimebundle_((), ())["text/plain"]


@pytest.fixture
def outputs(monkeypatch) -> list[Output]:
    made: list[Output] = []

    def display(value: Any, display_id: bool = False) -> Output:
        assert display_id
        made.append(Output(value))
        return made[-1]

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr(display_module, "NOTEBOOK_EVERY", 0)
    return made


def notebook(quiet: bool = False) -> Console:
    return Console(file=io.StringIO(), force_jupyter=True, quiet=quiet, width=80)


def test_training_is_one_output_of_a_notebook(outputs):
    shown = Display()
    shown.console = notebook()
    shown.start("step", 0, 8)
    for step in range(1, 9):
        shown.update(step, step, f"loss {step}.0")
    shown.stop()
    [output] = outputs
    assert ["3/8" in text and "loss 3.0" in text for text in output.texts].count(True) == 1
    assert "8/8" in output.texts[-1]
    assert len(output.texts) == 1 + 1 + 8 + 1  # shown, started, each step, stopped


def test_a_passing_bar_leaves_nothing_and_a_quiet_one_shows_nothing(outputs):
    with Bar(notebook(), "images", 3, transient=True) as bar:
        bar.update(2)
    assert "2/3" in outputs[0].texts[-2]
    assert outputs[0].texts[-1] == ""
    with Bar(notebook(quiet=True), "images", 3) as bar:
        bar.update(2)
    assert not bar.shown
    assert len(outputs) == 1
