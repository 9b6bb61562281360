"""PowerSGD with one rank, and in 16 bits with three. Two ranks are in tests/test_distributed.py."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dalle import distributed
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.training import all_reduce_16bit
from dalle.training.all_reduce_16bit import all_reduce_sum_encoded
from dalle.training.float_formats import FLOAT_1_6_9
from dalle.training.powersgd import CompressionConfig, MatrixPartition, PowerSGD, compression_rate, partitions
from dalle.training.weight_matrices import weight_matrices

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "planning")]

from measure_peak import peak_of  # noqa: E402 (found on the path set above)
from ranks import torchrun  # noqa: E402

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


def reader(state: dict[str, torch.Tensor]) -> Callable[[str], dict[str, torch.Tensor]]:
    """Return a reader of saved tensors by kind, for `PowerSGD.load_state_dict`."""
    kinds = {name: name.partition(".") for name in state}
    return lambda kind: {kinds[name][2]: tensor for name, tensor in state.items() if kinds[name][0] == kind}


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


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9])
def test_small_gradients_of_low_rank_are_unchanged_too(scale):
    model = nn.Linear(64, 64, bias=False)
    generator = torch.Generator().manual_seed(0)
    gradient = scale * torch.randn(64, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    model.weight.grad = gradient.clone()
    PowerSGD(model, CompressionConfig(rank=8, **WHOLE)).reduce(0)
    assert (model.weight.grad - gradient).norm() < 1e-4 * gradient.norm()


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
    kept = reducer.partitions["0.weight"].join(reducer._matrices[0].error)
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
            errors = {
                name: torch.zeros_like(tensor) for name, tensor in reducer.state_dict().items() if "error" in name
            }
            reducer.load_state_dict(reader(errors), 1)
            reducer.reduce(step)
            seen.append(model[0].weight.grad.clone())
        spans[basis] = seen
    true = given["0.weight"]
    apart = {name: [(gradient - true).norm().item() for gradient in seen] for name, seen in spans.items()}
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
@pytest.mark.parametrize("precision", ["float32", "paper16"])
def test_state_dict_round_trip(basis, precision):
    config = CompressionConfig(rank=2, blocks=2, basis=basis, precision=precision)
    models = [model_with_gradients(16) for _ in range(2)]
    whole, broken = (PowerSGD(model, config) for model in models)
    for step in range(6):
        given = gradients(model_with_gradients(16, seed=step))
        again = PowerSGD(models[1], config)
        again.load_state_dict(reader({name: tensor.clone() for name, tensor in broken.state_dict().items()}), 1)
        broken = again
        for model, reducer in zip(models, (whole, broken), strict=True):
            set_gradients(model, given)
            reducer.reduce(step)
        assert all(gradient.equal(gradients(models[1])[name]) for name, gradient in gradients(models[0]).items())


def test_a_save_needs_the_memory_of_its_tensors_only():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(64)])
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            reducer = PowerSGD(model, CompressionConfig(rank=8, blocks=1, precision="paper16"))
            saved = sum(tensor.nbytes for tensor in reducer.state_dict().values())
    finally:
        dist.destroy_process_group()
    assert saved == 2 * 64 * 64 * 64
    assert peak_of(run) < 1.1 * (saved + saved / 4)  # the error buffers themselves, and bases


@pytest.mark.parametrize("precision", ["float32", "paper16"])
def test_ranks_take_their_own_error_buffers_or_a_share_of_the_sum(monkeypatch, precision):
    """The second of two ranks loads what two ranks and three ranks saved."""
    config = CompressionConfig(rank=2, blocks=2, precision=precision)
    states, saved = {}, []
    for rank in range(3):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        model = model_with_gradients(16, seed=rank)
        reducer = PowerSGD(model, config)
        reducer.reduce(0)
        states |= reducer.state_dict()
        saved.append({matrix.name: matrix.error for matrix in reducer._matrices})
    assert len(states) == 6 and all(tensor.any() for tensor in states.values())
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    rounded = FLOAT_1_6_9.round if precision == "paper16" else torch.clone
    sums = {name: saved[0][name] + saved[1][name] + saved[2][name] for name in saved[0]}
    for count, expected in ((2, saved[1]), (3, {name: rounded(total / 2) for name, total in sums.items()})):
        reducer = PowerSGD(model_with_gradients(16), config)
        reducer.load_state_dict(reader(states), count)
        assert all(matrix.error.equal(expected[matrix.name]) for matrix in reducer._matrices)
        assert ("; the sum of 3 saved error buffers is divided among 2" in reducer.message) == (count == 3)


def test_16_bit_factors_are_encoded_and_decoded_in_parts(monkeypatch):
    monkeypatch.setattr(all_reduce_16bit, "MAX_DECODED", 2**12)
    factors = [torch.randn(64, 64) for _ in range(64)]
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            sums = all_reduce_sum_encoded(factors, FLOAT_1_6_9)
    finally:
        dist.destroy_process_group()
    assert all(total.equal(FLOAT_1_6_9.round(factor)) for total, factor in zip(sums, factors, strict=True))
    assert peak_of(run) < 3 * sum(factor.nbytes for factor in factors)  # all at once need 12 times as much


PAPER16 = CompressionConfig(rank=2, blocks=1, precision="paper16")


def literal_updates(gradients: list[list[torch.Tensor]], basis: torch.Tensor) -> tuple[list[torch.Tensor], list]:
    """Return the mean gradient after each update of `gradients`, by update and rank, and the final error buffers.

    A transcript of Appendix E for one matrix, with no more rows than columns, rounded to 1-6-9 where the paper says.
    """
    ranks = len(gradients[0])
    errors = [torch.zeros_like(matrix) for matrix in gradients[0]]
    means = []
    for given in gradients:
        corrected = [gradient / ranks + error for gradient, error in zip(given, errors, strict=True)]
        p = FLOAT_1_6_9.round(sum(FLOAT_1_6_9.round(matrix @ basis) for matrix in corrected))
        p = torch.linalg.qr(p + 1e-6 * torch.eye(*p.shape)).Q
        q = FLOAT_1_6_9.round(sum(FLOAT_1_6_9.round(matrix.T @ p) for matrix in corrected))
        means.append(p @ q.T)
        errors = [FLOAT_1_6_9.round(matrix - means[-1] / ranks) for matrix in corrected]
    return means, errors


def test_16_bit_factors_and_errors_match_a_literal_transcript():
    given = [torch.randn(12, 20, generator=torch.Generator().manual_seed(step)) for step in range(4)]
    model = nn.Linear(20, 12, bias=False)
    reducer = PowerSGD(model, PAPER16)
    (matrix,) = reducer._matrices
    means, (error,) = literal_updates([[tensor] for tensor in given], matrix.basis[0])
    for step, gradient in enumerate(given):
        model.weight.grad = gradient.clone()
        reducer.reduce(step)
        torch.testing.assert_close(model.weight.grad, means[step], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(matrix.error[0], error, rtol=1e-3, atol=1e-3)
    assert matrix.stored_error.nbytes == 2 * 12 * 20
    assert FLOAT_1_6_9.round(matrix.error).equal(matrix.error)


def test_16_bit_error_feedback_sums_to_nearly_all_gradients():
    model = model_with_gradients(rank=16)
    reducer = PowerSGD(model, PAPER16)
    given = sent = torch.zeros(24, 16)
    for step in range(8):
        set_gradients(model, gradients(model_with_gradients(16, seed=step)))
        for parameter in model.parameters():
            parameter.grad /= 100
        given = given + model[0].weight.grad
        reducer.reduce(step)
        sent = sent + model[0].weight.grad
    kept = reducer.partitions["0.weight"].join(reducer._matrices[0].error)
    assert (sent + kept - given).norm() < 2**-9 * 8 * given.norm()
    assert kept.norm() > given.norm() / 10


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["0.weight", "1.weight"])
def test_nonfinite_update_keeps_16_bit_errors(wrong, where):
    model = model_with_gradients(16)
    reducer = PowerSGD(model, PAPER16)
    reducer.reduce(0)
    before = {name: tensor.clone() for name, tensor in reducer.state_dict().items()}
    dict(model.named_parameters())[where].grad.view(-1)[3] = wrong
    reducer.reduce(1)
    assert not model[0].weight.grad.isfinite().any()  # so the loop skips the update
    assert all(tensor.equal(before[name]) for name, tensor in reducer.state_dict().items())
    assert any(tensor.any() for tensor in before.values())


RANK = """
import sys
from pathlib import Path
import test_powersgd
from dalle import distributed

