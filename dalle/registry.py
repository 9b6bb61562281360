"""Registry: the options of a setting such as stage=, data=, edit= or metrics=, by name.

An entry has a name, an optional dataclass of settings, and a function that builds the object. To add an option, write
a file and add one entry. Invalid entries raise an error when the registry is imported.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

Built = TypeVar("Built", covariant=True)


@dataclass(frozen=True)
class Entry(Generic[Built]):
    """Option of a registry: the function that builds it, the dataclass of its settings, and a text to display."""

    build: Callable[..., Built]
    config: type | None = None  # dataclass of its settings; a field `name` must default to the entry's name
    note: str = ""  # text to display: a title, or an attribution


class Registry(Mapping[str, Entry[Built]]):
    """Ordered mapping from name to entry, for one kind of option.

    Raises TypeError for an entry that is not callable, has settings that are not a dataclass, or whose settings have
    another name.
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry[Built]]):
        """kind: noun for an option in error messages, such as "data set". entries: the options by name."""
        self.kind = kind
        self._entries = dict(entries)
        for name, entry in entries.items():
            if not callable(entry.build):
                raise TypeError(f"{kind} {name!r}: {entry.build!r} cannot be called to build it")
            if entry.config is None:
                continue
            if not is_dataclass(entry.config):
                raise TypeError(f"{kind} {name!r}: its settings, {entry.config!r}, are no dataclass")
            named = next((field.default for field in fields(entry.config) if field.name == "name"), name)
            if named != name:
                raise TypeError(f"{kind} {name!r}: {entry.config.__name__} has name={named!r}")

    def __getitem__(self, name: str) -> Entry[Built]:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, name: Any) -> Entry[Built]:
        """Return the entry `name`. Raises ValueError, with all valid names, if there is none."""
        if not isinstance(name, str) or name not in self._entries:
            raise ValueError(f"there is no {self.kind} {name!r}; choose one of {', '.join(self)}")
        return self._entries[name]

    def for_config(self, config: Any) -> Entry[Built]:
        """Return the entry whose dataclass of settings is the type of `config`. Raises ValueError if there is none."""
        for entry in self._entries.values():
            if entry.config is not None and isinstance(config, entry.config):
                return entry
        raise ValueError(f"there is no {self.kind} with settings of type {type(config).__name__}")

    @property
    def configs(self) -> dict[str, type]:
        """Settings dataclasses by name, for the entries that have settings."""
        return {name: entry.config for name, entry in self._entries.items() if entry.config is not None}
