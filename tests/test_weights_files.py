import json

import pytest
import torch
from torch import nn

from dalle import checkpoint
from dalle.weights_files import (
    INDEX,
    WEIGHTS,
    CheckpointError,
    has_weights,
    read_weights,
    read_weights_shapes,
    split_into_shards,
    weights_files,
    weights_path,
    write_weights,
)

TENSORS = {f"layers.{number}.weight": torch.full((10, 10), float(number)) for number in range(5)}
LIMIT = 1500  # bytes: two of the tensors and their headers


@pytest.fixture
def sharded(tmp_path):
    write_weights(tmp_path, TENSORS, LIMIT)
    return tmp_path


def edit_index(folder, **changes):
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"] |= changes
    (folder / INDEX).write_text(json.dumps(content))


def test_weights_in_several_files_equal_those_in_one(sharded, tmp_path_factory):
    names = [path.name for path in weights_files(sharded)]
    assert names == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert all(path.stat().st_size <= LIMIT for path in weights_files(sharded))
    found = read_weights(sharded)
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
    assert read_weights_shapes(sharded) == {name: (10, 10) for name in TENSORS}
    assert json.loads((sharded / INDEX).read_text())["metadata"] == {"total_size": 2000}
    assert has_weights(sharded)
    assert not (sharded / WEIGHTS).exists()


def test_transformers_reads_the_index(sharded):
    hub = pytest.importorskip("transformers.utils.hub")
    files, metadata = hub.get_checkpoint_shard_files(str(sharded), str(sharded / INDEX))
    assert sorted(files) == [str(path) for path in weights_files(sharded)]
    assert set(metadata["all_checkpoint_keys"]) == set(TENSORS)


def test_a_single_file_is_read_first_and_replaces_the_index(sharded):
    write_weights(sharded, {"other": torch.zeros(1)})
    assert list(read_weights(sharded)) == ["other"]
    assert weights_path(sharded).name == WEIGHTS


def test_several_files_replace_a_single_one(tmp_path):
    write_weights(tmp_path, {"other": torch.zeros(1)})
    write_weights(tmp_path, TENSORS, LIMIT)
    assert list(read_weights(tmp_path)) == list(TENSORS)


def test_weights_below_the_limit_are_one_file(tmp_path):
    write_weights(tmp_path, TENSORS, 10**6)
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_weights_have_the_permissions_of_other_new_files(tmp_path):
    write_weights(tmp_path, {"a": torch.zeros(3)})
    (tmp_path / "other").touch()
    assert (tmp_path / WEIGHTS).stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_tensor_above_the_limit_has_a_file_of_its_own(tmp_path):
    tensors = {"a": torch.zeros(10), "b": torch.zeros(10), "large": torch.ones(1000), "c": torch.zeros(10)}
    assert [list(shard) for shard in split_into_shards(tensors, LIMIT)] == [["a", "b"], ["large"], ["c"]]
    assert [list(shard) for shard in split_into_shards({"large": tensors["large"]}, LIMIT)] == [["large"]]
    write_weights(tmp_path, tensors, LIMIT)
    assert read_weights(tmp_path)["large"].equal(tensors["large"])


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", 5, "..", ["a"], {}]
)
def test_an_index_must_not_name_files_elsewhere(sharded, name):
    edit_index(sharded, **{"layers.0.weight": name})
    with pytest.raises(CheckpointError, match="is not the name of a safetensors file beside it"):
        read_weights(sharded)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "{", "\x00", pytest.param('{"a":' * 100_000, id="nested")],
)
def test_an_invalid_index_is_refused(sharded, content):
    (sharded / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=INDEX):
        read_weights(sharded)


def test_a_missing_and_a_damaged_file_are_named(sharded):
    second = weights_files(sharded)[1]
    second.write_bytes(second.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"{second.name} is truncated or damaged"):
        read_weights_shapes(sharded)
    second.unlink()
    with pytest.raises(CheckpointError, match=f"{second.name} is missing, which {INDEX} names"):
        read_weights(sharded)


def test_a_tensor_in_two_files_is_refused(sharded):
    first, second, _ = weights_files(sharded)
    second.write_bytes(first.read_bytes())
    for read in (read_weights, read_weights_shapes):
        with pytest.raises(CheckpointError, match=r"holds the tensor layers.0.weight, which another file holds too"):
            read(sharded)


def test_a_model_is_loaded_from_several_files(tmp_path):
    torch.manual_seed(0)
    model, other = nn.Linear(10, 40), nn.Linear(10, 40)
    (tmp_path / "config.json").write_text('{"kind": "linear", "model": {}}')
    write_weights(tmp_path, model.state_dict(), 1900)
    digest = checkpoint.digest(tmp_path)
    checkpoint.load_weights(tmp_path, other)
    assert torch.equal(other.weight, model.weight)
    write_weights(tmp_path, nn.Linear(10, 40).state_dict(), 1900)
    assert checkpoint.digest(tmp_path) != digest
    with pytest.raises(CheckpointError, match=rf"{INDEX} does not fit the model: weight is \(40, 10\) in the file"):
        checkpoint.load_weights(tmp_path, nn.Linear(10, 30))
