"""Progress display of training: a progress bar on a terminal, otherwise a line every 20 seconds."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20


class ProgressBar:
    """Progress of the run `title`: updates done, loss, images per second and time left."""

    def __init__(self, title: str, done: int, steps: int, batch_size: int, seconds: float, shown: bool):
        """Open the progress bar.

        title: name of the run, which begins each line.
        done: updates already done, of `steps`.
        batch_size: images per update.
        seconds: time spent in the updates already done.
        shown: print anything at all; the bar is shown on terminals only.
        """
        self.title, self.done, self.steps, self.batch_size, self.shown = title, done, steps, batch_size, shown
        self.last_report = done, seconds
        self.begin, self.begin_step = time.monotonic(), done
        self.last_line = self.begin
        self.bar = tqdm(
            total=steps,
            initial=done,
            desc=title,
            unit="step",
            dynamic_ncols=True,
            disable=not (shown and sys.stderr.isatty()),
        )

    def advance(self) -> None:
        self.done += 1
        self.bar.update()

    def report(self, loss: float, seconds: float) -> float:
        """Show `loss` and the speed since the last report, and return the speed in images per second.

        seconds: time spent in updates since the run began.
        """
        done_before, seconds_before = self.last_report
        self.last_report = self.done, seconds
        speed = (self.done - done_before) * self.batch_size / max(seconds - seconds_before, 1e-9)
        status = f"loss {loss:.4g}, {speed:.4g} images/s"
        now = time.monotonic()
        if not self.bar.disable:
            self.bar.set_postfix_str(status)
        elif self.done == self.steps or now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            seconds_left = (now - self.begin) / (self.done - self.begin_step) * (self.steps - self.done)
            self.print(f"{status}, {tqdm.format_interval(seconds_left)} left")
        return speed

    def print(self, text: str) -> None:
        """Print a line to stderr without breaking the progress bar."""
        if self.shown:
            tqdm.write(f"{self.title} {self.done}/{self.steps}: {text}", file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
