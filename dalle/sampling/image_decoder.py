"""Decoding of image tokens to images, by the dVAE's decoder or by a diffusion decoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dalle.image_conversion import to_pil_images
from dalle.models.decoder.model import DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.finite import check_finite
from dalle.sampling.sampling_config import DecodingConfig
from dalle.seeds import torch_generator

# images decoded at a time, whatever `SamplingConfig.memory` is: another number changes the rounding of some pixels
BATCH_SIZE = 16


@dataclass(frozen=True)
class ImageDecoder:
    """A diffusion decoder with its settings. The image of a candidate depends on (tokens, seed, candidate) alone.

    Raises:
        ValueError: `decoder_steps` of several steps for a decoder of one step.
    """

    model: DiffusionDecoder
    config: DecodingConfig  # its `seed` and `decoder_steps`
    precision: torch.dtype = torch.float32  # of the U-Net's convolutions

    def __post_init__(self) -> None:
        self.model.num_steps(self.config.decoder_steps)

    @torch.inference_mode()
    def __call__(self, dvae: DiscreteVAE, tokens: Tensor, candidates: Sequence[int]) -> list[Image.Image]:
        """Decode tokens: (b, h, w) int64 of the dVAE, b candidate numbers -> b images.

        Raises:
            ValueError: pixels that are NaN or infinite.
        """
        device = next(self.model.parameters()).device
        images: list[Image.Image] = []
        for start in range(0, len(tokens), BATCH_SIZE):
            batch = tokens[start : start + BATCH_SIZE].to(device)
            noise = self.noise(batch, candidates[start : start + BATCH_SIZE]).to(device)
            pixels = self.model.decode(dvae, batch, noise, self.config.decoder_steps, self.precision)
            check_finite(pixels, "the diffusion decoder decodes pixels")
            images += to_pil_images(pixels)
        return images

    def noise(self, tokens: Tensor, candidates: Sequence[int]) -> Tensor:
        """Return the noise of each candidate, drawn on the CPU for any device: (b, h, w) tokens -> (b, 3, H, W)."""
        side = self.model.config.code_side
        size = 3, tokens.shape[1] * side, tokens.shape[2] * side
        generators = (torch_generator("decoder noise", self.config.seed, candidate) for candidate in candidates)
        return torch.stack([torch.randn(size, generator=generator) for generator in generators])


@torch.inference_mode()
def decode_images(dvae: DiscreteVAE, tokens: Tensor) -> list[Image.Image]:
    """Decode image tokens with the dVAE's decoder: (b, h, w) int64 -> b images.

    Raises:
        ValueError: pixels that are NaN or infinite.
    """
    device = next(dvae.parameters()).device
    images: list[Image.Image] = []
    for batch in tokens.split(BATCH_SIZE):
        pixels = dvae.decode(batch.to(device))
        check_finite(pixels, "the dVAE decodes pixels")
        images += to_pil_images(pixels)
    return images


def check_decoder(decoder: DiffusionDecoder, dvae: DiscreteVAE, grid: int | None = None) -> None:
    """Raise ValueError for a decoder of other codes than those of `dvae`, or of images with another token grid."""
    config = decoder.config
    theirs = config.image_vocabulary, config.code_channels, config.code_side
    if theirs != (ours := (dvae.vocabulary, dvae.config.decoder_input, dvae.downsample)):
        raise ValueError(
            f"the decoder is for {_codes(*theirs)}, and the dVAE has {_codes(*ours)}; use components that were trained "
            "together"
        )
    if grid is not None and config.grid != grid:
        raise ValueError(
            f"the decoder was trained on images of {config.grid} x {config.grid} tokens, and the transformer samples "
            f"{grid} x {grid}; use components that were trained together"
        )


def _codes(vocabulary: int, channels: int, side: int) -> str:
    return f"{vocabulary} codes of {side} x {side} pixels with {channels} channels"
