"""ELBO and bits per dimension, against the definition and cases with known answers."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.metrics.elbo import elbo_metrics
from dalle.image_conversion import to_unit_range
from dalle.losses import LikelihoodConfig, kl_to_uniform, per_pixel_loss
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig

SIZES = DVAEConfig(vocabulary=5, width=8, groups=2, blocks_per_group=1, decoder_input=8, gain=1.0)


def pairs(count: int = 6, batch_size: int = 4) -> HeldOut:
    return HeldOut(BlocksSource(BlocksConfig(image_size=8, val=10), "val"), count, batch_size)


def images(count: int = 6) -> torch.Tensor:
    return to_unit_range(torch.cat([batch.images for batch in pairs(count)]))


@pytest.fixture
def dvae() -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(SIZES).eval()


def scale_logits(dvae: DiscreteVAE, factor: float) -> DiscreteVAE:
    """Multiply the dVAE's logits by `factor`, in place."""
    with torch.no_grad():
        dvae.encoder.output.weight.mul_(factor)
        dvae.encoder.output.bias.mul_(factor)
    return dvae


@pytest.mark.parametrize("likelihood", [LikelihoodConfig(), LikelihoodConfig("normal"), LikelihoodConfig("laplace")])
def test_elbo_of_a_confident_encoder_is_the_training_loss_of_one_hot_codes(dvae, likelihood):
    dvae = scale_logits(dvae, 1e4)
    metrics = elbo_metrics(dvae, pairs(), likelihood, 1e-3, seed=0)
    logits = dvae.logits(images())
    codes = rearrange(F.one_hot(logits.argmax(1), 5).float(), "b h w v -> b v h w")
    with torch.no_grad():
        loss = per_pixel_loss(likelihood.nll(dvae.decode_codes(codes), images()), kl_to_uniform(logits), 1.0).item()
    assert metrics["elbo_nats"] == pytest.approx(-loss * 8 * 8 * 3, rel=1e-4)
    assert metrics["elbo_gap_nats"] == pytest.approx(0, abs=1e-2)
    assert metrics["kl_nats"] == pytest.approx(math.log(5), rel=1e-4)
    jacobian = math.log(0.8) if likelihood.kind == "logit_laplace" else 0
    assert metrics["bits_per_dimension"] == pytest.approx((loss - jacobian + math.log(255)) / math.log(2), rel=1e-4)


def test_elbo_averages_over_samples_of_the_encoder(dvae):
    """With logits of 0 all 5 codes are equally probable for every image."""
    dvae = scale_logits(dvae, 0.0)
    likelihood = LikelihoodConfig("normal", scale=0.5)
    metrics = [elbo_metrics(dvae, pairs(), likelihood, 5.0, seed=seed) for seed in range(12)]
    exact, relaxed = (sum(measured[name] for measured in metrics) / 12 for name in ("elbo_nats", "elbo_relaxed_nats"))
    with torch.no_grad():
        drawn = torch.randint(0, 5, (400, 4, 4), generator=torch.Generator().manual_seed(1))
        likelihood_params = dvae.decode_codes(rearrange(F.one_hot(drawn, 5).float(), "b h w v -> b v h w"))
        expected = -torch.stack([likelihood.nll(likelihood_params, image).sum() / 400 for image in images()]).mean()
    assert exact == pytest.approx(expected.item(), abs=1)
    assert abs(relaxed - expected.item()) > 2
    assert metrics[0]["kl_nats"] == pytest.approx(0, abs=1e-6)


def test_gap_vanishes_at_low_temperature(dvae):
    warm, cold = (elbo_metrics(dvae, pairs(), LikelihoodConfig("normal"), t, seed=0) for t in (5.0, 1e-4))
    assert warm["elbo_nats"] == cold["elbo_nats"]  # the ELBO does not depend on the temperature
    assert abs(cold["elbo_gap_nats"]) < 1e-2 < abs(warm["elbo_gap_nats"])
    assert warm["elbo_gap_nats"] == pytest.approx(warm["elbo_relaxed_nats"] - warm["elbo_nats"])
