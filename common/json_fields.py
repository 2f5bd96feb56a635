"""Fields of JSON objects that come from files: invalid fields are refused by name."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a field may hold, in words. A number may be whole; true is not a number.
KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
Kinds = tuple[type, ...]


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: the file does not exist, cannot be read or holds something else; names it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds {describe(values)} instead of an object")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def check_fields(
    values: Any, fields: Mapping[str, Kinds], place: str, *, others: bool = False
) -> dict[str, Any]:
    """The named fields of an object.

    Args:
        values: what should be an object with exactly these fields.
        fields: the kinds of value (keys of KINDS) that each field may hold.
        place: where the object is, such as "plan.json: stages[1]", for messages.
        others: accept further fields and leave them out.

    Raises:
        ValueError: a field is missing, unknown or holds something else; names the place and the field.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{place} must be an object, not {describe(values)}")
    for name, kinds in fields.items():
        if name not in values:
            raise ValueError(f"{place}: field {name!r} is missing")
        check_value(values[name], kinds, f"{place}: field {name!r}")
    unknown = sorted(values.keys() - fields.keys())
    if unknown and not others:
        raise ValueError(f"{place}: unknown field {unknown[0]!r}")
    return {name: values[name] for name in fields}


def check_list(values: list[Any], kinds: Kinds, place: str, length: int | None = None) -> tuple[Any, ...]:
    """The values of a list, all of these kinds, and `length` of them if it is given. Raises as
    `check_fields`."""
    if length is not None and len(values) != length:
        raise ValueError(f"{place} must have {length} values, not {len(values)}")
    for index, value in enumerate(values):
        check_value(value, kinds, f"{place}[{index}]")
    return tuple(values)


def check_value(value: Any, kinds: Kinds, place: str) -> None:
    """Refuse a value that has none of these kinds; raises like `check_fields`."""
    if not any(_is(value, kind) for kind in kinds):
        wanted = " or ".join(KINDS[kind] for kind in kinds)
        raise ValueError(f"{place} must be {wanted}, not {describe(value)}")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind


def describe(value: Any) -> str:
    """A value for a message, or its kind if it is long."""
    if isinstance(value, list | dict):
        return KINDS[type(value)]
    return "null" if value is None else repr(value)
