"""A job of a sweep: its folder, and job.json in it, which says which job it is and how it ended."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle import checkpoint, distributed
from dalle.ablation import SMALLEST, AblationConfig, values_of, word
from dalle.training.interruption import Interrupted
from dalle.training.run import AnotherRun

FILE = "job.json"
FORMAT = 1
RUNNING, FINISHED, FAILED = "running", "finished", "failed"


@dataclass(frozen=True)
class Job:
    """Which job of which sweep."""

    ablation: str
    size: str
    values: dict[str, Any]  # dotted setting -> its value
    seed: int

    @classmethod
    def of(cls, config: Any) -> "Job":
        """The job that a verb's options describe; they have an `ablation`, a `size` and a `seed`."""
        ablation: AblationConfig = config.ablation
        return cls(ablation.name, config.size or SMALLEST, values_of(config, ablation), config.seed)

    @classmethod
    def read(cls, written: dict[str, Any]) -> "Job":
        """The job that a job.json speaks of."""
        size = written["size"] if "size" in written else written["scale"]  # as it was called before
        return cls(written["ablation"], size, written["values"], written["seed"])

    @property
    def name(self) -> str:
        """kl_weight.end_6.6-seed_0: the settings' last words, and their values."""
        varied = [f"{key.removeprefix('stage.')}_{word(value)}" for key, value in self.values.items()]
        return "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in [*varied, f"seed_{self.seed}"])

    def folder(self, out: str | Path) -> Path:
        """Where the job lives. A sweep of another size has a folder of its own."""
        sweep = self.ablation if self.size == SMALLEST else f"{self.ablation}-{self.size}"
        return Path(out, "ablation", sweep, self.name)


@contextmanager
def recorded(job: Job, folder: Path) -> Iterator[None]:
    """Within it, `folder` says that the job runs; afterwards, that it has finished, or why it failed.

    A job that was stopped or killed goes on saying that it runs; where another run stands, its record stays.
    """
    path = folder / FILE
    stood = path.read_bytes() if path.is_file() else None
    _write(job, folder, RUNNING)
    try:
        yield
    except Interrupted:
        raise
    except AnotherRun:
        if distributed.is_first():
            path.unlink() if stood is None else path.write_bytes(stood)
        raise
    except Exception as error:  # whatever it is: a sweep goes on with other jobs, and its report has to say why
        _write(job, folder, FAILED, f"{type(error).__name__}: {error}")
        raise
    _write(job, folder, FINISHED)


def _write(job: Job, folder: Path, status: str, error: str = "") -> None:
    if not distributed.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    written = {"format": FORMAT, **vars(job), "status": status, "error": error}
    with checkpoint.replacing(folder / FILE) as beside:
        beside.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
