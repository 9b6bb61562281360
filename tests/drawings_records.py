"""Records of the data source `drawings` by kind, and their concepts, for tests."""

from dalle.data.drawings.source import DrawingsSource


def of_kind(source: DrawingsSource, kind: str) -> list[int]:
    """Return the indices of the records of a kind, such as drawing, colour or panels."""
    return [index for index, record in enumerate(source.records) if record.kind == kind]


def concepts(source: DrawingsSource) -> set[str]:
    """Return the concepts of all pictures in the records of a source."""
    pictures = source.drawings.pictures
    numbers = [number for record in source.records for number in (record.first, record.second) if number >= 0]
    return {pictures[number].subject.concept for number in numbers}
