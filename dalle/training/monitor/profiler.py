"""Profile of some updates: a trace for chrome://tracing or Perfetto, and on a GPU also a memory snapshot."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)

TRACE, SNAPSHOT = "trace.json.gz", "memory.pickle"
MAX_MEMORY_EVENTS = 200_000  # latest allocations in the memory snapshot


class UpdateProfiler:
    """Profiler of some updates in a row, counted from 1 where the command starts or resumes the run.

    Writes <run>/profile/trace.json.gz, and on CUDA memory.pickle for https://pytorch.org/memory_viz. A profile that
    fails ends with a warning; training goes on.
    """

    def __init__(
        self, updates: tuple[int, int] | None, folder: Path, device: torch.device, print_line: Callable[[str], None]
    ):
        """updates: first and last; None: profile nothing. folder: of the run. print_line: prints a line."""
        self.first, self.last = updates or (0, 0)
        self.folder, self.device, self.print_line = folder / "profile", device, print_line
        self.number = 0  # updates begun
        self.profile: profile | None = None

    def begin_update(self) -> None:
        self.number += 1
        if self.number == self.first:
            self._call(self._start)

    def end_update(self) -> None:
        if self.number == self.last:
            self.stop()

    def stop(self) -> None:
        """Write the profile if it has begun; also called when training ends in between."""
        if self.profile is not None:
            self._call(self._write)
            self.profile = None

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MAX_MEMORY_EVENTS)
        self.profile = profile(activities=activities, record_shapes=True)
        self.profile.start()

    def _write(self) -> None:
        assert self.profile is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels of the last update may still run
            torch.cuda.memory._dump_snapshot(str(self.folder / SNAPSHOT))
            torch.cuda.memory._record_memory_history(enabled=None)
        self.profile.stop()
        self.profile.export_chrome_trace(str(self.folder / TRACE))
        table = self.profile.key_averages().table(sort_by=f"self_{self.device.type}_time_total", row_limit=20)
        (self.folder / "operations.txt").write_text(table, encoding="utf-8")
        updates = f"updates {self.first} to {min(self.number, self.last)} of this command"
        self.print_line(
            f"profile of {updates}: {self.folder / TRACE}; the slowest operations: operations.txt beside it"
        )

    def _call(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # any error: a failed profile must not end the training run
            log.warning("profiling failed; training continues: %s", error)
            self.profile = None
