"""PowerSGD with one rank. Two ranks are in test_gradients_on_two_ranks.py, 16 bits in test_powersgd_in_16_bits.py."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from low_rank_gradients import gradients, model_with_gradients, reader, set_gradients
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dalle import distributed
from dalle.training.compression import CompressionConfig
from dalle.training.float_formats import FLOAT_1_6_9
from dalle.training.powersgd import PowerSGD

sys.path.insert(0, str(Path(__file__).parents[1] / "planning"))

from measure_peak import peak_of  # noqa: E402 (found on the path set above)

WHOLE = {"blocks": 1, "basis": "fixed"}


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
