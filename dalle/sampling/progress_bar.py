"""Progress bar of sampling, and requests to stop."""

from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from dalle.progress import progress_bar

BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} images, {rate_noinv_fmt} [{elapsed}<{remaining}]"


class SamplingStopped(Exception):
    """Raised when sampling is asked to stop; images finished before are valid."""


class SamplingProgress:
    """Context manager that returns a function to call with each share of completed work, in images.

    The function raises `SamplingStopped` once `stop` returns True.
    """

    def __init__(self, images: int, shown: bool, stop: Callable[[], bool]):
        """Open the progress bar.

        images: number of images to sample.
        shown: show the bar, if stderr is a terminal or a notebook.
        stop: called after each share of work; sampling stops if it returns True.
        """
        self.stop = stop
        self.bar = progress_bar(images, "sampling", shown=shown, bar_format=BAR_FORMAT)

    def __enter__(self) -> Callable[[float], None]:
        return self._advance

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def _advance(self, images: float) -> None:
        self.bar.update(images)
        if self.stop():
            raise SamplingStopped


def print_line(text: str) -> None:
    """Print `text` as a line on standard output without breaking the progress bar."""
    tqdm.write(text)
