"""Configuration, tasks, the training loop and recipes.

The module itself can be called: `packvit.train("digits", ...)` is `packvit.train.api.train`. The name below
is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from packvit.common.callable import make_callable

if TYPE_CHECKING:
    from packvit.train.tasks.contrastive_loss import contrastive_loss

__all__ = ["contrastive_loss"]

PLACES = {"contrastive_loss": "packvit.train.tasks.contrastive_loss"}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'packvit.train' has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)


make_callable(__name__, "packvit.train.api.train")
