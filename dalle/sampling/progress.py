"""How far drawing is, for people on a terminal; and whether it has been asked to stop."""

import sys
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} pictures, {rate_noinv_fmt} [{elapsed}<{remaining}]"


class Stopped(Exception):
    """Drawing was asked to stop; what was finished before is good."""


class Progress:
    """While entered, a function to be called with each share of work that is done, in pictures.

    It raises `Stopped` once `stop` says so.
    """

    def __init__(self, pictures: int, shown: bool, stop: Callable[[], bool]):
        """For so many pictures to be drawn. shown: whether to show a bar, which is done on terminals only."""
        self.stop = stop
        self.bar = tqdm(
            total=pictures,
            desc="drawing",
            unit=" pictures",
            bar_format=BAR,
            dynamic_ncols=True,
            disable=not (shown and sys.stderr.isatty()),
        )

    def __enter__(self) -> Callable[[float], None]:
        return self._advance

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def _advance(self, pictures: float) -> None:
        self.bar.update(pictures)
        if self.stop():
            raise Stopped


def say(text: str) -> None:
    """Print a line without breaking the bar."""
    tqdm.write(text)
