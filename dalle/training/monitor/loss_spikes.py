"""Loss spikes and non-finite updates, reported with the keys of the records in their batches."""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dalle import distributed
from dalle.training.logger import open_json_lines

log = logging.getLogger(__name__)
WINDOW = 100  # updates in the running mean and deviation; spikes are reported only after as many updates
MAX_REPORTS = 20  # reports of one run of each kind
MAX_PENDING = 1_000  # updates kept between two readings; with log_every=0 only the latest are examined
PRINTED_KEYS = 4


class Update(NamedTuple):
    """One update that was not examined yet."""

    step: int
    loss: Tensor  # scalar, mean of all ranks
    gradient_norm: Tensor  # scalar
    keys: list[str]  # of the records in this rank's micro-batches


class Spike(NamedTuple):
    """An update with a high or non-finite loss, or a non-finite gradient."""

    step: int
    loss: float
    gradient_norm: float
    mean: float  # running mean of the loss before this update
    deviation: float  # running standard deviation before this update

    @property
    def kind(self) -> str:
        return "spike" if math.isfinite(self.loss + self.gradient_norm) else "non-finite"

    @property
    def description(self) -> str:
        if self.kind == "non-finite":
            return f"loss {self.loss:.4g} and gradient norm {self.gradient_norm:.4g}"
        distance = (self.loss - self.mean) / self.deviation
        return f"loss {self.loss:.4g} is {distance:.3g} standard deviations above its running mean of {self.mean:.4g}"


class RunningLoss:
    """Exponential running mean and standard deviation of the loss, by which spikes are detected."""

    def __init__(self, deviations: float):
        """deviations: a loss is a spike if it exceeds the mean by more than so many standard deviations; 0: none is."""
        self.deviations, self.count, self.mean, self.variance = deviations, 0, 0.0, 0.0

    def is_spike(self, loss: float, gradient_norm: float) -> bool:
        """Return True for a spike or a non-finite value, and update mean and deviation.

        A spike enters them as the limit that it exceeds; non-finite values do not enter them.
        """
        if not math.isfinite(loss + gradient_norm):
            return True
        deviation = math.sqrt(self.variance)
        limit = self.mean + self.deviations * deviation
        spike = self.deviations > 0 and self.count >= WINDOW and deviation > 0 and loss > limit
        self.count += 1
        weight = 1 / min(self.count, WINDOW)
        difference = (limit if spike else loss) - self.mean
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)
        return spike


class LossSpikes:
    """Reporter of loss spikes and non-finite updates, one line each, and one line of spikes.jsonl.

    Losses stay on the device until `report`, which the loop calls when it logs. The running mean begins anew when a
    run resumes.
    """

    def __init__(self, deviations: float, folder: Path, step: int, print_line: Callable[[str], None]):
        """Resume after update `step`: later lines of spikes.jsonl are deleted. `print_line` prints a line."""
        self.running, self.print_line = RunningLoss(deviations), print_line
        self.pending: list[Update] = []
        self.path = folder / "spikes.jsonl"
        self.reported: Counter[str] = Counter()  # by kind
        if distributed.is_main_process() and self.path.exists():
            open_json_lines(self.path, step).close()
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.reported.update(json.loads(line)["kind"] for line in lines)

    def add(self, update: Update) -> None:
        """Remember an update until the next `report`. Does not synchronise with the device."""
        self.pending.append(update)
        del self.pending[:-MAX_PENDING]

    def report(self) -> None:
        """Examine the updates since the last call, and report spikes. All ranks must call it."""
        updates, self.pending = self.pending, []
        spikes = distributed.broadcast_object(self._find(updates))
        if not spikes:
            return
        keys = {update.step: update.keys for update in updates}
        keys_of_ranks = distributed.all_gather_object([keys[spike.step] for spike in spikes])
        if distributed.is_main_process():
            for spike, rank_keys in zip(spikes, zip(*keys_of_ranks, strict=True), strict=True):
                self._write(spike, [key for keys_of_rank in rank_keys for key in keys_of_rank])

    def _find(self, updates: list[Update]) -> list[Spike]:
        """Return the spikes on the first rank, as many as may still be reported."""
        spikes: list[Spike] = []
        if not updates or not distributed.is_main_process():
            return spikes
        reported = self.reported.copy()
        values = torch.stack([torch.stack([record.loss.float(), record.gradient_norm.float()]) for record in updates])
        for update, (loss, norm) in zip(updates, values.tolist(), strict=True):
            running = self.running.mean, math.sqrt(self.running.variance)
            spike = Spike(update.step, loss, norm, *running)
            if self.running.is_spike(loss, norm) and reported[spike.kind] < MAX_REPORTS:
                reported[spike.kind] += 1
                spikes.append(spike)
        return spikes

    def _write(self, spike: Spike, keys: Sequence[str]) -> None:
        self.reported[spike.kind] += 1
        numbers = {name: value if math.isfinite(value) else None for name, value in spike._asdict().items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**numbers, "kind": spike.kind, "keys": keys}) + "\n")
        except OSError as error:  # a full disk, for instance
            log.warning("the loss spike of update %d could not be written; training continues: %s", spike.step, error)
        shown = ", ".join(keys[:PRINTED_KEYS]) + (f" and {len(keys) - PRINTED_KEYS} more" * (len(keys) > PRINTED_KEYS))
        batch = f"; records {shown}, all in {self.path}" if keys else f"; see {self.path}"
        last = "; later ones are not reported" if self.reported[spike.kind] == MAX_REPORTS else ""
        self.print_line(f"update {spike.step}: {spike.description}{batch}{last}")
