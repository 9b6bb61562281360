"""Loss of a decoder of one step: absolute errors of pixels, and of features of networks trained on ImageNet.

Under a loss of pixels alone, a decoder learns the mean of the images that a token grid may show, which is blurred.
Features tell a sharp line at a slightly wrong place from a soft one (Johnson et al. 2016; Zhang et al. 2018). What they
do not see, a decoder can get wrong: with one network and one image size, it learned a pattern of dots, and features see
little of colours, so edges had coloured fringes. So two networks take turns, images are shifted, mirrored and enlarged,
and errors of colour count more than those of brightness (docs/lab.md).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from dalle.optional_dependencies import check_installed
from dalle.precision import in_float32
from dalle.pretrained import efficientnet_lite
from dalle.seeds import numpy_generator

VERSIONS = (1, 2)  # of EfficientNet-lite; evaluation measures in features of version 0
ENLARGEMENTS = (1.0, 1.0, 1.25, 1.5)  # factors of an image's side, each as probable as the others
MAX_SHIFT = 8  # pixels
MIN_SPREAD = 0.01  # added to the standard deviation of a channel


@dataclass(frozen=True)
class PerceptualConfig:
    """Weights of the terms of the perceptual loss."""

    features: float = 1.0  # weight of the error of features
    pixels: float = 30.0  # weight of the error of pixels from 0 to 1
    chroma: float = 3.0  # weight of a pixel's error of colour, where that of its brightness has 1

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"perceptual.{name}={weight} must be a finite number of at least 0")


class View(NamedTuple):
    """View of the images in one update: which network sees them, and how they are moved before."""

    network: int  # index in `VERSIONS`
    enlargement: float
    shift: tuple[int, int]  # pixels, down and right, from -MAX_SHIFT to MAX_SHIFT
    mirrored: bool


LARGEST_VIEW = View(network=1, enlargement=max(ENLARGEMENTS), shift=(0, 0), mirrored=False)


def draw_view(step: int) -> View:
    """Draw the view of the update after `step` updates: a function of `step` alone, the same on all ranks."""
    generator = numpy_generator("perceptual view", step)
    down, right = generator.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2).tolist()
    enlargement = ENLARGEMENTS[int(generator.integers(len(ENLARGEMENTS)))]
    return View(step % len(VERSIONS), enlargement, (down, right), bool(generator.integers(2)))


class PerceptualLoss(nn.Module):
    """Perceptual loss in features of EfficientNet-lite1 and -lite2, which are frozen."""

    def __init__(self, config: PerceptualConfig, pretrained: bool = True):
        """Build the networks. pretrained: with the weights of their packages; False: with random ones, for plans.

        Raises ValueError if the packages are not installed.
        """
        super().__init__()
        weights = map(efficientnet_lite.weights_package, VERSIONS)
        check_installed("decoder", "the perceptual loss", efficientnet_lite.ARCHITECTURE_PACKAGE, *weights)
        load = efficientnet_lite.load_efficientnet_lite if pretrained else efficientnet_lite.build_efficientnet_lite
        self.config = config
        self.networks = nn.ModuleList(load(version) for version in VERSIONS).requires_grad_(False)
        self.eval()

    def forward(self, decoded: Tensor, images: Tensor, view: View) -> Tensor:
        """Compute the loss of each image: (b, 3, h, w) twice, images in [0, 1], decoded ones not clamped -> (b,)."""
        network = self.networks[view.network]
        with torch.no_grad():
            image_features = feature_maps(network, apply_view(images, view))
        decoded_features = feature_maps(network, apply_view(decoded, view))
        maps = zip(decoded_features, image_features, strict=True)
        features = torch.stack([feature_errors(decoded_map, target) for decoded_map, target in maps]).mean(dim=0)
        pixels = pixel_errors(decoded, images, self.config.chroma)
        return self.config.features * features + self.config.pixels * pixels


def apply_view(images: Tensor, view: View) -> Tensor:
    """Shift, mirror and enlarge images; borders repeat their last pixels: (b, 3, h, w) -> (b, 3, H, W)."""
    height, width = images.shape[-2:]
    down, right = (MAX_SHIFT + pixels for pixels in view.shift)
    padded = F.pad(images, [MAX_SHIFT] * 4, mode="replicate")
    moved = padded[:, :, down : down + height, right : right + width]
    if view.enlargement > 1:
        size = round(view.enlargement * height), round(view.enlargement * width)
        moved = F.interpolate(moved, size, mode="bicubic")
    return moved.flip(3) if view.mirrored else moved


def feature_maps(network: Any, images: Tensor) -> list[Tensor]:
    """Compute the feature maps of an EfficientNet-lite before each change of their number of channels, and the last.

    images: (b, 3, h, w) in [0, 1].
    """
    x = ((255 * images - 127) / 128).contiguous(memory_format=torch.channels_last)
    x = network._swish(network._bn0(network._conv_stem(x)))
    maps = []
    for block in network._blocks:
        features = block(x)
        if features.shape[1] != x.shape[1]:
            maps.append(x)
        x = features
    return [*maps, x, network._swish(network._bn1(network._conv_head(x)))]


@in_float32
def feature_errors(decoded: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute error of each image's features: (b, c, h, w) twice -> (b,).

    The error of a channel is in units of its standard deviation over the positions of the target. So channels that the
    image leaves silent, and the decoded one must not activate, weigh most (docs/lab.md).
    """
    spread = target.std(dim=(2, 3), correction=0, keepdim=True) + MIN_SPREAD
    return reduce((decoded - target).abs() / spread, "b c h w -> b", "mean")


@in_float32
def pixel_errors(decoded: Tensor, target: Tensor, chroma: float) -> Tensor:
    """Compute the mean absolute error of brightness, and `chroma` times that of colour: (b, 3, h, w) twice -> (b,)."""
    error = decoded - target
    brightness = error.mean(dim=1, keepdim=True)
    colour = reduce((error - brightness).abs(), "b c h w -> b", "mean")
    return reduce(brightness.abs(), "b c h w -> b", "mean") + chroma * colour
