"""Diffusion decoder: image tokens and noise to pixels, in place of the dVAE's decoder.

The dVAE's decoder returns the mean of what a token grid may show, which is blurred. The diffusion decoder samples what
that image lacks: the residual between the image and its reconstruction by the dVAE, by flow matching. OpenAI's
consistency decoder for DALL-E 3 is the best-known decoder of this kind (Betker et al. 2023, Appendix A).

Reconstructions lack a lot at edges and next to nothing in flat areas: of drawings, the residual's root mean square
varies by a factor of 300 between tenths of the pixels, in proportion to the local contrast of the reconstruction up to
a limit. So residual and noise are in units of `local_scale`. With one unit for all pixels, noise that a network does
not remove entirely shows as speckles in flat areas.

A decoder of one step (`one_step`) is the same network, trained by a perceptual loss to correct the reconstruction at
once. It gets no noise, and leaves areas of less than `flat_contrast` as they are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from dalle import checkpoint
from dalle.config_validation import check_sizes
from dalle.models.decoder.flow import integrate
from dalle.models.decoder.unet import GROUPS, UNet
from dalle.models.dvae.model import DiscreteVAE, mean_image

CONTRAST_WINDOW = 5  # pixels along a side of the squares whose contrast determines the scale of their centre
HALF_CONTRAST = 0.03  # contrast (standard deviation of pixels in [0, 1]) at which the scale is half its largest value
MIN_SCALE = 0.02  # smallest scale, as a part of the largest
EDGE_CONTRAST = 1.7  # multiple of `flat_contrast` from which on it has no effect
DEFAULT_STEPS = 8  # steps of a decoder with noise


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a diffusion decoder; `code_channels`, `code_side`, `image_vocabulary` and `grid` are the dVAE's."""

    width: int = 128  # channels of the first level; they double in each further level, at half the resolution
    levels: int = 2  # levels of the U-Net
    blocks: int = 2  # residual blocks of a level, on the way down and on the way up
    patch: int = 4  # pixels along a side of the squares that the first level sees as one position
    residual_scale: float = 0.1  # root mean square of the residual at edges, for pixels from 0 to 1: see `local_scale`
    one_step: bool = False  # decodes in one step, without noise: an image depends on its tokens alone
    flat_contrast: float = 0.0  # contrast of areas that a decoder of one step leaves as they are; 0: it changes all
    image_vocabulary: int = 8192  # codes of the dVAE
    code_channels: int = 128  # channels of a code's embedding
    code_side: int = 8  # pixels along a side of a code
    grid: int = 32  # codes along a side of a training image

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.width % GROUPS:
            raise ValueError(f"width={self.width} must be a multiple of {GROUPS}, the groups of a norm")
        if not 0 < self.residual_scale < math.inf:
            raise ValueError(f"residual_scale={self.residual_scale} must be a finite number above 0")
        if not 0 <= self.flat_contrast < math.inf:
            raise ValueError(f"flat_contrast={self.flat_contrast} must be a finite number of at least 0")
        if self.flat_contrast and not self.one_step:
            raise ValueError(f"flat_contrast={self.flat_contrast} needs one_step=true: noise has a scale everywhere")
        most = self.code_side.bit_length()  # checked first: 2 to the power of a huge number takes forever
        if self.levels > most or self.code_side % (self.patch * 2 ** (self.levels - 1)):
            raise ValueError(
                f"patch={self.patch} and levels={self.levels} give a lowest level of {self.patch} * "
                f"2^{self.levels - 1} pixels a position, which must divide the {self.code_side} pixels of a code: "
                "lower one of them"
            )

    @staticmethod
    def infer_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Infer the config's sizes from tensor shapes. Raises KeyError if they are not those of a decoder."""
        return {
            "width": shapes["unet.input.weight"][0],
            "levels": checkpoint.count_children(shapes, "unet.down."),
            "blocks": checkpoint.count_children(shapes, "unet.down.0.blocks."),
            "patch": math.isqrt(shapes["unet.input.weight"][1] // 6),  # of the noisy residual and the reconstruction
            "code_channels": shapes["unet.down.0.codes.weight"][1],
        }


class Condition(NamedTuple):
    """Condition of the U-Net for b images: their reconstructions and the embeddings of their codes."""

    reconstruction: Tensor  # (b, 3, H, W) in [0, 1], by the dVAE's decoder
    codes: Tensor  # (b, code_channels, h, w), the dVAE's embeddings of the tokens


def condition_on(dvae: DiscreteVAE, tokens: Tensor) -> Condition:
    """Compute the condition from image tokens, (b, h, w) int64, which are not checked."""
    codes = dvae.decoder.embed_tokens(tokens)
    return Condition(mean_image(dvae.decoder.decode_embeddings(codes)), codes)


class DiffusionDecoder(nn.Module):
    """Diffusion decoder of the tokens of one dVAE. Trained by `dalle.stages.decoder`."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(6, 3, config.width, config.levels, config.blocks, config.patch, config.code_channels)
        # convolutions are up to twice as fast in channels-last layout
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, noisy: Tensor, time: Tensor, reconstruction: Tensor, codes: Tensor) -> Tensor:
        """Predict the residual from a noisy one. An untrained network predicts 0 at time 1: the dVAE's reconstruction.

        The network's input and its target have a variance of about 1 at any time; what remains to predict is what the
        noisy residual does not tell, as in EDM (Karras et al. 2022, Section 5, here for straight paths).

        noisy: (b, 3, H, W), residual and noise in units of `local_scale`. time: (b,), 0 is data and 1 noise.
        reconstruction, codes: as in `Condition`.
        """
        t = rearrange(time, "b -> b 1 1 1")
        variance = (1 - t).square() + t.square()  # of `noisy`
        x = torch.cat([noisy * variance.rsqrt(), 2 * reconstruction - 1], dim=1)  # (b, 6, H, W)
        return (1 - t) / variance * noisy + t * variance.rsqrt() * self.unet(x, time, codes)  # (b, 3, H, W)

    def local_scale(self, reconstruction: Tensor) -> Tensor:
        """Return the unit of the residual at each pixel: (b, 3, H, W) in [0, 1] -> (b, 1, H, W).

        It grows with the contrast of the reconstruction around the pixel, to `residual_scale`. Up to `flat_contrast`
        it is 0.
        """
        border = [CONTRAST_WINDOW // 2] * 4
        padded = F.pad(reconstruction, border, mode="replicate")
        mean, square = (F.avg_pool2d(tensor, CONTRAST_WINDOW, stride=1) for tensor in (padded, padded.square()))
        variance = reduce(square - mean.square(), "b c h w -> b 1 h w", "mean")
        contrast = variance.clamp(min=0).sqrt()
        scale = self.config.residual_scale * (contrast / (contrast + HALF_CONTRAST)).clamp(min=MIN_SCALE)
        if flat := self.config.flat_contrast:
            scale = scale * ((contrast / flat - 1) / (EDGE_CONTRAST - 1)).clamp(0, 1)
        return scale

    def num_steps(self, steps: int | None) -> int:
        """Return the number of sampling steps; None: the default. Raises ValueError for several steps of `one_step`."""
        if not self.config.one_step:
            return steps or DEFAULT_STEPS
        if steps not in (None, 1):
            raise ValueError(f"decoder_steps={steps}: this decoder was trained to decode in one step; leave it out")
        return 1

    def sample(self, condition: Condition, noise: Tensor, steps: int | None = None) -> Tensor:
        """Sample images by `steps` evaluations of the network, see `num_steps`.

        noise: (b, 3, H, W), standard normal, which a decoder of one step does not use -> (b, 3, H, W) in [0, 1].
        """
        steps = self.num_steps(steps)
        if self.config.one_step:
            return self.refine(self, condition).clamp(0, 1)
        residual = integrate(lambda x, time: self(x, time, *condition), noise, steps)
        return (condition.reconstruction + self.local_scale(condition.reconstruction) * residual).clamp(0, 1)

    def refine(self, model: nn.Module, condition: Condition) -> Tensor:
        """Compute the image of a decoder of one step: (b, 3, H, W), not clamped. model: this one, wrapped or not."""
        reconstruction = condition.reconstruction
        time = torch.ones(len(reconstruction), device=reconstruction.device)
        residual = model(torch.zeros_like(reconstruction), time, *condition)
        return reconstruction + self.local_scale(reconstruction) * residual

    def decode(
        self,
        dvae: DiscreteVAE,
        tokens: Tensor,
        noise: Tensor,
        steps: int | None = None,
        precision: torch.dtype = torch.float32,
    ) -> Tensor:
        """Decode tokens to images, which depend on tokens, noise and steps alone.

        dvae: the dVAE of the tokens. tokens: (b, h, w) int64. noise: (b, 3, H, W), standard normal. precision: of the
        network's convolutions. -> (b, 3, H, W) in [0, 1]. Raises `ValueError` for indices outside the codebook.
        """
        dvae.check_tokens(tokens)
        condition = condition_on(dvae, tokens)
        with torch.autocast(noise.device.type, precision, enabled=precision != torch.float32):
            return self.sample(condition, noise, steps)

    def save(self, folder: str | Path, meta: dict | None = None) -> None:
        """Write the model to a checkpoint folder, which `load` reads. `meta`: further entries, JSON-serialisable."""
        checkpoint.save_model(folder, "decoder", self, self.config, meta)

    @classmethod
    def load(cls, folder: str | Path) -> "DiffusionDecoder":
        """Load a model in eval mode from a checkpoint folder. Raises `CheckpointError` if it is missing or invalid."""
        return checkpoint.load_model(folder, "decoder", DecoderConfig, cls)
