"""Optional packages: code that needs one gets it here, or an error that says how to install it."""

from importlib import import_module
from types import ModuleType


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """An optional module.

    Args:
        module: its full name, such as `pyarrow.parquet`.
        extra: the extra of packvit that installs it.
        purpose: what needs which package, as the start of a sentence, such as "plots need matplotlib".

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose}: pip install 'packvit[{extra}]'") from error
