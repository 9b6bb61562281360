"""Sharded training: every option of the loop on two ranks, restarts on other numbers of ranks, and bad settings."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from line_stage import CPU
from safetensors.torch import load_file
from saved_state import load_state
from sharded_runs import COMPRESSIONS, OPTIONS, RESUMED, gradient, launch, losses, train_blocks, weights
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from dalle.checkpoint import CheckpointError
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.seeds import torch_generator
from dalle.training import state_files
from dalle.training.compression import CompressionConfig, partitions
from dalle.training.sharded_state import StateWriter, save_state
from dalle.training.sharding import check_mode, init_mesh, mesh_of_backward, sharding_units


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for name in OPTIONS:
        train_blocks(folder, name, "ddp")
    return folder


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    launch(4, "on_four", folder)
    for name in RESUMED:
        train_blocks(folder / "one then two", name, "ddp", steps=10)
    for copy in ("four then one", "four then two", "four then two unsharded", "four then eight"):
        shutil.copytree(folder / "four", folder / copy)
    shutil.copytree(folder / "hsdp", folder / "hsdp then ddp")
    launch(2, "on_two", folder)
    launch(8, "on_eight", folder)
    for name in RESUMED:
        train_blocks(folder / "four then one", name, "fsdp")
    return folder


# without a scale for all, under which other gradients overflow: each rank's loss is the mean of half a batch
@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"a scale for all"}))
def test_sharded_ranks_train_like_one(ranks, alone, name):
    # in 16 bits, rounding is not the same for half a batch
    sixteen_bits = "16" in name or "scale" in name
    assert losses(ranks / "fsdp" / name) == pytest.approx(losses(alone / name), rel=0.02 if sixteen_bits else 1e-3)


@pytest.mark.parametrize("name", OPTIONS)
def test_sharded_ranks_train_like_unsharded_ranks(ranks, name):
    torch.testing.assert_close(weights(ranks / "fsdp" / name), weights(ranks / "ddp" / name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["16-bit moments", "Muon"])
def test_optimizers_of_shards_have_the_bits_of_whole_ones(ranks, name):
    """Except torch's fused AdamW, whose kernels round by their position in memory."""
    assert weights(ranks / "fsdp" / name).equal(weights(ranks / "ddp" / name))


def test_sharded_averages_validate_like_whole_ones_and_leave_the_weights(ranks):
    """Averages and weights change places for it; a weight left gathered or exchanged would change later losses."""
    fsdp = ranks / "fsdp"
    assert len(losses(fsdp / "validated", "val")) == 4
    assert losses(fsdp / "validated", "val") == losses(fsdp / "validated with whole weights", "val")
    assert losses(fsdp / "validated") == losses(fsdp / "averaged")
    assert weights(fsdp / "validated").equal(weights(fsdp / "averaged"))


@pytest.mark.parametrize("name", ["micro-batches", "clipped"])
def test_groups_of_sharded_ranks_train_like_one(ranks, alone, name):
    assert losses(ranks / "hsdp" / name) == pytest.approx(losses(alone / name), rel=1e-3)


def test_gradients_of_shards_are_compressed_as_in_the_paper(ranks):
    """App. E, step by step: each shard alone, with P and Q summed over the two ranks that hold it."""
    reduced = load_file(ranks / "reduced.safetensors")
    shapes = torch.Size((24, 16)), torch.Size((24,))
    basis = torch.randn(1, 16, 2, generator=torch_generator("PowerSGD", 0, 0))[0]
    for number in range(2):
        errors = [torch.zeros(12, 16)] * 2
        for step in range(3):
            corrected = [gradient(step, rank, shapes[0]).chunk(2)[number] / 2 + errors[rank] for rank in range(2)]
            p = torch.linalg.qr(sum(matrix @ basis for matrix in corrected))[0]
            q = sum(matrix.T @ p for matrix in corrected)
            errors = [matrix - p @ q.T / 2 for matrix in corrected]
            torch.testing.assert_close(reduced[f"weight.{step}"].chunk(2)[number], p @ q.T, rtol=1e-3, atol=1e-4)
        for rank in range(2):
            saved = reduced[f"error_{rank}"].chunk(2)[number]
            torch.testing.assert_close(saved, errors[rank], rtol=1e-3, atol=1e-4)
    for step in range(3):
        bias = (gradient(step, 0, shapes[1]) + gradient(step, 1, shapes[1])) / 2
        torch.testing.assert_close(reduced[f"bias.{step}"], bias)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_run_of_groups_learns_and_resumes(ranks, alone, name):
    whole = losses(ranks / "hsdp" / name)
    assert whole[0] == pytest.approx(losses(alone / "AdamW")[0], rel=1e-4)
    assert whole[-1] < whole[0] / 3
    assert weights(ranks / "hsdp interrupted" / name).equal(weights(ranks / "hsdp" / name))
    (_, resumed, _), (_, once, _) = (load_state(ranks / run / name) for run in ("hsdp interrupted", "hsdp"))
    assert resumed.keys() == once.keys() and all(tensor.equal(once[key]) for key, tensor in resumed.items())
    errors = [key for key in once if key.startswith("reducer.error_0.")]
    assert errors and not any(once[key].equal(once[key.replace("error_0", "error_1")]) for key in errors)
    assert losses(ranks / "hsdp then ddp" / name)[-1] < whole[0] / 3


