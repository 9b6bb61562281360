"""Jobs of a sweep: the folder of each, with its settings and status in job.json."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle import distributed
from dalle.ablation_config import DEFAULT_SIZE, AblationConfig, format_value, varied_values
from dalle.atomic_files import atomic_write
from dalle.signals import Interrupted
from dalle.training.run import RunConfigMismatchError

FILE = "job.json"
FORMAT = 1
RUNNING, FINISHED, FAILED = "running", "finished", "failed"


@dataclass(frozen=True)
class Job:
    """One job of a sweep: the values of its varied settings, and its seed."""

    ablation: str
    size: str
    values: dict[str, Any]  # dotted setting -> its value
    seed: int

    @classmethod
    def from_config(cls, config: Any) -> "Job":
        """Create the job from a command's options, which have an `ablation`, a `size` and a `seed`."""
        ablation: AblationConfig = config.ablation
        return cls(ablation.name, config.size or DEFAULT_SIZE, varied_values(config, ablation), config.seed)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Job":
        """Create the job from the content of a job.json."""
        return cls(content["ablation"], content["size"], content["values"], content["seed"])

    @property
    def name(self) -> str:
        """Name made of the varied settings, their values and the seed, such as kl_weight.end_6.6-seed_0."""
        varied = [f"{key.removeprefix('stage.')}_{format_value(value)}" for key, value in self.values.items()]
        return "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in [*varied, f"seed_{self.seed}"])

    def folder(self, out: str | Path) -> Path:
        """Return the job's folder below `out`. Each size of a sweep has its own parent folder."""
        sweep = self.ablation if self.size == DEFAULT_SIZE else f"{self.ablation}-{self.size}"
        return Path(out, "ablation", sweep, self.name)


@contextmanager
def record_status(job: Job, folder: Path) -> Iterator[None]:
    """Context that records the job's status in `folder`: running, then finished, or failed with the error.

    The status of an interrupted or killed job stays "running". On RunConfigMismatchError the previous
    job.json is restored.
    """
    path = folder / FILE
    previous = path.read_bytes() if path.is_file() else None
    _write(job, folder, RUNNING)
    try:
        yield
    except Interrupted:
        raise
    except RunConfigMismatchError:
        if distributed.is_main_process():
            path.unlink() if previous is None else path.write_bytes(previous)
        raise
    except Exception as error:  # any error: the sweep continues with other jobs, and its report shows the reason
        _write(job, folder, FAILED, f"{type(error).__name__}: {error}")
        raise
    _write(job, folder, FINISHED)


def _write(job: Job, folder: Path, status: str, error: str = "") -> None:
    if not distributed.is_main_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, **vars(job), "status": status, "error": error}
    with atomic_write(folder / FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
