import errno
import json
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from dalle.training.logger import MetricsFile, WandbConfig, open_logger
from dalle.training.progress_bar import ProgressBar


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_is_json_with_step_split_and_metrics(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.metrics(5, "train", {"loss": 0.25, "gradient_norm": float("nan")})
    file.metrics(5, "val", {"loss": float("inf")})
    file.close()
    assert read(tmp_path / "metrics.jsonl") == [
        {"step": 5, "split": "train", "loss": 0.25, "gradient_norm": None},
        {"step": 5, "split": "val", "loss": None},
    ]


def test_resume_truncates_metrics_after_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n{"step": 10}\n{"step": 15}\n{"step": 7')
    MetricsFile(path, 10).close()
    assert read(path) == [{"step": 5}, {"step": 10}]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_unknown_wandb_modes_raise():
    with pytest.raises(ValueError, match="offline, online or disabled"):
        WandbConfig(mode="off")


class FakeWandb(types.ModuleType):
    """Records its calls, and fails once `broken` is set."""

    def __init__(self):
        super().__init__("wandb")
        self.options, self.logged, self.broken, self.finished = {}, [], False, False
        self.Image = lambda image: image
        self.Settings = dict

    def init(self, **options):
        self.options = options
        if self.broken:
            raise RuntimeError("no network")
        return self

    def define_metric(self, *_, **__): ...

    def log(self, values):
        if self.broken:
            raise RuntimeError("no network")
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_logs_metrics_and_images_and_resumes_same_run(tmp_path, wandb):
    logger = open_logger(tmp_path, 0, WandbConfig(), "abc123", {"seed": 0})
    logger.metrics(5, "val", {"loss": 0.5})
    logger.image(5, Image.new("RGB", (2, 2)))
    logger.close()
    assert (wandb.options["id"], wandb.options["resume"], wandb.options["mode"]) == ("abc123", "allow", "offline")
    assert wandb.logged[0] == {"step": 5, "val/loss": 0.5}
    assert set(wandb.logged[1]) == {"step", "preview"}
    assert wandb.finished
    assert (tmp_path / "previews" / "step-000005.png").exists()


@pytest.mark.parametrize("from_the_start", [False, True])
def test_wandb_failure_warns_once_and_training_goes_on(tmp_path, wandb, caplog, from_the_start):
    wandb.broken = from_the_start
    logger = open_logger(tmp_path, 0, WandbConfig(), "abc123", {})
    wandb.broken = True
    for step in (5, 10):
        logger.metrics(step, "train", {"loss": 0.5})
        logger.image(step, Image.new("RGB", (2, 2)))
    logger.close()
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [5, 10]
    assert len(list((tmp_path / "previews").glob("step-*.png"))) == 2
    assert [record.message for record in caplog.records] == [
        "wandb failed and is disabled for this run; training continues: no network"
    ]


def test_full_disk_warns_once_for_each_output_and_leaves_no_broken_preview(tmp_path, monkeypatch, caplog):
    def save(image, path, format):
        Path(path).write_bytes(b"half of a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    logger = open_logger(tmp_path, 0, WandbConfig(mode="disabled"), "abc123", {})
    logger.image(5, Image.new("RGB", (2, 2)))
    logger.image(10, Image.new("RGB", (2, 2)))
    metrics = logger.sinks[0]
    assert isinstance(metrics, MetricsFile)
    with open("/dev/full", "a", buffering=1) as metrics.file, monkeypatch.context() as full_disk:
        full_disk.setattr(Image.Image, "save", save)
        for step in (15, 20):
            logger.metrics(step, "train", {"loss": 0.5})
            logger.image(step, Image.new("RGB", (2, 2)))
        logger.close()
    assert caplog.messages == [
        "train metrics of step 15 could not be written; training continues: [Errno 28] No space left on device",
        "the preview of step 15 could not be written; training continues: [Errno 28] No space left on device",
        "the last metrics could not be written; training continues: [Errno 28] No space left on device",
        "the previews could not be joined: [Errno 28] No space left on device",
    ]
    assert {file.name for file in (tmp_path / "previews").iterdir()} == {"step-000005.png", "step-000010.png"}


def test_disabled_wandb_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    logger = open_logger(tmp_path, 0, WandbConfig(mode="disabled"), "abc123", {})
    logger.metrics(1, "train", {"loss": 1.0})
    logger.close()


def test_progress_is_printed_as_lines_without_a_terminal(capsys):
    progress = ProgressBar("dvae", 0, 100, batch_size=8, seconds=0.0, shown=True)
    for step in range(1, 101):
        progress.advance()
        speed = progress.speed(0.1 * step)
        assert speed == pytest.approx(80)
        progress.report({"loss": 0.5, "root": 0.1, "images_per_second": speed, "mfu": 0.25, "memory_gb": 1.5})
    progress.close()
    assert capsys.readouterr().err == "dvae 100/100: loss 0.5, 80 images/s, mfu 25.0%, 1.5 GB, 00:00 left\n"


def test_only_rank_zero_prints(capsys):
    progress = ProgressBar("dvae", 0, 1, batch_size=8, seconds=0.0, shown=False)
    progress.advance()
    progress.report({"loss": 0.5})
    progress.print("hello")
    assert capsys.readouterr().err == ""
