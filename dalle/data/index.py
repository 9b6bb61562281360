"""What a source knows of its records without opening a picture, in arrays: a million records take tens of megabytes.

Worker processes share the arrays with the process that they were forked from. Lists of strings they would copy, by
counting references to each, and a million small objects take ten times the space to begin with.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


class Strings:
    """An unchanging row of strings: one block of bytes, and where in it each begins."""

    def __init__(self, blob: bytes, offsets: np.ndarray):
        # pyarrow's arrays of strings would do, but are a large dependency, here an extra
        self.blob = blob  # UTF-8, with surrogates for what in a file's name is not
        self.offsets = offsets  # (n + 1) int64; string i lies from offsets[i] to offsets[i + 1]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Strings":
        """These strings. Raises UnicodeEncodeError for surrogates other than those of `os.fsdecode`."""
        building = StringsBuilder()
        for text in texts:
            building.add(text)
        return building.built()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return self.encoded(index).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def encoded(self, index: int) -> bytes:
        """String `index` as bytes; IndexError outside [0, n)."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of {len(self)} strings")
        return self.blob[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: np.ndarray) -> "Strings":
        """The strings of these rows (m int64), in their order."""
        lengths = np.diff(self.offsets)[rows]
        # neighbours are copied together: most of a data set stays in one piece
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        view = memoryview(self.blob)
        blob = b"".join(view[self.offsets[run[0]] : self.offsets[run[-1] + 1]] for run in runs)
        return Strings(blob, np.r_[0, np.cumsum(lengths)])


class StringsBuilder:
    """Grows by one string at a time, and never holds them as objects."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._offsets = array("q", [0])

    def add(self, text: str) -> None:
        self._blob += text.encode("utf-8", "surrogateescape")
        self._offsets.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def built(self) -> Strings:
        return Strings(bytes(self._blob), np.array(self._offsets, np.int64))


class Lists:
    """For each record a tuple of strings, such as its captions."""

    def __init__(self, strings: Strings, first: np.ndarray):
        self.strings = strings
        self.first = first  # (n + 1) int64; record i has strings first[i] to first[i + 1]

    @classmethod
    def grouped(cls, owners: np.ndarray, strings: Strings, records: int) -> "Lists":
        """String j belongs to record owners[j]; within a record, strings keep their order."""
        first = np.r_[0, np.cumsum(np.bincount(owners, minlength=records))]
        return cls(strings.take(np.argsort(owners, kind="stable")), first)

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: int) -> tuple[str, ...]:
        return tuple(self.strings[place] for place in range(self.first[index], self.first[index + 1]))

    def take(self, rows: np.ndarray) -> "Lists":
        """The tuples of these rows (m int64), in their order."""
        lengths = np.diff(self.first)[rows]
        first = np.r_[0, np.cumsum(lengths)]
        within = np.arange(first[-1]) - np.repeat(first[:-1], lengths)
        return Lists(self.strings.take(np.repeat(self.first[rows], lengths) + within), first)


@dataclass(frozen=True)
class Index:
    """n records."""

    keys: Strings  # n
    captions: Lists  # n
    places: np.ndarray  # (n, k) int64: where the source finds each picture, if its key does not say

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: np.ndarray) -> "Index":
        """The records of these rows (m int64), in their order."""
        return Index(self.keys.take(rows), self.captions.take(rows), self.places[rows])

    def parts(self) -> tuple[bytes | np.ndarray, ...]:
        """All that it holds."""
        keys, captions = self.keys, self.captions
        return keys.blob, keys.offsets, captions.strings.blob, captions.strings.offsets, captions.first, self.places

    @property
    def nbytes(self) -> int:
        return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in self.parts())


class IndexBuilder:
    """Grows by one record at a time."""

    def __init__(self) -> None:
        self._keys, self._captions = StringsBuilder(), StringsBuilder()
        self._first = array("q", [0])
        self._places = array("q")

    def add(self, key: str, captions: Iterable[str], place: Iterable[int] = ()) -> None:
        """`place` is equally long for all records."""
        self._keys.add(key)
        for caption in captions:
            self._captions.add(caption)
        self._first.append(len(self._captions))
        self._places.extend(place)

    def built(self) -> Index:
        keys = self._keys.built()
        places = np.array(self._places, np.int64)
        width = len(places) // max(1, len(keys))
        captions = Lists(self._captions.built(), np.array(self._first, np.int64))
        return Index(keys, captions, places.reshape(len(keys), width))


def digest_of(*parts: bytes | np.ndarray) -> str:
    """32 hexadecimal digits that change when any of `parts`, or where one ends, does."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else part.tobytes()
        total.update(len(content).to_bytes(8, "little"))
        total.update(content)
    return total.hexdigest()
