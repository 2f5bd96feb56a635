"""Stand-ins for packages that a GPU machine may lack and that a training step does not need.

Reading shards needs webdataset, braceexpand and platformdirs, the command line tyro, saved configurations
dacite; but the rooms import them when they are loaded. `install` lets such an import succeed where the
package is missing, so that models, steps and CUDA tests run all the same. What reads shards asks `missing`
first.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

OPTIONAL = ("braceexpand", "dacite", "platformdirs", "tyro", "webdataset")


class Nothing:
    """Any name of a missing package: can be looked into, called and subclassed, and does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return Nothing

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self


class Empty(ModuleType):
    """A module of a missing package; every name is in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            # Errors are named in `except`, which wants a class of exceptions.
            return type(name, (Exception,), {}) if name.endswith("Error") else Nothing
        return Nothing()


class Finder(MetaPathFinder, Loader):
    """Finds modules of the packages in `names`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A package for each of them, because any may be looked into."""
        if fullname.partition(".")[0] not in self.names:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty one."""
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def missing() -> list[str]:
    """Those of OPTIONAL that are not installed."""
    return [name for name in OPTIONAL if isinstance(sys.modules.get(name), Empty) or _absent(name)]


def _absent(name: str) -> bool:
    spec = None if name in sys.modules else find_spec(name)
    return name not in sys.modules and (spec is None or isinstance(spec.loader, Finder))


def install(names: Sequence[str] | None = None) -> None:
    """From now on `names`, by default those that are missing, can be imported, as stand-ins."""
    names = missing() if names is None else names
    if names:
        sys.meta_path.append(Finder(names))


def pytest_load_initial_conftests() -> None:
    """As a plugin of pytest (`-p gpu.standins`), before it imports anything of the tests."""
    install()
