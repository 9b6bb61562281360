"""Watchdog of stalls: a thread that prints a line, with the ranks that lag, if no update finishes for some minutes."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dalle import distributed

WAITING, VALIDATING, PREVIEWING = "waiting for the other ranks", "validating", "drawing a preview"
SAVING, LOADING, COMPUTING = "saving", "loading data", "forward/backward"
PHASES = (WAITING, VALIDATING, PREVIEWING, SAVING, LOADING, COMPUTING)  # in the order of one iteration of the loop
GRACE_SECONDS = 10.0  # that the first rank waits for the reports of the others


class Position(NamedTuple):
    """Position of a rank in the training loop."""

    step: int  # updates done
    phase: str  # one of PHASES

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: a rank that is further ahead has a higher one."""
        return self.step, PHASES.index(self.phase)

    def __str__(self) -> str:
        return f"{self.phase} after update {self.step}"


class StallWatchdog:
    """Thread that watches the loop of this rank. It only prints: nothing is stopped.

    At a stall every rank writes its position to <run>/stall/rank-<number>.json. The first rank reads these files and
    prints the ranks that lag. A rank deletes its file when the next update is finished, and when it starts. A rank
    whose process hangs without running Python threads writes none.
    """

    def __init__(self, minutes: float, folder: Path, step: int, print_line: Callable[[str], None]):
        """Watch a run in `folder` after `step` updates.

        minutes: time without a finished update that counts as a stall; 0: watch nothing.
        print_line: prints a line; may do nothing on other ranks than the first.
        """
        self.seconds, self.folder, self.print_line = 60 * minutes, folder / "stall", print_line
        self.position = Position(step, WAITING)
        self.last_update = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall watchdog", daemon=True)

    def begin(self, phase: str) -> None:
        """Note that the loop begins `phase`, one of PHASES."""
        self.position = Position(self.position.step, phase)

    def finished(self, step: int) -> None:
        """Note that update number `step` is finished."""
        self.position = Position(step, WAITING)
        self.last_update = time.monotonic()

    def start(self) -> None:
        self.last_update = time.monotonic()
        if self.seconds > 0:
            self._delete_position()  # of a run that was killed at a stall: its position is not this run's
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def file(self) -> Path:
        """This rank's report of its position."""
        return self._file_of(distributed.get_rank())

    def _file_of(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"

    def _watch(self) -> None:
        reported: float | None = None  # time of the last update before the stall that is reported
        while not self._stopped.wait(min(self.seconds / 4, 5.0)):
            if reported is not None and reported != self.last_update:
                self.print_line(f"updates go on: the last one took {(self.last_update - reported) / 60:.3g} minutes")
                self._delete_position()
                reported = None
            if reported is None and time.monotonic() - self.last_update > self.seconds:
                reported = self.last_update
                self._write_position()
                if distributed.is_main_process():
                    self.print_line(self._describe(self.position))
        if reported is not None:
            self._delete_position()

    def _delete_position(self) -> None:
        with suppress(OSError):  # the disk may be what stalls
            self.file.unlink(missing_ok=True)

    def _write_position(self) -> None:
        if distributed.get_world_size() == 1:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(".part")
            temporary.write_text(json.dumps(self.position), encoding="utf-8")
            temporary.replace(self.file)  # without atomic_write, whose fsync waits for a disk that may be what stalls
        except OSError as error:
            self.print_line(f"the position of rank {distributed.get_rank()} could not be written: {error}")

    def _describe(self, position: Position) -> str:
        """Return the line about a stall: the phase, and the ranks that lag or do not answer."""
        text = f"no update has finished for {self.seconds / 60:.3g} minutes: {position}"
        if distributed.get_world_size() == 1:
            return f"{text}; training is not stopped"
        positions = self._positions(position)
        missing_ranks = [rank for rank in range(distributed.get_world_size()) if rank not in positions]
        return f"{text}; {lagging(positions)}{unanswered(missing_ranks)}; training is not stopped"

    def _positions(self, position: Position) -> dict[int, Position]:
        """Return this rank's `position` and those that other ranks report within `GRACE_SECONDS`."""
        end = time.monotonic() + GRACE_SECONDS
        while True:
            positions = {distributed.get_rank(): position}
            for rank in set(range(distributed.get_world_size())) - positions.keys():
                with suppress(OSError, ValueError):  # not written yet, or deleted since the rank goes on
                    positions[rank] = Position(*json.loads(self._file_of(rank).read_text(encoding="utf-8")))
            if len(positions) == distributed.get_world_size() or time.monotonic() > end or self._stopped.is_set():
                return positions
            time.sleep(0.1)


def lagging(positions: dict[int, Position]) -> str:
    """Describe the ranks that are behind the others."""
    first = min(positions.values(), key=lambda position: position.order)
    behind = [rank for rank, position in sorted(positions.items()) if position.order == first.order]
    if len(behind) == len(positions):
        return f"all ranks that answer are there ({numbers(behind)})"
    ahead = max(positions.values(), key=lambda position: position.order)
    return f"behind: {numbers(behind)}, {first}; ahead: {ahead}"


def unanswered(ranks: list[int]) -> str:
    return f"; no answer from {numbers(ranks)}" if ranks else ""


def numbers(ranks: list[int]) -> str:
    """Format rank numbers: "rank 3", "ranks 0, 1, 2"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
