"""PowerSGD with factors and error buffers in 1-6-9, on one rank and on three."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from low_rank_gradients import gradients, model_with_gradients, set_gradients
from safetensors.torch import load_file, save_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dalle import distributed
from dalle.training import all_reduce_16bit
from dalle.training.all_reduce_16bit import all_reduce_sum_encoded
from dalle.training.compression import CompressionConfig
from dalle.training.float_formats import FLOAT_1_6_9
from dalle.training.powersgd import PowerSGD

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "planning")]

from measure_peak import peak_of  # noqa: E402 (found on the path set above)
from ranks import torchrun  # noqa: E402

PAPER16 = CompressionConfig(rank=2, blocks=1, precision="paper16")


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
import test_powersgd_in_16_bits
from dalle import distributed

distributed.init_process_group("cpu")
test_powersgd_in_16_bits.reduce_on_a_rank(Path(sys.argv[1]))
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
