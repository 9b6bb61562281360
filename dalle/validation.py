"""Validation of untrusted configs from JSON, by type and range, before anything is built."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints


def validated(schema: type, values: Mapping[str, Any], where: str) -> Any:
    """Build the dataclass `schema` from `values`, checking each against the type of its field.

    Raises:
        ValueError: an unknown field, a value that has another type or is not finite, or one that `schema` rejects; the
            message begins with `where`.
    """
    hints = get_type_hints(schema)
    known = {each.name for each in fields(schema)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{where}: {name!r} is no setting of a {schema.__name__}, or of a newer version of it")
        if not fits(value, hints[name]):
            raise ValueError(f"{where}: {name}={shortened(value)} must be {in_words(hints[name])}")
    try:
        return schema(**values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{where}: {error}") from error


def fits(value: Any, hint: Any) -> bool:
    """Return True if `value`, from JSON, has the type `hint`; lists are accepted for tuples, integers for floats."""
    # pydantic could do this, but its messages span several lines and have their own wording
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(each, arguments[0]) for each in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return value is None if hint is type(None) else isinstance(value, hint)


def is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def in_words(hint: Any) -> str:
    """Describe a type for error messages, such as "a whole number or null"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(each) for each in arguments)
    if origin in (list, tuple):
        return f"a list, each {in_words(arguments[0])}"
    names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def shortened(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
