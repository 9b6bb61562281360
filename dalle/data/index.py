"""Index of a data source: keys, captions and locations of all records, stored in arrays.

A million records take tens of megabytes. Forked DataLoader workers share the arrays with the parent process. Lists of
Python strings would be copied instead, because reference counting writes to their pages, and would take about ten
times the space.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


class StringArray:
    """Immutable array of strings: one block of bytes and the offset of each string."""

    def __init__(self, blob: bytes, offsets: np.ndarray):
        # pyarrow has string arrays, but it is a large dependency and only an extra here
        self.blob = blob  # UTF-8, with surrogates for bytes of file names that are not UTF-8
        self.offsets = offsets  # (n + 1) int64; string i is blob[offsets[i] : offsets[i + 1]]

    @classmethod
    def from_strings(cls, texts: Iterable[str]) -> "StringArray":
        """Build an array from strings. Raises UnicodeEncodeError for surrogates other than those of `os.fsdecode`."""
        builder = StringArrayBuilder()
        for text in texts:
            builder.add(text)
        return builder.build()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return self.encoded(index).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def encoded(self, index: int) -> bytes:
        """Return string `index` as bytes. Raises IndexError outside [0, n)."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of {len(self)} strings")
        return self.blob[self.offsets[index] : self.offsets[index + 1]]

    def take(self, indices: np.ndarray) -> "StringArray":
        """Return the strings at `indices` (m, int64), in that order."""
        lengths = np.diff(self.offsets)[indices]
        # copy consecutive rows in one slice: most selections keep long runs
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1) if len(indices) else []
        view = memoryview(self.blob)
        blob = b"".join(view[self.offsets[run[0]] : self.offsets[run[-1] + 1]] for run in runs)
        return StringArray(blob, np.r_[0, np.cumsum(lengths)])


class StringArrayBuilder:
    """Build `StringArray` one string at a time, without keeping Python string objects."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._offsets = array("q", [0])

    def add(self, text: str) -> None:
        self._blob += text.encode("utf-8", "surrogateescape")
        self._offsets.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def build(self) -> StringArray:
        return StringArray(bytes(self._blob), np.array(self._offsets, np.int64))


class RaggedStrings:
    """Ragged array of strings: a tuple of strings for each record, such as its captions."""

    def __init__(self, strings: StringArray, offsets: np.ndarray):
        self.strings = strings
        self.offsets = offsets  # (n + 1) int64; record i has strings[offsets[i] : offsets[i + 1]]

    @classmethod
    def from_owners(cls, owners: np.ndarray, strings: StringArray, records: int) -> "RaggedStrings":
        """Group strings by record: string j goes to record owners[j]. Strings of a record keep their order."""
        offsets = np.r_[0, np.cumsum(np.bincount(owners, minlength=records))]
        return cls(strings.take(np.argsort(owners, kind="stable")), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[str, ...]:
        return tuple(self.strings[position] for position in range(self.offsets[index], self.offsets[index + 1]))

    def take(self, indices: np.ndarray) -> "RaggedStrings":
        """Return the tuples at `indices` (m, int64), in that order."""
        lengths = np.diff(self.offsets)[indices]
        offsets = np.r_[0, np.cumsum(lengths)]
        positions_in_record = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return RaggedStrings(
            self.strings.take(np.repeat(self.offsets[indices], lengths) + positions_in_record), offsets
        )


@dataclass(frozen=True)
class Index:
    """Keys, captions and file locations of all n records of a data source."""

    keys: StringArray  # n
    captions: RaggedStrings  # n
    locations: np.ndarray  # (n, k) int64: location of each image, if its key is not enough to find it

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, indices: np.ndarray) -> "Index":
        """Return the records at `indices` (m, int64), in that order."""
        return Index(self.keys.take(indices), self.captions.take(indices), self.locations[indices])

    def buffers(self) -> tuple[bytes | np.ndarray, ...]:
        """Return the buffers of all arrays in the index, to compute their digest."""
        keys, captions = self.keys, self.captions
        return (
            keys.blob,
            keys.offsets,
            captions.strings.blob,
            captions.strings.offsets,
            captions.offsets,
            self.locations,
        )


class IndexBuilder:
    """Build an `Index` one record at a time."""

    def __init__(self) -> None:
        self._keys, self._captions = StringArrayBuilder(), StringArrayBuilder()
        self._offsets = array("q", [0])
        self._locations = array("q")

    def add(self, key: str, captions: Iterable[str], location: Iterable[int] = ()) -> None:
        """Append a record. `location` must have the same length for all records."""
        self._keys.add(key)
        for caption in captions:
            self._captions.add(caption)
        self._offsets.append(len(self._captions))
        self._locations.extend(location)

    def build(self) -> Index:
        keys = self._keys.build()
        locations = np.array(self._locations, np.int64)
        width = len(locations) // max(1, len(keys))
        captions = RaggedStrings(self._captions.build(), np.array(self._offsets, np.int64))
        return Index(keys, captions, locations.reshape(len(keys), width))


def digest_of(*parts: bytes | np.ndarray) -> str:
    """Return a digest of 32 hexadecimal digits that depends on the content and the length of each part."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else part.tobytes()
        hasher.update(len(content).to_bytes(8, "little"))
        hasher.update(content)
    return hasher.hexdigest()
