"""The sets that the flags of `packvit eval` name."""

from collections.abc import Iterable, Sequence

from packvit.evaluate.request.request import NamedSet


def name_sets(
    sets: Sequence[str], label_map: Sequence[str], label_sets: Sequence[str]
) -> dict[str, NamedSet]:
    """The sets besides the main one, by name.

    Args:
        sets, label_map, label_sets: the values of the flags with these names.

    Raises:
        ValueError: a value has the wrong form, a file is given for an unknown set, or two files for one set.
    """
    shards: dict[str, list[str]] = {}
    for text in sets:
        name, _, pattern = text.partition("=")
        if not name or not pattern:
            raise ValueError(f"--sets {text!r} must be NAME=SHARDS")
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
        ValueError: a value does not have this form or names none of --sets, or a name is given twice.
    """
    known = list(names)
    files: dict[str, str] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise ValueError(f"{flag} {text!r} must be NAME=FILE")
        if name not in known:
            raise ValueError(
                f"{flag} {text!r}: {name!r} is not one of the sets of --sets ({', '.join(known) or 'no set'})"
            )
        if name in files:
            raise ValueError(f"{flag} gives {name} two files")
        files[name] = file
    return files
