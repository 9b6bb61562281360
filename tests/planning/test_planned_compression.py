"""Plans of compressed gradients: error buffers, bytes sent, and settings that training refuses."""

from dataclasses import replace

import pytest
from small_stage import H100, STAGE, plan_of

from dalle.planning.changes import alternative_plans
from dalle.planning.plan import Planner
from dalle.training.compression import CompressionConfig


def test_error_buffers_of_compression_are_counted():
    compression = CompressionConfig(rank=8, blocks=1)
    plain, half = (
        plan_of(replace(STAGE, compression=replace(compression, precision=precision)), 1).memory
        for precision in ("float32", "paper16")
    )
    assert plain.errors == 4 * 12 * 32 * 32 * 2 == 2 * half.errors
    assert plan_of(STAGE, 1).memory.errors == 0


def test_compressed_gradients_are_sent_as_factors():
    """Of each layer PowerSGD sends P and Q of queries, keys, values and out, and of the MLP's two matrices."""
    factors = 2 * 8 * (4 * (32 + 32) + 2 * (32 + 128))
    for precision, size in (("float32", 4), ("paper16", 2)):
        planned = plan_of(replace(STAGE, compression=CompressionConfig(8, blocks=1, precision=precision)), 4)
        others = planned.parameters - 2 * 12 * 32 * 32
        assert planned.bytes_sent == 2 * (4 * others + size * factors) * 3 / 4
        assert planned.bytes_sent < plan_of(STAGE, 4).bytes_sent


def test_error_buffers_of_shards_are_those_of_a_ranks_own_blocks():
    stage = replace(STAGE, compression=CompressionConfig(rank=8, blocks=2))
    whole, half = plan_of(stage, 4), Planner(32, 4, H100, shard_size=2).plan(stage, "hsdp")
    assert half.memory.errors == whole.memory.errors / 2
    uncompressed = Planner(32, 4, H100, shard_size=2).plan(STAGE, "hsdp")
    assert half.bytes_sent < uncompressed.bytes_sent


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("fsdp", {}, "compression.rank needs several copies of the weights"),
        ("hsdp", {"blocks": 1}, "compression.blocks=1 must be a multiple of shard_size=8"),
        ("hsdp", {"basis": "warm"}, "compression.basis=warm does not work with distributed=hsdp"),
    ],
)
def test_compression_that_training_refuses_is_refused_and_not_suggested(mode, settings, message):
    stage = replace(STAGE, compression=replace(CompressionConfig(rank=8, blocks=8), **settings))
    with pytest.raises(ValueError, match=message):
        plan_of(stage, 16, mode)
    first, _ = next(alternative_plans(Planner(32, 16, H100), stage, "ddp"))
    assert first == ("distributed=hsdp" if mode == "fsdp" else "distributed=fsdp stage.compression.rank=0")


def test_one_group_of_ranks_has_nobody_to_compress_gradients_for():
    stage = replace(STAGE, compression=CompressionConfig(rank=8, blocks=8))
    with pytest.raises(ValueError, match="compression.rank needs several copies of the weights"):
        plan_of(stage, 8, "hsdp")
    first, plan = next(alternative_plans(Planner(32, 8, H100), stage, "ddp"))
    assert (first, plan.memory.errors) == ("distributed=fsdp stage.compression.rank=0", 0)
