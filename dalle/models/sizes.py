"""What every model's sizes have in common: there is at least one of each."""

from dataclasses import fields
from typing import Any


def check_sizes(config: Any) -> None:
    """Raises ValueError for an integer below 1 in the dataclass `config`; those that may be None are no sizes."""
    for each in fields(config):
        if each.type is int and getattr(config, each.name) < 1:
            raise ValueError(f"{each.name}={getattr(config, each.name)} must be at least 1")
