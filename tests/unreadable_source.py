"""A data source of which some records cannot be read, for tests."""

from typing import Any

from dalle.data.source import Record, Source, UnreadableRecord


class PartlyUnreadable:
    """The records of `source`, of which those in `broken` raise `UnreadableRecord`."""

    def __init__(self, source: Source, broken: set[int]):
        self.source, self.broken = source, broken

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        if index in self.broken:
            raise UnreadableRecord(f"record {index}", "broken for a test")
        return self.source[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)
