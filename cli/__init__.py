"""The `packvit` command; one file a command."""

from packvit.cli.dispatch import dispatch, main

__all__ = ["dispatch", "main"]
