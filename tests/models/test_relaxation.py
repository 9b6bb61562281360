"""Relaxations: samples of codes from the categorical distribution, and their gradients."""

import pytest
import torch
import torch.nn.functional as F

from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.dvae.relaxation import argmax_one_hot, gumbel_softmax, straight_through


def drawn(logits: torch.Tensor, temperature: float, seed: int = 0) -> torch.Tensor:
    return gumbel_softmax(logits, temperature, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [10.0, 1.0, 1 / 16, 1e-4])
def test_gumbel_softmax_samples_are_on_the_simplex(temperature):
    codes = drawn(5 * torch.randn(4, 7, 9, 9, generator=torch.Generator().manual_seed(1)), temperature)
    assert codes.shape == (4, 7, 9, 9)
    assert torch.isfinite(codes).all()
    assert (codes >= 0).all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(4, 9, 9))


def test_gumbel_softmax_is_one_hot_at_low_and_flat_at_high_temperature():
    logits = torch.randn(4, 7, 9, 9, generator=torch.Generator().manual_seed(1))
    peaks = [drawn(logits, temperature).amax(dim=1).mean().item() for temperature in (100, 4, 1, 1 / 4, 1 / 64, 1e-5)]
    assert peaks == sorted(peaks)
    assert peaks[0] == pytest.approx(1 / 7, rel=0.05)
    assert peaks[-1] > 0.9999
    one_hot = F.one_hot(drawn(logits, 1.0).argmax(dim=1), 7).movedim(-1, 1).float()
    torch.testing.assert_close(drawn(logits, 1e-6), one_hot)  # the same draw, whatever the temperature


def test_gumbel_softmax_depends_only_on_its_generator():
    logits = torch.randn(2, 7, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    first = drawn(logits, 1.0)
    torch.manual_seed(2)
    assert drawn(logits, 1.0).equal(first)
    assert not drawn(logits, 1.0, seed=1).equal(first)


def test_gumbel_softmax_argmax_follows_the_categorical_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    draws = 40_000
    codes = drawn(logits[:, None, None].expand(1, 5, 200, 200), 0.5).argmax(dim=1)
    counts = torch.bincount(codes.flatten(), minlength=5)
    expected = logits.softmax(dim=0) * draws
    assert ((counts - expected).square() / expected).sum() < 18.5  # chi-squared of 4 degrees: once in a thousand


def test_gumbel_softmax_gradients_reach_the_logits():
    logits = torch.randn(1, 7, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    drawn(logits, 1.0)[:, 0].sum().backward()
    assert (logits.grad != 0).all()


# --- straight through ------------------------------------------------------------------------------------------


def test_straight_through_codes_are_one_hot_argmax_of_gumbel_softmax():
    logits = torch.randn(2, 7, 3, 3, generator=torch.Generator().manual_seed(1))
    codes = straight_through(logits, 1.0, torch.Generator().manual_seed(0))
    assert codes.unique().tolist() == [0.0, 1.0]
    assert codes.sum(dim=1).equal(torch.ones(2, 3, 3))
    assert codes.argmax(dim=1).equal(drawn(logits, 1.0).argmax(dim=1))


def test_straight_through_gradients_equal_gumbel_softmax_gradients():
    logits = torch.randn(2, 7, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    towards = torch.randn(2, 7, 3, 3, generator=torch.Generator().manual_seed(2))
    gradients = [
        torch.autograd.grad((draw(logits, 0.7, torch.Generator().manual_seed(0)) * towards).sum(), logits)
        for draw in (gumbel_softmax, straight_through)
    ]
    assert gradients[0][0].any()
    torch.testing.assert_close(*gradients)


def test_argmax_codes_are_one_hot_and_deterministic():
    logits = torch.randn(2, 7, 3, 3, generator=torch.Generator().manual_seed(1))
    codes = argmax_one_hot(logits)
    assert codes.equal(F.one_hot(logits.argmax(dim=1), 7).movedim(-1, 1).float())
    assert argmax_one_hot(drawn(logits, 1e-5)).equal(argmax_one_hot(drawn(logits, 1.0)))  # the same draw


@torch.no_grad()
@pytest.mark.parametrize("relaxation", ["gumbel_softmax", "straight_through"])
def test_training_uses_the_configured_relaxation(relaxation):
    torch.manual_seed(0)
    model = DiscreteVAE(DVAEConfig(11, width=8, groups=2, blocks_per_group=1, relaxation=relaxation))
    images = torch.rand(2, 3, 4, 4)
    likelihood_params, logits = model(images, 1.0, torch.Generator().manual_seed(0))
    draw = {"gumbel_softmax": gumbel_softmax, "straight_through": straight_through}[relaxation]
    assert likelihood_params.equal(model.decode_codes(draw(logits, 1.0, torch.Generator().manual_seed(0))))


def test_unknown_relaxation_raises():
    with pytest.raises(
        ValueError, match="relaxation='hard' is unknown; choose one of gumbel_softmax, straight_through"
    ):
        DVAEConfig(relaxation="hard")