@pytest.mark.parametrize("then", ["one", "two", "two unsharded", "eight"])
@pytest.mark.parametrize("name", RESUMED)
def test_run_of_four_ranks_resumes_on_other_numbers(ranks, alone, name, then):
    sixteen_bits = "16" in name or "scale" in name
    folder = ranks / f"four then {then}" / name
    assert losses(folder) == pytest.approx(losses(alone / name), rel=0.02 if sixteen_bits else 1e-3)
    assert state_files.read_scalars(folder)["step"] == 20


@pytest.mark.parametrize("name", RESUMED)
def test_unsharded_run_resumes_sharded(ranks, alone, name):
    sixteen_bits = "16" in name or "scale" in name
    folder = ranks / "one then two" / name
    assert losses(folder) == pytest.approx(losses(alone / name), rel=0.02 if sixteen_bits else 1e-3)


def test_shards_can_be_changed_by_a_whole_copy(ranks):
    torch.manual_seed(0)
    layer = nn.Linear(4, 5)
    with torch.no_grad():
        layer.weight[1] = layer.weight[4] + 1
    changed = load_file(ranks / "whole.safetensors")
    assert changed["weight"].equal(layer.weight)
    torch.testing.assert_close(changed["output"], layer(torch.ones(1, 4)))


def test_sharded_state_has_names_and_shapes_of_an_unsharded_one(ranks, alone):
    one = state_files.load_state(alone / "AdamW")
    other = load_state(ranks / "fsdp" / "AdamW")
    assert one is not None and other is not None
    assert one[0] == other[0] and one[2].keys() == other[2].keys()
    assert {name: tensor.shape for name, tensor in one[1].items()} == {
        name: tensor.shape for name, tensor in other[1].items()
    }


@pytest.mark.parametrize("damage", ["metadata", "shard", "missing", "code"])
def test_damaged_state_raises(ranks, tmp_path, damage):
    shutil.copytree(ranks / "four" / "averaged", tmp_path / "run")
    (state,) = (tmp_path / "run" / "state").iterdir()
    if damage == "missing":
        (state / "__1_0.distcp").unlink()
    else:
        path = state / ("__1_0.distcp" if damage == "shard" else ".metadata")
        path.write_bytes(b"cos\nsystem\n(S'true'\ntR." if damage == "code" else path.read_bytes()[:100])
    message = "names os.system" if damage == "code" else "is truncated or damaged"
    with pytest.raises(CheckpointError, match=message):
        load_state(tmp_path / "run")


def test_failed_save_keeps_the_previous_state(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    save_state(tmp_path, 5, {"a": torch.ones(2)}, {"evaluated_step": 5})
    monkeypatch.setattr(StateWriter, "write_data", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device.*The previous state is unchanged"):
        save_state(tmp_path, 6, {"a": torch.zeros(2)}, {})
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["00000005"]
    step, tensors, scalars = load_state(tmp_path) or pytest.fail("no state")
    assert (step, tensors["a"].tolist(), scalars) == (5, [1.0, 1.0], {"evaluated_step": 5})


def test_blocks_are_the_units_of_sharding():
    model = Transformer(TransformerConfig(4, 8, 8, grid=2, width=16, depth=3, heads=2, kernel=1))
    assert sharding_units(model) == list(model.layers)
    assert sharding_units(nn.Linear(2, 2)) == []


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match="distributed=zero is unknown; choose one of ddp, fsdp, hsdp"):
        check_mode("zero", None)
    with pytest.raises(ValueError, match="shard_size=4 is a setting of distributed=hsdp, not of distributed=fsdp"):
        check_mode("fsdp", 4)
    with pytest.raises(ValueError, match="shard_size=0 must be at least 1"):
        check_mode("hsdp", 0)


def test_compression_without_copies_of_the_weights_raises():
    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    try:
        for mesh in (init_mesh("fsdp", None, CPU), init_mesh("hsdp", None, CPU)):
            assert mesh is not None and mesh_of_backward(mesh, compressed=False) is mesh
            with pytest.raises(ValueError, match="set distributed=hsdp with a shard_size below the number of ranks"):
                mesh_of_backward(mesh, compressed=True)
        groups = init_mesh("hsdp", 4, CPU)
        assert groups is not None and mesh_of_backward(groups, compressed=True).size() == 4
    finally:
        dist.destroy_process_group()
    with pytest.raises(ValueError, match="compression.blocks=8 must be a multiple of shard_size=3"):
        partitions(nn.Linear(8, 8), CompressionConfig(rank=8), shards=3)


@pytest.mark.parametrize("mode", ["ddp", "fsdp", "hsdp"])
def test_one_process_is_not_sharded(mode):
    assert init_mesh(mode, None, CPU) is None


def test_ranks_that_do_not_divide_into_groups_raise(monkeypatch):
    monkeypatch.setattr("dalle.distributed.get_world_size", lambda: 6)
    with pytest.raises(ValueError, match="6 ranks do not divide into groups of shard_size=5: set shard_size to a"):
        init_mesh("hsdp", 5, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="6 ranks do not divide into groups of shard_size=4"):
        init_mesh("hsdp", None, CPU)
