"""The folders' order: packing knows nobody, models and data know packing, train knows all."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "packing": {"packing"},
    "models": {"models", "packing"},
    "data": {"data", "packing"},
    "train": {"train", "data", "models", "packing"},
}
FILES = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]


def imported_modules(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.append(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    for name in imported_modules(path):
        parts = name.split(".")
        assert parts[0] not in MAY_IMPORT, f"{path} imports {name} without packvit"
        if parts[0] == "packvit":
            assert parts[1] in MAY_IMPORT[folder], f"{path} imports {name}"


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in FILES}
    assert set(settings["packages"]) == {".".join(("packvit", *folder.parts)) for folder in folders}
    assert settings["package-dir"] == {
        ".".join(("packvit", *folder.parts)): folder.as_posix() for folder in folders
    }


def test_no_file_hides_a_standard_module():
    assert not {path.stem for path in FILES} & (set(sys.stdlib_module_names) - {"__init__", "__main__"})


def test_type_checkers_find_every_folder():
    for folder in MAY_IMPORT:
        assert (ROOT / "typings" / "packvit" / folder).resolve() == ROOT / folder
