"""Progress display of training: a progress bar on a terminal or in a notebook, otherwise a line every 20 seconds."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from dalle.progress import progress_bar

SECONDS_BETWEEN_LINES = 20
SHOWN = {  # metric -> its text
    "loss": "loss {:.4g}",
    "images_per_second": "{:.4g} images/s",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "mfu {:.1%}",
    "memory_gb": "{:.3g} GB",
}


class ProgressBar:
    """Progress of the run `title`: updates done, loss, throughput, memory and time left."""

    def __init__(self, title: str, done: int, steps: int, batch_size: int, seconds: float, shown: bool):
        """Open the progress bar.

        title: name of the run, which begins each line.
        done: updates already done, of `steps`.
        batch_size: images per update.
        seconds: time spent in the updates already done.
        shown: print anything at all; the bar is shown on terminals and in notebooks.
        """
        self.title, self.done, self.steps, self.batch_size, self.shown = title, done, steps, batch_size, shown
        self.last_report = done, seconds
        self.begin, self.begin_step = time.monotonic(), done
        self.last_line = self.begin
        self.bar = progress_bar(steps, title, "steps", shown=shown, initial=done, delay=0)

    def advance(self) -> None:
        self.done += 1
        self.bar.update()

    def speed(self, seconds: float) -> float:
        """Return the images per second since the last call. seconds: time spent in updates since the run began."""
        done_before, seconds_before = self.last_report
        self.last_report = self.done, seconds
        return (self.done - done_before) * self.batch_size / max(seconds - seconds_before, 1e-9)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Show the metrics with the names in `SHOWN`, and the time left."""
        status = ", ".join(text.format(metrics[name]) for name, text in SHOWN.items() if name in metrics)
        now = time.monotonic()
        if not self.bar.disable:
            self.bar.set_postfix_str(status)
        elif self.done == self.steps or now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            seconds_left = (now - self.begin) / (self.done - self.begin_step) * (self.steps - self.done)
            self.print(f"{status}, {tqdm.format_interval(seconds_left)} left")

    def print(self, text: str) -> None:
        """Print a line to stderr without breaking the progress bar."""
        if self.shown:
            tqdm.write(f"{self.title} {self.done}/{self.steps}: {text}", file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
