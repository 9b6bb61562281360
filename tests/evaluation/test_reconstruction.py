"""Metrics of reconstructions, with dVAEs whose every code is known."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.metrics import reconstruction
from dalle.evaluation.metrics.reconstruction import NO_BOUND, NO_POSTERIOR, NO_SSIM, hard_metrics, reconstructions
from dalle.image_conversion import to_tensor
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig


class Known(nn.Module):
    """Encodes the i-th picture that it sees as `grids[i % len(grids)]`; decodes to what it saw, a little brighter."""

    vocabulary = 16

    def __init__(self, grids: list[list[int]], brighter: float = 0.0):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))  # tells where the model is
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
    return BlocksSource(BlocksConfig(val=70), "val")


def measured(model: Any, source: BlocksSource, pictures: int = 20) -> dict[str, float]:
    return hard_metrics(model, HeldOut(source, pictures), source)


@pytest.mark.parametrize(
    ("grids", "used", "perplexity"),
    [
        ([[0, 0, 0, 0]], 1, 1.0),
        ([[0, 1, 2, 3]], 4, 4.0),
        ([[0, 0], [5, 5]], 2, 2.0),
        ([[7, 7, 7, 9]], 2, 4 / 27**0.25),
    ],
)
def test_the_codes_of_all_pictures_are_counted_together(val, grids, used, perplexity):
    metrics = measured(Known(grids), val)
    assert metrics["codes_used"] == used
    assert metrics["code_perplexity"] == pytest.approx(perplexity, rel=1e-5)


def test_codes_are_counted_over_all_batches(val):
    metrics = measured(Known([[0]] * 64 + [[5]] * 6), val, pictures=70)
    entropy = -sum(share * math.log(share) for share in (64 / 70, 6 / 70))
    assert metrics["codes_used"] == 2
    assert metrics["code_perplexity"] == pytest.approx(math.exp(entropy), rel=1e-5)


def test_the_error_is_a_root_mean_square_of_pixels_in_the_unit_range(val):
    assert measured(Known([[0]]), val)["dvae_hard_error"] == 0
    brighter = measured(Known([[0]], brighter=0.25), val)
    assert brighter["dvae_hard_error"] == pytest.approx(0.25, rel=1e-4)
    assert brighter["psnr"] == pytest.approx(-20 * math.log10(0.25), rel=1e-4)


@pytest.mark.parametrize(("pictures", "expected"), [(1, 1), (20, 20), (64, 64), (66, 66), (500, 70)])
def test_the_first_pictures_are_seen_once_each(val, pictures, expected):
    model = Known([[0]])
    measured(model, val, pictures)
    seen = torch.cat(model.seen)
    assert len(seen) == expected
    (last,) = to_tensor([val[expected - 1].image])
    torch.testing.assert_close(seen[-1], last)


def test_batches_do_not_change_what_is_measured(val, checkpoints):
    dvae = DiscreteVAE.load(checkpoints / "dvae")
    one, many = (list(reconstructions(dvae, HeldOut(val, 10, batch_size))) for batch_size in (10, 4))
    assert [len(tokens) for _, _, tokens in many] == [4, 4, 2]
    assert torch.cat([tokens for _, _, tokens in many]).equal(one[0][2])
    torch.testing.assert_close(torch.cat([decoded for _, decoded, _ in many]), one[0][1])


def test_perfect_reconstructions_pass_the_judge_and_blank_ones_fail(val):
    assert measured(Known([[0]]), val)["dvae_hard_judge"] == 1
    assert measured(Known([[0]], brighter=1.0), val)["dvae_hard_judge"] == 0  # more than white, shown as white


def test_a_real_dvae_is_measured_by_its_most_probable_codes(val, checkpoints):
    dvae = DiscreteVAE.load(checkpoints / "dvae")
    metrics = measured(dvae, val, 4)
    ((images, decoded, tokens),) = reconstructions(dvae, HeldOut(val, 4))
    assert tokens.equal(dvae.encode(images))
    assert decoded.equal(dvae.decode(tokens))
    assert metrics["codes_used"] == tokens.unique().numel()
    assert metrics["dvae_hard_error"] == pytest.approx((decoded - images).square().mean().sqrt().item(), rel=1e-4)


def test_the_part_has_the_bound_where_the_checkpoint_says_the_likelihood(subject, config):
    objective = {"likelihood": {"kind": "normal", "scale": 0.1, "floor": None}, "temperature": 0.5}
    found = reconstruction.measure(replace(subject, objective=objective), config)
    assert {"elb_nats", "bits_per_dimension", "elb_gap_nats", "kl_nats"} <= found.numbers.keys()
    gap = found.numbers["dvae_hard_error"] - found.numbers["dvae_soft_error"]
    assert found.numbers["soft_hard_gap"] == pytest.approx(gap)
    assert (found.settings["temperature"], found.settings["pairs"]) == (0.5, 7)
    assert NO_BOUND not in found.notes
    assert set(found.pictures) == {"reconstructions"}


def test_what_a_checkpoint_does_not_allow_is_said(subject, config):
    found = reconstruction.measure(subject, config)
    assert found.notes == [NO_SSIM, NO_BOUND]  # of pictures of 8 pixels
    assert not {"elb_nats", "ssim"} & found.numbers.keys()


def test_a_vq_vae_has_no_bound(subject, config):
    sizes = DVAEConfig(
        vocabulary=13, width=8, groups=2, blocks_per_group=1, decoder_input=8, relaxation="vector_quantisation"
    )
    objective = {"likelihood": {"kind": "normal"}, "temperature": 0.5}
    quantised = replace(subject, dvae=DiscreteVAE(sizes), objective=objective)
    assert reconstruction.measure(quantised, config).notes == [NO_SSIM, NO_POSTERIOR]
