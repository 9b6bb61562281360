"""Files of a training state: round trips, interrupted saves, and the error of a disk that is full."""

import errno
import os

import pytest
import torch

from dalle.checkpoint import CheckpointError
from dalle.training import state_files


def test_training_state_round_trip_keeps_only_the_newest(tmp_path):
    assert state_files.load_state(tmp_path) is None
    assert state_files.read_scalars(tmp_path) is None
    for step in (5, 10, 10):
        state_files.save_state(tmp_path, step, {"a": torch.full((2,), float(step))}, {"loss": 0.1 * step})
    step, tensors, scalars = state_files.load_state(tmp_path) or pytest.fail("no state")
    assert step == 10
    assert torch.equal(tensors["a"], torch.tensor([10.0, 10.0]))
    assert scalars == {"loss": 1.0}
    assert state_files.read_scalars(tmp_path) == {"step": 10, "loss": 1.0}
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["00000010"]


def test_files_of_an_interrupted_save_are_ignored(tmp_path):
    state_files.save_state(tmp_path, 5, {"a": torch.zeros(2)}, {})
    (tmp_path / "state" / ".00000010.part").mkdir()
    assert state_files.read_scalars(tmp_path) == {"step": 5}
    (tmp_path / "state" / "00000005").rename(tmp_path / "state" / "00000005.old")
    assert state_files.read_scalars(tmp_path) == {"step": 5}
    state_files.save_state(tmp_path, 10, {"a": torch.zeros(2)}, {})
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["00000010"]


@pytest.mark.parametrize(("code", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_only_a_full_disk_is_answered_with_freeing_space(tmp_path, monkeypatch, code, full):
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(state_files, "write_tensors", fail)
    with pytest.raises(CheckpointError, match=os.strerror(code)) as raised:
        state_files.save_state(tmp_path, 10, {"a": torch.zeros(2)}, {})
    assert ("free some disk space" in str(raised.value)) == full
