"""The `packvit` command; one file a command."""

from packvit.cli.commands import dispatch, main

__all__ = ["dispatch", "main"]
