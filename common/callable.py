"""Rooms that can be called: a package's name and its function's name are the same."""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(module: str, place: str) -> None:
    """Let a module that is being loaded be called as a function, which is imported at the first call.

    Args:
        module: its name, such as `packvit.train`.
        place: of the function, such as `packvit.train.api.train`.
    """
    home, _, name = place.rpartition(".")

    class CallableModule(ModuleType):
        """A module that is a function, too."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            function: Callable[..., Any] = getattr(import_module(home), name)
            return function(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
