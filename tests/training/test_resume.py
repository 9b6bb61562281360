"""A run that was stopped, killed or extended ends with the same bits as an uninterrupted one."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from line_stage import BlockStage, LineConfig, LineStage, fit

from dalle import checkpoint, weights_files
from dalle.checkpoint import CheckpointError
from dalle.signals import Interrupted, StopRequest
from dalle.training import state_files
from dalle.training.auto_precision import Precision
from dalle.training.compression import CompressionConfig
from dalle.training.ema import EMAConfig
from dalle.training.optimizer import OptimizerConfig, PlateauConfig
from dalle.training.schedules import Schedule

# dropout, noise, accumulation, warm-up, plateaus and the average's own rhythm all have something to remember
FULL = replace(
    LineConfig(),
    accumulate=2,
    optimizer=OptimizerConfig(
        Schedule("cosine", 0.1, 0.01, 20),
        warmup_steps=3,
        plateau=PlateauConfig(max_reductions=3, window=4, threshold=0.5),
    ),
)
CLOCKS = {"seconds", "images_per_second", "tokens_per_second", "mfu", "memory_gb"}


class Breaking(LineStage):
    """Call `act` when update 13 begins: two updates after the last line of metrics, three after the last save."""

    def __init__(self, config, act):
        super().__init__(config)
        self.acts = [act]

    def loss(self, model, batch, step, generator):
        if step == 13 and self.acts:
            self.acts.pop()()
        return super().loss(model, batch, step, generator)


class BreakingBlocks(Breaking, BlockStage):
    pass


def everything(folder):
    """Return everything that a run writes, except times."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in CLOCKS} for line in metrics]
    loaded = state_files.load_state(folder)
    assert loaded is not None
    step, tensors, scalars = loaded
    plain = {name: tensor.tolist() for name, tensor in tensors.items()}
    scalars = {name: value for name, value in scalars.items() if name not in {"seconds", "wandb_id"}}
    return step, plain, scalars, metrics, checkpoint.digest(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    fit(folder, FULL)
    return everything(folder)


def test_crashed_run_resumes_bitwise(tmp_path, uninterrupted):
    def crash():
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, FULL, Breaking(FULL, crash))
    assert everything(tmp_path)[0] == 10
    fit(tmp_path, FULL)
    assert everything(tmp_path) == uninterrupted


OPTIONS = {
    "16-bit moments": {"optimizer": replace(FULL.optimizer, moments="paper16", variance_clip=5.0)},
    "Muon": {"optimizer": replace(FULL.optimizer, kind="muon")},
    "a scale per branch": {"precision": "float16", "gradient_scaling": "resblock"},
    "a scale for all": {"gradient_exponent": 3},
    "fixed PowerSGD": {"compression": CompressionConfig(rank=2, blocks=2)},
    "warm PowerSGD": {"compression": CompressionConfig(rank=2, blocks=1, basis="warm")},
    "16-bit PowerSGD": {"compression": CompressionConfig(rank=2, blocks=2, precision="paper16")},
    "recomputing": {"recompute": True},
    "bfloat16 weights": {"parameters": "bfloat16", "precision": "auto"},
    "bfloat16 weights without average": {"parameters": "bfloat16", "precision": "auto", "ema": EMAConfig(0.0)},
}


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_crashed_run_resumes_bitwise_with_every_option(tmp_path, changes):
    config = replace(FULL, **changes)
    fit(tmp_path / "whole", config, BlockStage(config))
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "parts", config, BreakingBlocks(config, lambda: 1 / 0))
    assert everything(tmp_path / "parts")[0] == 10
    fit(tmp_path / "parts", config, BlockStage(config))
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_stop_request_finishes_update_saves_and_resumes_bitwise(tmp_path, uninterrupted, number):
    with pytest.raises(Interrupted, match=r"stopped at step 14 of 20, .*run the same command again") as stopped:
        fit(tmp_path, FULL, Breaking(FULL, lambda: signal.raise_signal(number)))
    assert stopped.value.signum == number
    assert everything(tmp_path)[0] == 14
    fit(tmp_path, FULL)
    assert everything(tmp_path) == uninterrupted


def test_stop_request_at_a_validation_step_still_validates(tmp_path, uninterrupted):
    for _ in range(20):  # stopped after every single update
        stage = LineStage(FULL)
        inner = stage.loss

        def stopping(*arguments, inner=inner):
            signal.raise_signal(signal.SIGTERM)  # once per micro-batch: schedulers may ask twice
            return inner(*arguments)

        stage.loss = stopping
        with pytest.raises(Interrupted):
            fit(tmp_path, FULL, stage)
    assert sorted(map(str, everything(tmp_path)[3])) == sorted(map(str, uninterrupted[3]))
    assert everything(tmp_path)[1] == uninterrupted[1]


def test_killed_process_resumes_bitwise(tmp_path, uninterrupted):
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from line_stage import fit; from test_resume import FULL, Breaking;"
        "fit(Path(sys.argv[1]), FULL, Breaking(FULL, lambda: os.kill(os.getpid(), signal.SIGKILL)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "spl')  # as if it had died in the middle of a line
    fit(tmp_path, FULL)
    assert everything(tmp_path) == uninterrupted


def test_run_whose_first_state_could_not_be_written_begins_again(tmp_path, uninterrupted, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="free some disk space and run again"):
        patch.setattr(state_files, "write_tensors", full_disk)
        fit(tmp_path, FULL)
    assert weights_files.has_weights(tmp_path) and state_files.newest_state(tmp_path) is None
    fit(tmp_path, FULL)
    assert everything(tmp_path) == uninterrupted
    shutil.rmtree(tmp_path / "state" / "00000020")
    with pytest.raises(CheckpointError, match="has a model but no training state"):  # which would be overwritten
        fit(tmp_path, FULL)


