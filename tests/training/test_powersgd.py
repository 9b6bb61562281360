"""PowerSGD with one rank. Two ranks are in tests/test_distributed.py."""

import pytest
import torch
from torch import nn

from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.training.powersgd import CompressionConfig, MatrixPartition, PowerSGD, compression_rate, partitions
from dalle.training.weight_matrices import weight_matrices

WHOLE = {"blocks": 1, "basis": "fixed"}


def model_with_gradients(rank: int, seed: int = 0) -> nn.Module:
    """Return three layers whose matrices have gradients of the given rank."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 24), nn.Embedding(5, 24), nn.Conv2d(4, 32, 3))
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            rows, columns = parameter.flatten(1).shape
            factors = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
            parameter.grad = (factors[0] @ factors[1]).reshape(parameter.shape)
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def set_gradients(model: nn.Module, given: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = given[name].clone()


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


def test_reports_its_compression_rate():
    model = nn.Linear(64, 64)
    note = PowerSGD(model, CompressionConfig(rank=8, blocks=1)).message
    assert note == "PowerSGD of rank 8 compresses the gradients of 1 matrices by 75.0%"
    assert "compresses no gradient of this model" in PowerSGD(model, CompressionConfig(rank=896)).message


def test_low_rank_gradient_is_unchanged():
    model = model_with_gradients(rank=3)
    before = gradients(model)
    reducer = PowerSGD(model, CompressionConfig(rank=3, **WHOLE))
    assert set(reducer.partitions) == {"0.weight", "2.weight"}
    reducer.reduce(0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, before[name], rtol=1e-4, atol=1e-4)
    assert all(error.abs().max() < 1e-4 for error in reducer.state_dict().values())


def test_other_parameters_are_not_compressed():
    model = model_with_gradients(rank=16)
    before = gradients(model)
    PowerSGD(model, CompressionConfig(rank=2, **WHOLE)).reduce(0)
    after = gradients(model)
    assert {name for name in before if not after[name].equal(before[name])} == {"0.weight", "2.weight"}
    assert torch.linalg.matrix_rank(after["0.weight"], rtol=1e-4) == 2


def test_error_feedback_sums_to_all_gradients():
    """The gradients sent plus the kept errors equal the sum of all gradients."""
    model = model_with_gradients(rank=16)
    reducer = PowerSGD(model, CompressionConfig(rank=2, **WHOLE))
    given = sent = torch.zeros(24, 16)
    for step in range(8):
        set_gradients(model, gradients(model_with_gradients(16, seed=step)))
        given = given + model[0].weight.grad
        reducer.reduce(step)
        sent = sent + model[0].weight.grad
    kept = reducer.partitions["0.weight"].join(reducer.state_dict()["error.0.weight"])
    assert kept.norm() > given.norm() / 10
    torch.testing.assert_close(sent + kept, given, rtol=1e-4, atol=1e-3)


def test_basis_is_fixed_warm_started_or_resampled():
    model = model_with_gradients(16)
    given = gradients(model)
    spans = {}
    for basis in ("fixed", "warm", "resampled"):
        reducer = PowerSGD(model, CompressionConfig(rank=2, blocks=1, basis=basis))
        seen = []
        for step in range(3):
            set_gradients(model, given)
            reducer.load_state_dict(
                {name: torch.zeros_like(each) for name, each in reducer.state_dict().items() if "error" in name}
            )
            reducer.reduce(step)
            seen.append(model[0].weight.grad.clone())
        spans[basis] = seen
    true = given["0.weight"]
    apart = {name: [(each - true).norm().item() for each in seen] for name, seen in spans.items()}
    assert apart["fixed"][0] == apart["fixed"][1] == apart["fixed"][2]  # the same view of it forever
    assert apart["warm"][0] > apart["warm"][1] > apart["warm"][2]  # one power iteration better each time
    assert len(set(apart["resampled"])) == 3
    assert spans["resampled"][0].equal(spans["fixed"][0])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["0.weight", "1.weight"])
def test_nonfinite_update_keeps_error_state(wrong, where):
    model = model_with_gradients(16)
    reducer = PowerSGD(model, CompressionConfig(rank=2, blocks=1, basis="warm"))
    reducer.reduce(0)
    before = {name: tensor.clone() for name, tensor in reducer.state_dict().items()}
    set_gradients(model, gradients(model_with_gradients(16, seed=1)))
    dict(model.named_parameters())[where].grad.view(-1)[3] = wrong
    reducer.reduce(1)
    assert not dict(model.named_parameters())[where].grad.isfinite().all()
    assert not model[0].weight.grad.isfinite().any()  # so the loop skips the update
    after = reducer.state_dict()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())


def test_zero_gradients_stay_zero():
    model = model_with_gradients(16)
    model.zero_grad()
    reducer = PowerSGD(model, CompressionConfig(rank=2, **WHOLE))
    reducer.reduce(0)
    assert not any(parameter.grad.any() for parameter in model.parameters())
    assert not any(error.any() for error in reducer.state_dict().values())


@pytest.mark.parametrize("basis", ["fixed", "warm", "resampled"])
def test_state_dict_round_trip(basis):
    config = CompressionConfig(rank=2, blocks=2, basis=basis)
    models = [model_with_gradients(16) for _ in range(2)]
    whole, broken = (PowerSGD(model, config) for model in models)
    for step in range(6):
        given = gradients(model_with_gradients(16, seed=step))
        again = PowerSGD(models[1], config)
        again.load_state_dict({name: tensor.clone() for name, tensor in broken.state_dict().items()})
        broken = again
        for model, reducer in zip(models, (whole, broken), strict=True):
            set_gradients(model, given)
            reducer.reduce(step)
        assert all(each.equal(gradients(models[1])[name]) for name, each in gradients(models[0]).items())


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match="choose one of fixed, warm, resampled"):
        CompressionConfig(basis="cold")
    with pytest.raises(ValueError, match="compression.rank=100 must be a multiple of compression.blocks=8"):
        CompressionConfig(rank=100)
