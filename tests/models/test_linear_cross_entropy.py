import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dalle.losses import token_nll
from dalle.models import linear_cross_entropy as module
from dalle.models.linear_cross_entropy import IGNORED, linear_cross_entropy


def case(bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 7, 5, generator=generator, dtype=dtype).requires_grad_()
    torch.manual_seed(1)
    linear = nn.Linear(5, 11, bias=bias).to(dtype)
    targets = torch.randint(11, (3, 7), generator=generator)
    targets[0, 2:5] = targets[2] = IGNORED
    weights = torch.rand(3, 7, generator=generator, dtype=dtype)
    return states, linear, targets, weights


def results(nll, states, linear, weights):
    """Return losses, and gradients of their weighted sum."""
    return [nll.detach(), *torch.autograd.grad((nll * weights).sum(), [states, *linear.parameters()])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("limit", [1, 50, 1000])  # logits at once: of one position, of four, of all
def test_losses_and_gradients_equal_those_of_all_logits(limit, bias, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGITS", limit)
    states, linear, targets, weights = case(bias)
    expected = results(token_nll(linear(states), targets), states, linear, weights)
    actual = results(linear_cross_entropy(states, linear, targets), states, linear, weights)
    torch.testing.assert_close(actual, expected)
    assert (actual[0][targets == IGNORED] == 0).all()


@pytest.mark.parametrize("limit", [50, 1000])
def test_ignored_targets_that_are_not_left_out_have_no_loss(limit, monkeypatch):
    """They are left out on a CPU only. Another value than torch's default shows that it is passed on."""
    monkeypatch.setattr(module, "MAX_LOGITS", limit)
    monkeypatch.setattr(module, "IGNORED", -7)
    states, linear, targets, weights = case()
    flat_targets = targets.where(targets != IGNORED, -7).flatten()
    flat = module._cross_entropy(states.flatten(0, 1), linear, flat_targets).view(3, 7)
    expected = results(token_nll(linear(states), targets), states, linear, weights)
    torch.testing.assert_close(results(flat, states, linear, weights), expected)


@pytest.mark.parametrize("limit", [50, 1000])
@pytest.mark.parametrize("target", [-1, 11])
def test_targets_that_are_no_class_raise(target, limit, monkeypatch):
    states, linear, targets, _ = case()
    targets[1, 3] = target
    monkeypatch.setattr(module, "MAX_LOGITS", limit)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):  # of torch, by its two kernels
        linear_cross_entropy(states, linear, targets)


@pytest.mark.parametrize("limit", [50, 1000])
def test_losses_may_be_changed_in_place(limit, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGITS", limit)
    states, linear, targets, weights = case()
    flat = module._cross_entropy(states.flatten(0, 1), linear, targets.flatten())
    flat *= 2
    expected = results(2 * token_nll(linear(states), targets), states, linear, weights)
    torch.testing.assert_close(results(flat.view(3, 7), states, linear, weights), expected)


def distributions(dtype=torch.float64):
    return torch.rand(3, 7, 11, generator=torch.Generator().manual_seed(2), dtype=dtype).softmax(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("limit", [1, 50, 1000])
def test_targets_may_be_distributions(limit, bias, dtype, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGITS", limit)
    states, linear, _, weights = case(bias, dtype)
    targets = distributions(dtype)
    nll = F.cross_entropy(linear(states).flatten(0, 1), targets.flatten(0, 1), reduction="none").view(3, 7)
    expected = results(nll, states, linear, weights)
    actual = results(linear_cross_entropy(states, linear, targets), states, linear, weights)
    torch.testing.assert_close(actual, expected)


def test_distributions_whose_sum_is_not_one_count_as_much(monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGITS", 50)
    states, linear, _, weights = case()
    targets = 2 * distributions()
    nll = F.cross_entropy(linear(states).flatten(0, 1), targets.flatten(0, 1), reduction="none").view(3, 7)
    expected = results(nll, states, linear, weights)
    actual = results(linear_cross_entropy(states, linear, targets), states, linear, weights)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("limit", [50, 1000])
def test_half_precision_states_have_losses_in_float32(limit, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGITS", limit)
    states, linear, targets, _ = case(dtype=torch.float32)
    half = states.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        nll = linear_cross_entropy(half, linear, targets)
    torch.testing.assert_close(nll, token_nll(linear(half.float()), targets))
    nll.sum().backward()
    assert nll.dtype == torch.float32 and half.grad.dtype == torch.bfloat16


def test_all_targets_ignored_give_zero_gradients():
    states, linear, targets, weights = case()
    actual = results(linear_cross_entropy(states, linear, torch.full_like(targets, IGNORED)), states, linear, weights)
    assert all((result == 0).all() for result in actual)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "distributions"])
def test_fewer_numbers_than_all_logits_are_kept(monkeypatch, soft):
    """The graph keeps states, not logits; distributions are the caller's."""
    monkeypatch.setattr(module, "MAX_LOGITS", 50)
    states, linear, targets, _ = case()
    if soft:
        targets = distributions()
    own, sizes = targets.untyped_storage().data_ptr(), []

    def pack(saved):
        sizes.append(0 if saved.untyped_storage().data_ptr() == own else saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        linear_cross_entropy(states, linear, targets).sum()
    positions = 21 if soft else int((targets != IGNORED).sum())
    assert 0 < max(sizes) < positions * linear.out_features
