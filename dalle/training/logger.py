"""Logging of metrics and preview images to metrics.jsonl, previews/ and wandb."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from PIL import Image

from dalle.atomic_files import atomic_write
from dalle.training.preview_strip import write_strip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases logging, by default to local files. It is optional, and its errors do not stop training."""

    mode: str = "offline"  # offline (upload later with `wandb sync`) | online | disabled
    project: str = "dalle"  # wandb project
    entity: str | None = None  # user or team that owns the project; None: the account's default
    group: str | None = None  # group of runs in wandb
    tags: tuple[str, ...] = ()  # wandb tags of the run

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online", "disabled"):
            raise ValueError(f"wandb.mode={self.mode} is unknown; choose offline, online or disabled")


class Sink(Protocol):
    """Destination of metrics and preview images."""

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, image: Image.Image) -> None: ...

    def close(self) -> None: ...


class Logger:
    """Logger that forwards to each of its sinks; only the first rank has any.

    A sink that cannot write, on a full disk for instance, gives one warning until it can again; training continues.
    """

    def __init__(self, *sinks: Sink):
        self.sinks = sinks
        self.failing: set[tuple[int, str]] = set()  # ids of sinks with the outputs that could not be written last time

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._call_all(f"{split} metrics", f" of step {step}", lambda sink: sink.metrics(step, split, values))

    def image(self, step: int, image: Image.Image) -> None:
        self._call_all("the preview", f" of step {step}", lambda sink: sink.image(step, image))

    def close(self) -> None:
        self._call_all("the last metrics", "", lambda sink: sink.close())

    def _call_all(self, output: str, of_step: str, function: Callable[[Sink], None]) -> None:
        for sink in self.sinks:
            try:
                function(sink)
                self.failing.discard((id(sink), output))
            except OSError as error:
                if (id(sink), output) not in self.failing:
                    log.warning("%s%s could not be written; training continues: %s", output, of_step, error)
                self.failing.add((id(sink), output))


class MetricsFile:
    """metrics.jsonl: one JSON object per line with step, split and metrics by name; non-finite values are null."""

    def __init__(self, path: Path, step: int):
        """Open `path` for appending, and delete lines about updates after `step`, where the run resumes."""
        self.file = open_json_lines(path, step)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")

    def image(self, step: int, image: Image.Image) -> None:
        pass

    def close(self) -> None:
        self.file.close()


class PreviewFolder:
    """Folder of preview images: previews/step-000500.png, and so on, and at the end strip.png with some of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.has_new_images = False

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        pass

    def image(self, step: int, image: Image.Image) -> None:
        self.folder.mkdir(exist_ok=True)
        with atomic_write(self.folder / f"step-{step:06d}.png") as temporary:  # the strip reads all of them
            image.save(temporary, format="PNG")
        self.has_new_images = True

    def close(self) -> None:
        try:
            if self.has_new_images:
                write_strip(self.folder, title="/".join(self.folder.parts[-3:-1]))
        except Exception as error:  # any error: the run is finished
            log.warning("the previews could not be joined: %s", error)


class Wandb:
    """wandb sink. After an error it logs one warning and is disabled; training continues."""

    def __init__(self, config: WandbConfig, folder: Path, name: str, run_id: str, settings: Mapping[str, Any]):
        """Start or resume the wandb run `run_id`.

        folder: folder of its local files.
        name: name to display.
        settings: the run's config, as wandb shows it.
        """
        self.run: Any = None
        self._call(lambda: self._open(config, folder, name, run_id, settings))

    def _open(self, config: WandbConfig, folder: Path, name: str, run_id: str, settings: Mapping[str, Any]) -> None:
        import wandb  # slow to import, so only runs that use it do

        options = {**asdict(config), "tags": list(config.tags)}
        wandb_settings = wandb.Settings(silent=True, console="off")
        self.wandb_image = wandb.Image
        self.run = wandb.init(
            **options, dir=folder, name=name, id=run_id, resume="allow", config=dict(settings), settings=wandb_settings
        )
        # a resumed run may repeat steps, which wandb's own step counter does not allow
        self.run.define_metric("*", step_metric="step")

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        prefixed = {f"{split}/{name}": value for name, value in values.items()}
        self._call(lambda: self.run and self.run.log({"step": step, **prefixed}))

    def image(self, step: int, image: Image.Image) -> None:
        self._call(lambda: self.run and self.run.log({"step": step, "preview": self.wandb_image(image)}))

    def close(self) -> None:
        self._call(lambda: self.run and self.run.finish())

    def _call(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:  # any error: a logging service must not end a training run
            self.run = None
            log.warning("wandb failed and is disabled for this run; training continues: %s", error)


def open_logger(folder: Path, step: int, wandb: WandbConfig, run_id: str, settings: Mapping[str, Any]) -> Logger:
    """Open the logger of a run in `folder` that resumes after `step` updates."""
    folder.mkdir(parents=True, exist_ok=True)
    sinks: list[Sink] = [MetricsFile(folder / "metrics.jsonl", step), PreviewFolder(folder / "previews")]
    if wandb.mode != "disabled":
        name = "/".join(folder.parts[-2:])
        sinks.append(Wandb(wandb, folder, name, run_id, settings))
    return Logger(*sinks)


def open_json_lines(path: Path, step: int) -> TextIO:
    """Open a file of JSON objects, one per line, for appending, and delete lines about updates after `step`."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept_lines = [line for line in lines if _step_of(line) <= step]
    if kept_lines != lines:
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept_lines), encoding="utf-8")
    return path.open("a", encoding="utf-8", buffering=1)


def _step_of(line: str) -> float:
    """Return the step of a line of JSON; infinity for a truncated line."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
