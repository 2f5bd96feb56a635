"""packvit: one Vision Transformer for every patch size and every resolution.

The names below are loaded when they are first used, so that `import packvit` costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packvit.data import pack_images
    from packvit.evaluate import Predictor
    from packvit.evaluate.request.api import evaluate
    from packvit.models import PackedViT, ViTConfig, load_model
    from packvit.packing import PackedBatch, pack_lengths
    from packvit.train.api import recipes, train

__all__ = [
    "PackedBatch",
    "PackedViT",
    "Predictor",
    "ViTConfig",
    "__version__",
    "evaluate",
    "load_model",
    "pack_images",
    "pack_lengths",
    "recipes",
    "train",
]

try:
    __version__ = version("packvit")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

ROOMS = {
    "PackedBatch": "packvit.packing",
    "PackedViT": "packvit.models",
    "Predictor": "packvit.evaluate",
    "ViTConfig": "packvit.models",
    "load_model": "packvit.models",
    "pack_images": "packvit.data",
    "pack_lengths": "packvit.packing",
    "recipes": "packvit.train.api",
}
CALLABLE_ROOMS = ("evaluate", "train")  # modules that are functions, too


def __getattr__(name: str) -> Any:
    if name in CALLABLE_ROOMS:
        return import_module(f"packvit.{name}")
    if name not in ROOMS:
        raise AttributeError(f"module 'packvit' has no attribute {name!r}")
    return getattr(import_module(ROOMS[name]), name)


def __dir__() -> list[str]:
    return __all__
