"""What benchmarks compare with has to be there: a table without it would replace one that has it."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def need_peers(*modules: str) -> None:
    """End the program with a sentence, before anything is measured or written, unless all modules are there.

    torch and torchvision, which timm asks for, must be of one index: both of PyPI or both of
    download.pytorch.org/whl/cpu.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{' and '.join(missing)} cannot be imported, so nothing is measured and no table changes: "
            "pip install -c constraints.txt -e '.[peers]'"
        )


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package, by its name as pip has it."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
