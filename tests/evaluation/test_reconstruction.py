"""Metric `reconstruction`, with dVAEs whose codes and errors are known."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.metrics import reconstruction
from dalle.evaluation.metrics.reconstruction import (
    NO_OBJECTIVE,
    NO_POSTERIOR,
    NO_SSIM,
    reconstruction_metrics,
    reconstructions,
)
from dalle.image_conversion import to_tensor
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig


class FakeDVAE(nn.Module):
    """Encodes the i-th image as `grids[i % len(grids)]`, and decodes to the image plus `brighter`."""

    vocabulary = 16

    def __init__(self, grids: list[list[int]], brighter: float = 0.0):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))  # gives the device of the model
        self.grids = torch.tensor(grids).unsqueeze(1)  # (k, 1, w)
        self.brighter = brighter
        self.seen: list[Tensor] = []

    def encode(self, images: Tensor) -> Tensor:
        first = sum(map(len, self.seen))
        self.seen.append(images)
        return self.grids[torch.arange(first, first + len(images)) % len(self.grids)]

    def decode(self, tokens: Tensor) -> Tensor:
        assert tokens.shape[0] == len(self.seen[-1])
        return self.seen[-1] + self.brighter


@pytest.fixture(scope="module")
def val() -> BlocksSource:
    return BlocksSource(BlocksConfig(image_size=32, val=10), "val")


def compute_metrics(model: Any, source: BlocksSource, count: int = 4, batch_size: int = 8) -> dict[str, float]:
    return reconstruction_metrics(model, HeldOut(source, count, batch_size), source)


@pytest.mark.parametrize(
    ("grids", "used", "perplexity"),
    [
        ([[0, 0, 0, 0]], 1, 1.0),
        ([[0, 1, 2, 3]], 4, 4.0),
        ([[0, 0], [5, 5]], 2, 2.0),
        ([[7, 7, 7, 9]], 2, 4 / 27**0.25),
    ],
)
def test_codes_used_and_perplexity_over_all_images(val, grids, used, perplexity):
    metrics = compute_metrics(FakeDVAE(grids), val)
    assert metrics["codes_used"] == used
    assert metrics["code_perplexity"] == pytest.approx(perplexity, rel=1e-5)


def test_codes_are_counted_over_all_batches(val):
    metrics = compute_metrics(FakeDVAE([[0]] * 8 + [[5]] * 2), val, count=10)
    entropy = -sum(share * math.log(share) for share in (0.8, 0.2))
    assert metrics["codes_used"] == 2
    assert metrics["code_perplexity"] == pytest.approx(math.exp(entropy), rel=1e-5)


def test_rmse_and_psnr_of_a_constant_error(val):
    assert compute_metrics(FakeDVAE([[0]]), val)["reconstruction_rmse"] == 0
    brighter = compute_metrics(FakeDVAE([[0]], brighter=0.25), val)
    assert brighter["reconstruction_rmse"] == pytest.approx(0.25, rel=1e-4)
    assert brighter["psnr"] == pytest.approx(-20 * math.log10(0.25), rel=1e-4)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (5, 5), (8, 8), (9, 9), (500, 10)])
def test_first_images_are_reconstructed_once_each(val, count, expected):
    model = FakeDVAE([[0]])
    compute_metrics(model, val, count)  # in batches of 8
    seen = torch.cat(model.seen)
    assert len(seen) == expected
    (last,) = to_tensor([val[expected - 1].image])
    torch.testing.assert_close(seen[-1], last)


def test_reconstructions_do_not_depend_on_the_batch_size(val, checkpoints):
    dvae = DiscreteVAE.load(checkpoints / "dvae")
    one, many = (list(reconstructions(dvae, HeldOut(val, 10, batch_size))) for batch_size in (10, 4))
    assert [len(tokens) for _, _, tokens in many] == [4, 4, 2]
    assert torch.cat([tokens for _, _, tokens in many]).equal(one[0][2])
    torch.testing.assert_close(torch.cat([decoded for _, decoded, _ in many]), one[0][1])


def test_judge_accepts_perfect_and_rejects_blank_reconstructions():
    val = BlocksSource(BlocksConfig(val=20), "val")  # of smaller images the judge is not sure
    assert compute_metrics(FakeDVAE([[0]]), val, 20)["dvae_hard_judge"] == 1
    assert (
        compute_metrics(FakeDVAE([[0]], brighter=1.0), val, 20)["dvae_hard_judge"] == 0
    )  # above white, clipped to white


def test_dvae_is_evaluated_with_its_most_probable_codes(val, checkpoints):
    dvae = DiscreteVAE.load(checkpoints / "dvae")
    metrics = compute_metrics(dvae, val, 4)
    ((images, decoded, tokens),) = reconstructions(dvae, HeldOut(val, 4))
    assert tokens.equal(dvae.encode(images))
    assert decoded.equal(dvae.decode(tokens))
    assert metrics["codes_used"] == tokens.unique().numel()
    assert metrics["reconstruction_rmse"] == pytest.approx((decoded - images).square().mean().sqrt().item(), rel=1e-4)


def test_elbo_is_computed_if_the_checkpoint_records_the_likelihood(context, config):
    objective = {"likelihood": {"kind": "normal", "scale": 0.1, "floor": None}, "temperature": 0.5}
    result = reconstruction.measure(replace(context, objective=objective), config)
    assert {"elbo_nats", "bits_per_dimension", "elbo_gap_nats", "kl_nats"} <= result.numbers.keys()
    gap = result.numbers["reconstruction_rmse"] - result.numbers["reconstruction_rmse_relaxed"]
    assert result.numbers["reconstruction_rmse_gap"] == pytest.approx(gap)
    assert (result.settings["temperature"], result.settings["pairs"]) == (0.5, 7)
    assert NO_OBJECTIVE not in result.notes
    assert set(result.images) == {"reconstructions"}


def test_notes_on_metrics_that_cannot_be_computed(context, config):
    result = reconstruction.measure(context, config)
    assert result.notes == [NO_SSIM, NO_OBJECTIVE]  # for images of 8 pixels
    assert not {"elbo_nats", "ssim"} & result.numbers.keys()


def test_vq_vae_has_no_elbo(context, config):
    sizes = DVAEConfig(
        vocabulary=13, width=8, groups=2, blocks_per_group=1, decoder_input=8, relaxation="vector_quantisation"
    )
    objective = {"likelihood": {"kind": "normal"}, "temperature": 0.5}
    quantised = replace(context, dvae=DiscreteVAE(sizes), objective=objective)
    assert reconstruction.measure(quantised, config).notes == [NO_SSIM, NO_POSTERIOR]
