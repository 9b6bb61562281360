"""Validation common to the sizes of all models."""

from dataclasses import fields
from typing import Any


def check_sizes(config: Any) -> None:
    """Raise ValueError if a field of type `int` in the dataclass `config` is below 1. Optional fields are skipped."""
    for each in fields(config):
        if each.type is int and getattr(config, each.name) < 1:
            raise ValueError(f"{each.name}={getattr(config, each.name)} must be at least 1")
