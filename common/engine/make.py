"""The engine that a command's flags ask for."""

from typing import Annotated

import tyro
from rich.console import Console

from packvit.common.engine.engine import Engine, EngineConfig
from packvit.common.engine.local import LocalEngine

EngineFlags = Annotated[EngineConfig, tyro.conf.arg(name="")]  # of a command: --engine and so on


def make_engine(config: EngineConfig, console: Console, workers: int = 1) -> Engine:
    """The engine, to be used as a context.

    Args:
        config: which one.
        console: where a bar shows how far it is.
        workers: processes of the local engine; 0: one for each CPU.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the number of workers is negative, or no cluster answers.
    """
    if workers < 0:
        raise ValueError(f"--workers {workers} must not be negative")
    if config.engine == "local":
        return LocalEngine(workers, console)
    # Only here, so that nobody else needs Ray.
    from packvit.common.engine.on_ray import RayEngine

    return RayEngine(config, console)
