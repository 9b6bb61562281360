"""Skip counter: counts skipped items by reason, with one example each, so that every skip is reported."""

from collections import Counter
from collections.abc import Iterator, Mapping


class SkipCounter(Mapping[str, int]):
    """Mapping from reason to count, in the order of first occurrence."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one item for `reason`. The first example of a reason is kept."""
        self._counts[reason] += 1
        self._examples.setdefault(reason, example)

    def __getitem__(self, reason: str) -> int:
        if reason not in self._counts:
            raise KeyError(reason)
        return self._counts[reason]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __str__(self) -> str:
        """Format as "2 without a caption (first: a.png), 1 opted out by key (first: b.png)"."""
        return ", ".join(f"{n:,} {reason} (first: {printable(self._examples[reason])})" for reason, n in self.items())


def printable(name: str) -> str:
    """Escape a name for logs and terminals: file names may contain line breaks and control characters."""
    return name if name.isprintable() else ascii(name)
