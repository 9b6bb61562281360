"""Registries: the choices that a setting such as stage=, data=, edit= or metrics= has, by name.

All of them have one shape: a name, a dataclass of settings where there are any, and a function that builds what was
chosen. A new choice is a file and one entry; what does not fit is refused when the registry is imported.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

Built = TypeVar("Built", covariant=True)


@dataclass(frozen=True)
class Entry(Generic[Built]):
    """One choice."""

    build: Callable[..., Built]
    config: type | None = None  # its settings, a dataclass; a field `name` of it has the choice's name as its default
    note: str = ""  # what people are shown of it: a title, or an attribution


class Registry(Mapping[str, Entry[Built]]):
    """The entries of one kind, in order.

    Raises TypeError for an entry that cannot be built, has settings that are no dataclass, or another name in them.
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry[Built]]):
        """kind: what error messages call a choice, as "data set"."""
        self.kind = kind
        self._entries = dict(entries)
        for name, entry in entries.items():
            if not callable(entry.build):
                raise TypeError(f"{kind} {name!r}: {entry.build!r} cannot be called to build it")
            if entry.config is None:
                continue
            if not is_dataclass(entry.config):
                raise TypeError(f"{kind} {name!r}: its settings, {entry.config!r}, are no dataclass")
            named = next((each.default for each in fields(entry.config) if each.name == "name"), name)
            if named != name:
                raise TypeError(f"{kind} {name!r}: {entry.config.__name__} has name={named!r}")

    def __getitem__(self, name: str) -> Entry[Built]:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def choose(self, name: Any) -> Entry[Built]:
        """Return the entry of that name. Raises ValueError, naming all, if there is none."""
        if name not in self._entries:
            raise ValueError(f"there is no {self.kind} {name!r}; choose one of {', '.join(self)}")
        return self._entries[name]

    def of(self, config: Any) -> Entry[Built]:
        """Return the entry whose settings `config` is. Raises ValueError if there is none."""
        for entry in self._entries.values():
            if entry.config is type(config):
                return entry
        raise ValueError(f"there is no {self.kind} with settings of type {type(config).__name__}")

    @property
    def configs(self) -> dict[str, type]:
        """The dataclasses of settings by name, of the entries that have any."""
        return {name: entry.config for name, entry in self._entries.items() if entry.config is not None}
