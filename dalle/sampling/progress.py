"""Progress bar of sampling on a terminal, and requests to stop."""

import sys
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} pictures, {rate_noinv_fmt} [{elapsed}<{remaining}]"


class Stopped(Exception):
    """Raised when sampling is asked to stop; images finished before are valid."""


class Progress:
    """Context manager that returns a function to call with each share of completed work, in images.

    The function raises `Stopped` once `stop` returns True.
    """

    def __init__(self, pictures: int, shown: bool, stop: Callable[[], bool]):
        """pictures: number of images to sample. shown: show a bar, which is done on terminals only."""
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
    """Print a line without breaking the progress bar."""
    tqdm.write(text)