def test_second_stop_request_interrupts_at_once():
    usual = signal.getsignal(signal.SIGINT)  # in the background of a shell it is ignored
    with pytest.raises(KeyboardInterrupt), StopRequest() as request:
        signal.raise_signal(signal.SIGINT)
        assert request.signum == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual


def test_finished_run_is_not_trained_again(tmp_path):
    fit(tmp_path, FULL)
    before = everything(tmp_path)

    class Untouchable(LineStage):
        def batches(self, start):
            pytest.fail("a finished run was trained again")

    fit(tmp_path, FULL, Untouchable(FULL))
    assert everything(tmp_path) == before


def test_finished_run_can_be_extended(tmp_path):
    constant = replace(FULL, optimizer=OptimizerConfig(Schedule(start=0.01)), steps=12)
    fit(tmp_path / "extended", constant)
    longer = replace(constant, steps=21)
    fit(tmp_path / "extended", longer)
    fit(tmp_path / "at once", longer)
    extended, at_once = everything(tmp_path / "extended"), everything(tmp_path / "at once")
    assert extended[1] == at_once[1]
    assert extended[0] == 21


@pytest.mark.parametrize(("first", "then"), [({}, {"accumulate": 4}), ({"accumulate": 4}, {"recompute": True})])
def test_run_that_resumes_with_other_memory_settings_has_the_same_updates(tmp_path, first, then):
    exact = LineConfig(dropout=0.0, noise=0.0, optimizer=OptimizerConfig(Schedule(start=3e-3), eps=1e-3))
    whole = fit(tmp_path / "whole", exact, BlockStage(exact)).model
    before, after = replace(exact, steps=10, **first), replace(exact, **then)
    fit(tmp_path / "parts", before, BlockStage(before))
    parts = fit(tmp_path / "parts", after, BlockStage(after)).model
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_auto_precision_is_kept_on_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("dalle.training.state.choose_precision", lambda *_: Precision("bfloat16", "for a test"))
    config = replace(FULL, precision="auto")
    fit(tmp_path, config)
    monkeypatch.setattr("dalle.training.state.choose_precision", lambda *_: Precision("float32", "for a test"))
    fit(tmp_path, replace(config, steps=25))
    scalars = state_files.read_scalars(tmp_path)
    assert scalars is not None
    assert scalars["precision"] == "bfloat16"


def test_changed_settings_raise_and_leave_the_run_unchanged(tmp_path):
    fit(tmp_path, FULL)
    before = everything(tmp_path)
    with pytest.raises(CheckpointError, match=r"stage.noise was 0.1, now 0.2\. Choose another name"):
        fit(tmp_path, replace(FULL, noise=0.2))
    assert everything(tmp_path) == before


def test_state_that_does_not_fit_the_model_is_named(tmp_path):
    fit(tmp_path, FULL)
    stage = LineStage(FULL)
    stage.model.layers[0] = torch.nn.Linear(2, 5)
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight is \(4, 2\) in the file"):
        fit(tmp_path, replace(FULL, steps=30), stage)


def test_state_without_an_entry_is_named_with_what_to_do(tmp_path):
    fit(tmp_path, FULL)
    (path,) = tmp_path.glob("state/*/state.json")
    scalars = json.loads(path.read_text())
    del scalars["error_buffers"]
    path.write_text(json.dumps(scalars))
    with pytest.raises(CheckpointError, match=r"lacks error_buffers: .* Start a new run with run=<name>"):
        fit(tmp_path, replace(FULL, steps=30))


def test_failed_save_keeps_previous_checkpoint(tmp_path, uninterrupted, monkeypatch):
    write = weights_files.save_file

    def full_disk(tensors, path):
        if "00000010" in str(path):
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        write(tensors, path)

    monkeypatch.setattr(weights_files, "save_file", full_disk)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free some disk space and run again"):
        fit(tmp_path, FULL)
    monkeypatch.undo()
    assert everything(tmp_path)[0] == 5
    fit(tmp_path, FULL)
    assert everything(tmp_path) == uninterrupted


def test_copies_of_the_checkpoint_are_kept(tmp_path, uninterrupted):
    kept = replace(FULL, keep_every=8, keep_best=True)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, kept, Breaking(kept, lambda: 1 / 0))
    fit(tmp_path, kept)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000008", "00000016"]
    for step in (8, 16):
        _, meta = checkpoint.read_config(tmp_path / "checkpoints" / f"{step:08d}", "line")
        assert meta["step"] == step
    validations = {line["step"]: line["loss"] for line in everything(tmp_path)[3] if line["split"] == "val"}
    _, meta = checkpoint.read_config(tmp_path / "best", "line")
    assert meta["step"] == min(validations, key=lambda step: validations[step])
    step, tensors, scalars, metrics, _ = everything(tmp_path)
    assert scalars.pop("best_loss") == min(validations.values())
    assert (step, tensors, scalars, metrics) == uninterrupted[:4]  # copies change nothing else


def test_muon_keeps_the_precision_of_its_products_on_resume(tmp_path, monkeypatch):
    def on_a_machine_with(precision: str) -> None:
        monkeypatch.setattr("dalle.training.state.choose_precision", lambda *_: Precision(precision, "for a test"))

    config = replace(FULL, precision="auto", optimizer=replace(FULL.optimizer, kind="muon"))
    on_a_machine_with("bfloat16")
    fit(tmp_path / "whole", replace(config, steps=25))
    fit(tmp_path / "moved", config)
    on_a_machine_with("float32")
    fit(tmp_path / "moved", replace(config, steps=25))
    assert everything(tmp_path / "moved")[1] == everything(tmp_path / "whole")[1]
