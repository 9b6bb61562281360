"""Saving in the background: the same bits as saving at once, whole files, and errors that end the run."""

import copy
import gc
import json
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from line_stage import CPU, BlockStage, LineStage, fit
from saved_state import load_state
from test_resume import CLOCKS, FULL, Breaking
from torch import nn

from dalle import distributed
from dalle.checkpoint import CheckpointError
from dalle.signals import Interrupted
from dalle.training import background_save, state_files
from dalle.training.background_save import copy_model_to_host
from dalle.training.logger import WandbConfig
from dalle.training.loop import Trainer
from dalle.training.run import Run
from dalle.training.sharding import init_mesh
from dalle.weights_files import read_weights

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import torchrun  # noqa: E402 (found on the path set above)

BACKGROUND = replace(FULL, async_save=True)
RANK = """
import sys
from pathlib import Path
import test_background_save
from dalle import distributed

distributed.init_process_group("cpu")
getattr(test_background_save, sys.argv[1])(Path(sys.argv[2]))
distributed.destroy_process_group()
"""


SHARDED = (("fsdp", None), ("hsdp", 1))  # a gathered shard of a group of one rank shares memory with the run's


def launch(function: str, folder: Path) -> None:
    (folder / "rank.py").write_text(RANK)
    torchrun(2, folder / "rank.py", function, folder, search=(Path(__file__).parent,))


def train_sharded(folder: Path) -> None:
    for mode, size in SHARDED:
        mesh = init_mesh(mode, size, CPU)
        for background in (False, True):
            config = replace(FULL, async_save=background, batch_size=16)
            fit(folder / mode / str(background), config, BlockStage(config), mesh=mesh)


def fail_on_one_rank(folder: Path) -> None:
    """Train while the first rank cannot write models; write to a file what ended the run on each rank."""

    class FullDisk(BlockStage):
        def save(self, *_) -> None:
            raise CheckpointError("the disk is full")

    config = replace(FULL, async_save=True, steps=200)
    try:
        fit(folder / "run", config, FullDisk(config), mesh=init_mesh("fsdp", None, CPU))
    except CheckpointError as error:
        (folder / f"error-{distributed.get_rank()}").write_text(str(error))


