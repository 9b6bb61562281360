"""Where a run's numbers and pictures go: metrics.jsonl, previews/, and wandb."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dalle import checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases: kept on this disk unless told otherwise; never needed, and never fatal."""

    mode: str = "offline"  # offline (`wandb sync` uploads it later) | online | disabled
    project: str = "dalle"  # that runs are shown under
    entity: str | None = None  # whose project; None: the account's own
    group: str | None = None  # of runs that are shown together
    tags: tuple[str, ...] = ()  # to find the run by

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online", "disabled"):
            raise ValueError(f"wandb.mode={self.mode} is unknown; choose offline, online or disabled")


class Sink(Protocol):
    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, image: Image.Image) -> None: ...

    def close(self) -> None: ...


class Logger:
    """Hands everything to each of its sinks; ranks other than the first have none."""

    def __init__(self, *sinks: Sink):
        self.sinks = sinks

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for sink in self.sinks:
            sink.metrics(step, split, values)

    def picture(self, step: int, image: Image.Image) -> None:
        for sink in self.sinks:
            sink.picture(step, image)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


class MetricsFile:
    """metrics.jsonl: an object a line, with step, split and numbers by name; null where one is not finite."""

    def __init__(self, path: Path, step: int):
        """Append to `path`, without what it says about updates after `step`, where the run goes on."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        if kept != lines:
            with checkpoint.replacing(path) as beside:
                beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")

    def picture(self, step: int, image: Image.Image) -> None:
        pass

    def close(self) -> None:
        self.file.close()


class PreviewFolder:
    """previews/step-000500.png, and so on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        pass

    def picture(self, step: int, image: Image.Image) -> None:
        self.folder.mkdir(exist_ok=True)
        image.save(self.folder / f"step-{step:06d}.png")

    def close(self) -> None:
        pass


class Wandb:
    """The same in wandb. Whatever goes wrong there is said once, and the run goes on without it."""

    def __init__(self, config: WandbConfig, folder: Path, name: str, run_id: str, settings: Mapping[str, Any]):
        """Open the wandb run `run_id`, or go on with it; `settings` is shown as the run's config."""
        self.run: Any = None
        self._guarded(lambda: self._open(config, folder, name, run_id, settings))

    def _open(self, config: WandbConfig, folder: Path, name: str, run_id: str, settings: Mapping[str, Any]) -> None:
        import wandb  # takes a second, which runs without it should not pay

        options = {**asdict(config), "tags": list(config.tags)}
        quiet = wandb.Settings(silent=True, console="off")
        self.image = wandb.Image
        self.run = wandb.init(
            **options, dir=folder, name=name, id=run_id, resume="allow", config=dict(settings), settings=quiet
        )
        # a resumed run may repeat steps, which wandb's own count does not allow
        self.run.define_metric("*", step_metric="step")

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        named = {f"{split}/{name}": value for name, value in values.items()}
        self._guarded(lambda: self.run and self.run.log({"step": step, **named}))

    def picture(self, step: int, image: Image.Image) -> None:
        self._guarded(lambda: self.run and self.run.log({"step": step, "preview": self.image(image)}))

    def close(self) -> None:
        self._guarded(lambda: self.run and self.run.finish())

    def _guarded(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # whatever it is: a logging service must not end a training run
            self.run = None
            log.warning("wandb failed, and this run goes on without it: %s", error)


def open_logger(folder: Path, step: int, wandb: WandbConfig, run_id: str, settings: Mapping[str, Any]) -> Logger:
    """The sinks of a run in `folder` that goes on after `step` updates."""
    folder.mkdir(parents=True, exist_ok=True)
    sinks: list[Sink] = [MetricsFile(folder / "metrics.jsonl", step), PreviewFolder(folder / "previews")]
    if wandb.mode != "disabled":
        name = "/".join(folder.parts[-2:])
        sinks.append(Wandb(wandb, folder, name, run_id, settings))
    return Logger(*sinks)


def _step_of(line: str) -> float:
    """The step a line speaks of; infinite for a line that was cut off while it was written."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
