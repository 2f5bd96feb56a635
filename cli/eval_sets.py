"""The sets that the flags of `packvit eval` name."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from packvit.evaluate import MAIN


@dataclass(frozen=True)
class NamedSet:
    """What a set is made of: shards, and the file that says what its labels mean, if there is one."""

    shards: Sequence[str]
    label_map: str | None = None
    label_sets: str | None = None


def name_sets(
    main: Sequence[str],
    sets: Sequence[str],
    label_map: Sequence[str],
    label_sets: Sequence[str],
    taken: Collection[str],
) -> dict[str, NamedSet]:
    """The sets by name, `main` first.

    Args:
        main: shards of the main set.
        sets, label_map, label_sets: of the flags with these names.
        taken: names that no set may have, because corrupted sets have them.

    Raises:
        ValueError: a name cannot be used, or a file is given for a set that there is not, or two for one.
    """
    shards = {MAIN: list(main)}
    for text in sets:
        name, equals, pattern = text.partition("=")
        if not equals or not pattern or not re.fullmatch(r"[\w.-]+", name) or name == MAIN:
            raise ValueError(
                f"--sets {text!r} must be NAME=SHARDS with a name of letters, digits, ., - and _ that is not "
                f"{MAIN}"
            )
        if name in taken:
            raise ValueError(f"--sets {text!r}: {name} is the name of a corrupted set, take another")
        shards.setdefault(name, []).append(pattern)
    maps, answers = (
        name_files("--label-map", label_map, shards),
        name_files("--label-sets", label_sets, shards),
    )
    for name in maps.keys() & answers.keys():
        raise ValueError(f"--label-map and --label-sets both say what the labels of {name} are")
    return {name: NamedSet(own, maps.get(name), answers.get(name)) for name, own in shards.items()}


def name_files(flag: str, texts: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """The files of NAME=FILE by the set's name.

    Raises:
        ValueError: one is not of this form or of none of --sets, or a name is given twice.
    """
    known = [name for name in names if name != MAIN]
    files: dict[str, str] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise ValueError(f"{flag} {text!r} must be NAME=FILE")
        if name not in known:
            raise ValueError(
                f"{flag} {text!r}: {name!r} is none of the sets of --sets ({', '.join(known) or 'no set'})"
            )
        if name in files:
            raise ValueError(f"{flag} gives {name} two files")
        files[name] = file
    return files
