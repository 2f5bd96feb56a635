"""Checks of configurations that come from files: every field must have the type of its annotation."""

import dataclasses
from types import EllipsisType
from typing import Any, Literal, get_args, get_origin


def require(config: Any, condition: bool, message: str) -> None:
    """Refuse a configuration.

    Raises:
        ValueError: the condition does not hold; starts with the configuration's class.
    """
    if not condition:
        raise ValueError(f"{type(config).__name__}: {message}")


def check_types(config: Any) -> None:
    """Refuse values that the fields' annotations do not allow; an int may stand for a float.

    Raises:
        ValueError: names the field, its value and what it may be.
    """
    for f in dataclasses.fields(config):
        kind, value = f.type, getattr(config, f.name)
        if get_origin(kind) is Literal:
            choices = get_args(kind)
            require(config, value in choices, f"{f.name}={value!r} is not one of {', '.join(choices)}")
        elif get_origin(kind) is tuple:
            item, *more = get_args(kind)
            fits = isinstance(value, tuple) and all(_is(item, v) for v in value)
            if isinstance(more[0], EllipsisType):
                require(config, fits, f"{f.name}={value!r} must be a list of {item.__name__}")
            else:
                fits = fits and len(value) == 1 + len(more)
                require(config, fits, f"{f.name}={value!r} must be {1 + len(more)} of {item.__name__}")
        else:
            assert isinstance(kind, type)
            require(config, _is(kind, value), f"{f.name}={value!r} must be of type {kind.__name__}")


def _is(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind
