"""Partition of gradients for compression, and its rate: weight matrices, their blocks, and bad settings."""

import pytest
import torch
from torch import nn

from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.training.compression import CompressionConfig, MatrixPartition, compression_rate, partitions
from dalle.training.weight_matrices import weight_matrices


@pytest.mark.parametrize(("width", "rank", "published"), [(1920, 512, 0.83), (2688, 640, 0.85), (3968, 896, 0.86)])
def test_compression_rates_match_table_1(width, rank, published):
    with torch.device("meta"):
        model = Transformer(TransformerConfig(width=width, depth=2, heads=width // 64, patterns=["dense"]))
    found = partitions(model, CompressionConfig(rank=rank))
    assert compression_rate(found) == pytest.approx(1 - 5 * rank / (8 * width))
    assert round(compression_rate(found), 2) == published
    assert len(found) == 8  # four of each layer: no embedding, unembedding, gain or bias


def test_compressed_matrices_exclude_those_the_paper_excludes(make_transformer):
    found = weight_matrices(make_transformer())
    assert {name.split(".")[0] for name in found} == {"layers"}
    layers = {".".join(name.split(".")[2:]) for name in found}
    gated = weight_matrices(make_transformer(mlp="swiglu", qk_norm=True))
    assert {name.split(".")[-2]: matrix.parts for name, matrix in gated.items()} == {"qkv": 3, "expand": 2, "out": 1}
    assert gated.keys() == found.keys()
    assert {name.split(".")[-2] for name, matrix in found.items() if matrix.parts == 3} == {"qkv"}
    assert layers == {
        f"{name}.weight"
        for name in ("attention.branch.qkv", "attention.branch.out", "mlp.branch.expand", "mlp.branch.out")
    }


@pytest.mark.parametrize("blocks", [1, 2, 8])
@pytest.mark.parametrize(
    ("parts", "shape"),
    [(3, (48, 16)), (1, (16, 16)), (1, (16, 64)), (1, (64, 16)), (1, (6, 5, 3, 3))],
)
def test_matrix_is_split_and_rejoined(parts, shape, blocks):
    partition = MatrixPartition(shape, CompressionConfig(rank=8, blocks=blocks), parts)
    matrix = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    parts = partition.split(matrix)
    assert parts.shape[1:] == partition.sides
    assert partition.sides[0] <= partition.sides[1]
    assert parts.numel() == partition.uncompressed
    assert partition.join(parts).equal(matrix)


def test_queries_keys_and_values_are_split():
    matrix = torch.arange(3.0).repeat_interleave(16)[:, None].expand(48, 16)
    blocks = MatrixPartition((48, 16), CompressionConfig(rank=8), parts=3).split(matrix)
    assert blocks.shape == (24, 2, 16)
    assert [len(block.unique()) for block in blocks] == [1] * 24


def test_only_matrices_that_get_smaller_are_compressed():
    model = nn.ModuleDict({"large": nn.Linear(64, 64), "small": nn.Linear(8, 8), "even": nn.Linear(32, 32)})
    found = partitions(model, CompressionConfig(rank=16, blocks=1))
    assert list(found) == ["large.weight"]  # of 32 x 32 numbers rank 16 would make 2 x 16 x 32, as many
    assert compression_rate(found) == 0.5
    assert partitions(nn.Linear(4, 4), CompressionConfig(rank=8)) == {}


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match="compression.precision=half is unknown; choose float32 or paper16"):
        CompressionConfig(precision="half")
    with pytest.raises(ValueError, match="choose one of fixed, warm, resampled"):
        CompressionConfig(basis="cold")
    with pytest.raises(ValueError, match="compression.rank=100 must be a multiple of compression.blocks=8"):
        CompressionConfig(rank=100)
