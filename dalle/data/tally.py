"""What was left out, and why: counts by reason, each with an example, so that nothing is lost in silence."""

from collections import Counter
from collections.abc import Iterator, Mapping


class Tally(Mapping[str, int]):
    """How often each reason was given, in the order in which reasons came up."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, example: str) -> None:
        """One more for `reason`; the first example is kept."""
        self._counts[reason] += 1
        self._first.setdefault(reason, example)

    def __getitem__(self, reason: str) -> int:
        if reason not in self._counts:
            raise KeyError(reason)
        return self._counts[reason]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __str__(self) -> str:
        """For example "2 without a caption (first: a.png), 1 opted out by key (first: b.png)"."""
        return ", ".join(f"{n:,} {reason} (first: {shown(self._first[reason])})" for reason, n in self.items())


def shown(name: str) -> str:
    """A name as it can stand in a log: file names may hold line breaks and what makes terminals do things."""
    return name if name.isprintable() else ascii(name)
