"""The rooms' order: imports point one way, and no two modules import each other."""

import ast
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BELOW = {
    "common": set(),
    "packing": set(),
    "models": {"packing", "common"},
    "data": {"packing", "common"},
    "evaluate": {"packing", "models", "data", "common"},
    "analyze": {"packing", "models", "data", "common"},
    "train": {"packing", "models", "data", "evaluate", "common"},
    "cli": {"packing", "models", "data", "evaluate", "analyze", "train", "common"},
    "packvit": {"packing", "models", "data", "evaluate", "analyze", "train", "cli", "common"},
}
FILES = [path for room in BELOW for path in sorted((ROOT / room).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "packvit" else parts
    return ".".join(("packvit", *parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


@cache
def imported_modules(path: Path) -> list[str]:
    """What a file imports while it is loaded or later; not what it imports for type checkers alone."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            parent = node.module or ""
            # `from package import module` names a module, `from module import name` a part of one.
            names += [f"{parent}.{a.name}" if f"{parent}.{a.name}" in MODULES else parent for a in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    # An entry point is a command, wherever `python -m` finds it.
    room = "cli" if path.name == "__main__.py" else path.relative_to(ROOT).parts[0]
    for name in imported_modules(path):
        parts = name.split(".")
        assert parts[0] not in BELOW or parts[0] == "packvit", f"{path} imports {name} without packvit"
        if parts[0] == "packvit" and len(parts) > 1 and parts[1] != room:
            assert parts[1] in BELOW[room], f"{path} imports {name}"


def test_no_modules_import_each_other():
    """A room's own __init__ only gathers names for other rooms, so inside a room nobody imports it."""
    edges = {name: set(imported_modules(path)) & MODULES.keys() for name, path in MODULES.items()}
    finished: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in finished:
            for other in sorted(edges[name]):
                visit(other, (*way, name))
            finished.add(name)

    for name in edges:
        visit(name, ())


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {module_name(path): path.parent for path in FILES if path.name == "__init__.py"}
    assert {path.parent for path in FILES} == set(packages.values())
    assert set(settings["packages"]) == set(packages)
    assert settings["package-dir"] == {
        name: folder.relative_to(ROOT).as_posix() for name, folder in packages.items()
    }


def test_no_file_hides_a_standard_module():
    assert not {path.stem for path in FILES} & (set(sys.stdlib_module_names) - {"__init__", "__main__"})


def test_type_checkers_find_every_room():
    """The site's reference pages are read from there too."""
    links = ROOT / "typings" / "packvit"
    assert (links / "__init__.py").resolve() == ROOT / "packvit" / "__init__.py"
    for room in BELOW.keys() - {"packvit"}:
        assert (links / room).resolve() == ROOT / room