distributed.init_process_group("cpu")
test_powersgd.reduce_on_a_rank(Path(sys.argv[1]))
distributed.destroy_process_group()
"""


def rank_gradient(step: int, rank: int) -> torch.Tensor:
    return torch.randn(12, 20, generator=torch.Generator().manual_seed(10 * step + rank))


def reduce_on_a_rank(folder: Path) -> None:
    """Write the reduced gradients of four updates and the sum of error buffers, and what follows a bad one."""
    rank = distributed.get_rank()
    model = nn.Linear(20, 12, bias=False)
    reducer = PowerSGD(model, PAPER16)
    written = {}
    for step in range(4):
        model.weight.grad = rank_gradient(step, rank)
        reducer.reduce(step)
        written[f"mean.{step}"] = model.weight.grad.clone()
    (written["error"],) = distributed.all_reduce_sum([reducer._matrices[0].error])
    model.weight.grad = torch.full((12, 20), torch.nan if rank else 1.0)
    reducer.reduce(4)
    written["bad"] = model.weight.grad.clone()
    odd = [torch.arange(5.0) + rank, torch.tensor([100.0, torch.nan])]
    all_reduce_16bit.MAX_DECODED = 6  # two numbers of each rank at a time
    written["sum"], written["clamped"] = all_reduce_sum_encoded(odd, FLOAT_1_6_9)
    save_file({name: tensor.contiguous() for name, tensor in written.items()}, folder / f"{rank}.safetensors")


@pytest.mark.slow
def test_three_ranks_with_16_bit_factors_match_a_literal_transcript(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    torchrun(3, tmp_path / "rank.py", tmp_path, search=(Path(__file__).parent,))
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(3)]
    assert all(tensors["bad"].isnan().all() for tensors in found)
    for name in found[0].keys() - {"bad"}:
        assert all(tensors[name].equal(found[0][name]) for tensors in found), name
    basis = PowerSGD(nn.Linear(20, 12, bias=False), PAPER16)._matrices[0].basis[0]
    means, errors = literal_updates([[rank_gradient(step, rank) for rank in range(3)] for step in range(4)], basis)
    for step, mean in enumerate(means):
        torch.testing.assert_close(found[0][f"mean.{step}"], mean, rtol=1e-3, atol=1e-3)
    error = PowerSGD(nn.Linear(20, 12, bias=False), PAPER16).partitions["weight"].join(found[0]["error"])
    torch.testing.assert_close(error, sum(errors), rtol=2e-3, atol=2e-3)
    assert found[0]["sum"].tolist() == [3, 6, 9, 12, 15]
    assert found[0]["clamped"].tolist() == [FLOAT_1_6_9.largest, 0]


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match="compression.precision=half is unknown; choose float32 or paper16"):
        CompressionConfig(precision="half")
    with pytest.raises(ValueError, match="choose one of fixed, warm, resampled"):
        CompressionConfig(basis="cold")
    with pytest.raises(ValueError, match="compression.rank=100 must be a multiple of compression.blocks=8"):
        CompressionConfig(rank=100)
