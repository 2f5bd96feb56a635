"""Configuration, tasks, the training loop and recipes.

The module itself can be called: `packvit.train("digits", ...)` is `packvit.train.api.train`. The name below
is loaded when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packvit.train.api import Trained
    from packvit.train.tasks.contrastive_loss import contrastive_loss

__all__ = ["contrastive_loss"]

PLACES = {"contrastive_loss": "packvit.train.tasks.contrastive_loss"}


class _Callable(ModuleType):
    """A module that is a function, too: a package's name and its function's name are the same here."""

    def __call__(self, *args: Any, **kwargs: Any) -> "Trained":
        from packvit.train.api import train

        return train(*args, **kwargs)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'packvit.train' has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)


sys.modules[__name__].__class__ = _Callable
