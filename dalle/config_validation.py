"""Validation of configs: sizes of models, and untrusted configs from JSON by type and range."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_sizes(config: Any) -> None:
    """Raise ValueError if a field of type `int` in the dataclass `config` is below 1. Optional fields are skipped."""
    for field in fields(config):
        if field.type is int and getattr(config, field.name) < 1:
            raise ValueError(f"{field.name}={getattr(config, field.name)} must be at least 1")


def config_from_json(schema: type, values: Mapping[str, Any], source: str) -> Any:
    """Build the dataclass `schema` from `values`, checking each against the type of its field.

    Raises:
        ValueError: an unknown field, a value that has another type or is not finite, or one that `schema` rejects; the
            message begins with `source`, the file's name.
    """
    hints = get_type_hints(schema)
    known = {field.name for field in fields(schema)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{source}: {schema.__name__} has no field {name!r}; the file may be from a newer version")
        if not has_type(value, hints[name]):
            raise ValueError(f"{source}: {name}={truncated_repr(value)} must be {describe_type(hints[name])}")
    try:
        return schema(**values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{source}: {error}") from error


def has_type(value: Any, hint: Any) -> bool:
    """Return True if `value`, from JSON, has the type `hint`; lists are accepted for tuples, integers for floats."""
    # pydantic could do this, but its messages span several lines and have their own wording
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(has_type(value, member) for member in arguments)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(has_type(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return value is None if hint is type(None) else isinstance(value, hint)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def describe_type(hint: Any) -> str:
    """Describe a type for error messages, such as "a whole number or null"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(member) for member in arguments)
    if origin in (list, tuple):
        return f"a list, each {describe_type(arguments[0])}"
    names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def truncated_repr(value: Any, length: int = 60) -> str:
    """Return `repr(value)`, cut after `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dict: {"a": {"b": 1}} becomes {"a.b": 1}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return found
