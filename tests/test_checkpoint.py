"""Checkpoints: round trips, errors for damaged files, and failed saves that keep the previous checkpoint."""

import json
import resource
import signal
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.training import state_files


@dataclass(frozen=True)
class LineConfig:
    inputs: int = 3


class Line(nn.Module):
    def __init__(self, inputs: int = 3):
        super().__init__()
        self.linear = nn.Linear(inputs, 1)
        self.tied = self.linear  # the same tensors under two names


class Words:
    def save(self, path):
        path.write_text("{}")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = Line()
    checkpoint.save_model(tmp_path / "line", "line", model, LineConfig(), {"step": 7}, Words())
    return tmp_path / "line", model


@pytest.fixture
def small_files_only():
    """Fail when more than 100 kB are written to a file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_model_round_trip(saved):
    folder, model = saved
    config, meta = checkpoint.read_config(folder, "line")
    assert (config, meta) == ({"inputs": 3}, {"step": 7})
    other = Line(**config)
    checkpoint.load_weights(folder, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    files = {path.name for path in folder.iterdir()}
    assert files == {"model.safetensors", "config.json", "tokenizer.json"}


def test_digest_depends_on_weights_and_config_but_not_meta(saved):
    folder, model = saved
    first = checkpoint.digest(folder)
    assert len(first) == 16
    checkpoint.save_model(folder, "line", model, LineConfig(), {"step": 8})
    assert checkpoint.digest(folder) == first
    checkpoint.save_model(folder, "line", model, LineConfig(inputs=4))
    assert checkpoint.digest(folder) != first
    with torch.no_grad():
        model.linear.bias.add_(1)
    checkpoint.save_model(folder, "line", model, LineConfig())
    assert checkpoint.digest(folder) != first


def break_nothing_there(folder):
    (folder / "config.json").unlink()
    folder.rename(folder.with_name("elsewhere"))


def break_not_a_checkpoint(folder):
    (folder / "config.json").unlink()


def break_one_floor_up(folder):
    (folder / "dvae").mkdir()
    (folder / "config.json").rename(folder / "dvae" / "config.json")


def break_bad_json(folder):
    (folder / "config.json").write_text('{"format": 1, ')


def break_no_kind(folder):
    (folder / "config.json").write_text('{"format": 1}')


def break_newer_format(folder):
    (folder / "config.json").write_text(json.dumps({"format": 2, "kind": "line", "model": {}}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_nothing_there, "no such folder"),
        (break_not_a_checkpoint, "no config.json"),
        (break_one_floor_up, "holds the checkpoints dvae"),
        (break_bad_json, "not valid JSON"),
        (break_no_kind, "lacks format, kind or model"),
        (break_newer_format, "format 2"),
    ],
)
def test_unreadable_config_raises_with_the_reason(saved, damage, words):
    damage(saved[0])
    with pytest.raises(CheckpointError, match=words):
        checkpoint.read_config(saved[0], "line")


def test_checkpoint_of_another_kind_raises(saved):
    with pytest.raises(CheckpointError, match="holds a line, not a clip"):
        checkpoint.read_config(saved[0], "clip")


def test_mismatched_weights_raise_and_change_nothing(saved):
    folder, _ = saved
    wide = Line(inputs=4)
    before = wide.linear.weight.clone()
    with pytest.raises(CheckpointError, match=r"linear.weight is \(1, 3\) in the file, \(1, 4\) in the model"):
        checkpoint.load_weights(folder, wide)
    assert torch.equal(wide.linear.weight, before)
    with pytest.raises(CheckpointError, match=r"lacks the tensor 0\.weight"):
        checkpoint.load_weights(folder, nn.Sequential(nn.Linear(3, 1)))
    with pytest.raises(CheckpointError, match="which the model does not have"):
        checkpoint.load_weights(folder, nn.Module())


def test_truncated_and_missing_weights_raise(saved):
    folder, model = saved
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.load_weights(folder, model)
    weights.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoint.load_weights(folder, model)


def test_full_disk_leaves_previous_checkpoint_and_state(saved, small_files_only):
    folder, _ = saved
    state_files.save_state(folder, 5, {"a": torch.zeros(2)}, {})
    first, files = checkpoint.digest(folder), sorted(folder.rglob("*"))
    with pytest.raises(CheckpointError, match=r"could not save .*line.*File too large"):
        checkpoint.save_model(folder, "line", Line(inputs=100_000), LineConfig(100_000))
    with pytest.raises(CheckpointError, match="File too large.*Files not written yet are unchanged$"):
        state_files.save_state(folder, 10, {"a": torch.zeros(100_000)}, {})
    assert checkpoint.digest(folder) == first
    assert state_files.read_scalars(folder) == {"step": 5}
    assert sorted(folder.rglob("*")) == files  # nothing half-written lies about


def test_checkpoint_folder_is_self_contained(saved, tmp_path):
    moved = saved[0].rename(tmp_path / "moved")
    other = Line()
    checkpoint.load_weights(moved, other)
    assert torch.equal(other.linear.weight, saved[1].linear.weight)
