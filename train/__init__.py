"""Configuration, tasks, the training loop and recipes.

The module itself can be called: `packvit.train("digits", ...)` is `packvit.train.api.train`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packvit.train.api import Trained


class _Callable(ModuleType):
    """A module that is a function, too: a package's name and its function's name are the same here."""

    def __call__(self, *args: Any, **kwargs: Any) -> "Trained":
        from packvit.train.api import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