def everything(folder: Path) -> tuple:
    """Return everything that a run writes, sharded or not, except times and the config, which has `async_save`."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in CLOCKS} for line in metrics]
    step, tensors, scalars = load_state(folder) or pytest.fail("no state")
    scalars = {name: value for name, value in scalars.items() if name not in {"seconds", "wandb_id"}}
    plain = [{name: tensor.tolist() for name, tensor in found.items()} for found in (tensors, read_weights(folder))]
    return step, plain, scalars, metrics


class Watched(LineStage):
    """Call `act` with the number of updates done before each update."""

    def __init__(self, config, act):
        super().__init__(config)
        self.act = act

    def before_update(self, step, batches):
        self.act(step)


def test_run_has_the_bits_of_one_that_saves_at_once(tmp_path):
    fit(tmp_path / "foreground", FULL)
    fit(tmp_path / "background", BACKGROUND)
    assert everything(tmp_path / "background") == everything(tmp_path / "foreground")


def test_training_goes_on_while_the_state_of_an_earlier_step_is_written(tmp_path, monkeypatch):
    fit(tmp_path / "five", replace(FULL, steps=5))
    released = threading.Event()
    save_state = state_files.save_state
    states = []

    def slow(folder, step, tensors, scalars):
        assert threading.current_thread() is not threading.main_thread()
        assert released.wait(60) or step > 5
        save_state(folder, step, tensors, scalars)
        states.append((step, state_files.load_state(folder)))

    def act(step):
        if step == 8:
            assert state_files.newest_state(tmp_path / "run") is None
            released.set()

    monkeypatch.setattr(state_files, "save_state", slow)
    fit(tmp_path / "run", BACKGROUND, Watched(BACKGROUND, act))
    assert [step for step, _ in states] == [5, 10, 15, 20]
    (_, saved), expected = states[0], state_files.load_state(tmp_path / "five")
    assert saved is not None and expected is not None
    weights = {name for name in saved[1] if name.startswith(("model", "optimizer"))}
    assert weights and all(saved[1][name].equal(expected[1][name]) for name in weights)


def test_error_of_a_save_ends_the_run_and_keeps_the_previous_state(tmp_path, monkeypatch):
    save_state, steps = state_files.save_state, []

    def full_disk(folder, step, tensors, scalars):
        if step == 10:
            raise CheckpointError("no space left")
        save_state(folder, step, tensors, scalars)

    def act(step):
        steps.append(step)
        time.sleep(0.05 if step > 10 else 0)  # for the thread

    monkeypatch.setattr(state_files, "save_state", full_disk)
    with pytest.raises(CheckpointError, match="no space left"):
        fit(tmp_path, BACKGROUND, Watched(BACKGROUND, act))
    assert steps[-1] < 15  # before the next save
    state = load_state(tmp_path)
    assert state is not None and state[0] == 5


@pytest.mark.parametrize("steps", [14, 15])
def test_last_save_is_whole_when_the_run_ends(tmp_path, monkeypatch, steps):
    save_state = state_files.save_state

    def slow(*arguments):
        time.sleep(0.3)
        save_state(*arguments)

    monkeypatch.setattr(state_files, "save_state", slow)
    fit(tmp_path, replace(BACKGROUND, steps=steps))
    assert [path.name for path in (tmp_path / "state").iterdir()] == [f"{steps:08d}"]


def test_signal_waits_for_the_save_in_flight_and_saves(tmp_path, monkeypatch):
    save_state, saved = state_files.save_state, []

    def slow(folder, step, tensors, scalars):
        time.sleep(0.3)
        save_state(folder, step, tensors, scalars)
        saved.append(step)

    monkeypatch.setattr(state_files, "save_state", slow)
    with pytest.raises(Interrupted, match="stopped at step 11 of 20, saved in"):
        fit(tmp_path, BACKGROUND, Watched(BACKGROUND, lambda step: step == 10 and os.kill(os.getpid(), signal.SIGTERM)))
    assert saved == [5, 10, 11]


def test_interrupted_run_resumes_with_the_same_bits(tmp_path):
    fit(tmp_path / "whole", FULL)
    stage = Breaking(BACKGROUND, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        fit(tmp_path / "stopped", BACKGROUND, stage)
    fit(tmp_path / "stopped", BACKGROUND)
    ours, theirs = everything(tmp_path / "stopped"), everything(tmp_path / "whole")
    assert ours == theirs


def test_rank_that_writes_nothing_keeps_no_copies(tmp_path, monkeypatch):
    """Only the first rank writes the model, and the state if it is not sharded."""
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    trainer = Trainer(LineStage(BACKGROUND), BACKGROUND, Run(tmp_path, {}, 0, CPU, WandbConfig("disabled")))
    made: list[weakref.ref] = []

    def noted(value):
        made.append(weakref.ref(value))
        return value

    average = trainer.state.ema.model
    monkeypatch.setattr(trainer.state.ema, "_sharded", True)
    monkeypatch.setattr(trainer.state.ema, "_gathered", lambda *_: noted(copy.deepcopy(average)))
    monkeypatch.setattr(trainer.state.reducer, "state_dict", lambda: {"error.x": noted(torch.ones(3))})
    in_flight: list[Callable[[], None]] = []
    monkeypatch.setattr(trainer.saver, "run", in_flight.append)
    trainer.save()
    gc.collect()
    assert len(in_flight) == 1
    assert [reference() for reference in made] == [None, None]
    in_flight[0]()
    assert not list(tmp_path.iterdir())
    trainer.close()


def test_copy_of_a_model_shares_no_memory():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    copied = copy_model_to_host(model)
    before = {name: tensor.clone() for name, tensor in copied.state_dict().items()}
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    assert all(before[name].equal(tensor) for name, tensor in copied.state_dict().items())


@pytest.mark.slow
def test_sharded_run_has_the_bits_of_one_that_saves_at_once(tmp_path):
    launch("train_sharded", tmp_path)
    for mode, _ in SHARDED:
        assert everything(tmp_path / mode / "True") == everything(tmp_path / mode / "False")


@pytest.mark.slow
def test_error_on_one_rank_ends_all(tmp_path):
    launch("fail_on_one_rank", tmp_path)
    errors = [(tmp_path / f"error-{rank}").read_text() for rank in range(2)]
    assert errors[0] == "the disk is full"
    assert errors[1].startswith("another rank could not save")


def test_only_one_save_is_in_flight():
    saver = background_save.Saver(background=True)
    saver.run(lambda: None)
    with pytest.raises(AssertionError, match="in flight"):
        saver.run(lambda: None)
    saver.wait()
    saver.close()
