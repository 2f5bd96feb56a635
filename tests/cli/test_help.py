"""Help says what every option does, how a recipe is run, and what an argument is called."""

import inspect
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest

from packvit.cli import dispatch
from packvit.cli.commands import COMMANDS
from packvit.train.recipes.find import RECIPES

SUBCOMMANDS = {"shards": ("write", "demo", "check", "index")}
CALLS = [[name, *more] for name in COMMANDS for more in [(sub,) for sub in SUBCOMMANDS.get(name, ())] or [()]]
OPTION = re.compile(r"(--?[a-z][\w.-]+|[A-Z]+(?:\.\.\.)?)(?: \S+| \[.*\]|,)*(?:  +(.*))?")


def help_of(capsys, call: list[str]) -> str:
    with suppress(SystemExit):
        dispatch([*call, "--help"])
    return capsys.readouterr().out


def described(printed: str) -> Iterator[tuple[str, str]]:
    """(option, the beginning of its text) of all options."""
    lines = [line.strip("│").rstrip() for line in printed.splitlines()]
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if indent in (1, 2) and (found := OPTION.fullmatch(line.strip())):
            yield found[1], found[2] or lines[number + 1].strip()


@pytest.mark.parametrize("call", [*CALLS, ["train", "digits"]], ids=" ".join)
def test_every_option_has_a_text_and_every_argument_a_name(call, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    printed = help_of(capsys, call)
    options = dict(described(printed))
    without = [name for name, text in options.items() if text.startswith(("(default", "(required", "--"))]
    assert without == []
    assert not {"PATH", "STR"} & options.keys()
    if call == ["train", "digits"]:
        assert len(options) > 150
        assert options["--data.shards"].startswith("to train on: tar files")
    elif call not in (["train"], ["info"]):
        assert options


@pytest.mark.parametrize("name", ["digits", "flexivit_b_i21k_distill", "navit_l16"])
def test_help_of_a_recipe_opens_with_what_it_says_of_itself(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    printed = help_of(capsys, ["train", name])
    about = inspect.getdoc(RECIPES[name]) or ""
    assert printed.splitlines()[2] == about.splitlines()[0]
    commands = [text for text in about.split("\n\n") if text.startswith(("packvit ", "torchrun "))]
    assert commands
    pasted = " ".join(printed.replace("\\\n", "").split())
    assert all(" ".join(command.split()) in pasted for command in commands)
