"""Diffusion decoder: image tokens and noise to pixels, in place of the dVAE's decoder.

The dVAE's decoder returns the mean of what a token grid may show, which is blurred. The diffusion decoder samples what
that image lacks: the residual between the image and its reconstruction by the dVAE, by flow matching. OpenAI's
consistency decoder for DALL-E 3 is the best-known decoder of this kind (Betker et al. 2023, Appendix A).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dalle import checkpoint
from dalle.config_validation import check_sizes
from dalle.models.decoder.flow import integrate
from dalle.models.decoder.unet import GROUPS, UNet
from dalle.models.dvae.model import DiscreteVAE, mean_image


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a diffusion decoder; `code_channels`, `code_side`, `image_vocabulary` and `grid` are the dVAE's."""

    width: int = 128  # channels of the first level; they double in each further level, at half the resolution
    levels: int = 2  # levels of the U-Net
    blocks: int = 2  # residual blocks of a level, on the way down and on the way up
    patch: int = 4  # pixels along a side of the squares that the first level sees as one position
    residual_scale: float = 0.1  # unit of the residual, about its root mean square, in pixels from 0 to 1
    image_vocabulary: int = 8192  # codes of the dVAE
    code_channels: int = 128  # channels of a code's embedding
    code_side: int = 8  # pixels along a side of a code
    grid: int = 32  # codes along a side of a training image

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.width % GROUPS:
            raise ValueError(f"width={self.width} must be a multiple of {GROUPS}, the groups of a norm")
        if self.residual_scale <= 0:
            raise ValueError(f"residual_scale={self.residual_scale} must be above 0")
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
            "code_channels": shapes["unet.down.0.codes.weight"][1],
        }


class Condition(NamedTuple):
    """Condition of the U-Net for b images: their reconstructions and the embeddings of their codes."""

    reconstruction: Tensor  # (b, 3, H, W) in [0, 1], by the dVAE's decoder
    codes: Tensor  # (b, code_channels, h, w), the dVAE's embeddings of the tokens


def condition_on(dvae: DiscreteVAE, tokens: Tensor) -> Condition:
    """Return the condition of tokens: (b, h, w) int64, which are not checked."""
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
        """Predict the residual from a noisy one. An untrained network predicts zero: the dVAE's reconstruction.

        noisy: (b, 3, H, W), residual and noise in units of `residual_scale`. time: (b,), 0 is data and 1 noise.
        reconstruction, codes: as in `Condition`.
        """
        x = torch.cat([noisy, 2 * reconstruction - 1], dim=1)  # (b, 6, H, W)
        return self.unet(x, time, codes)  # (b, 3, H, W)

    def residual(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Return what a reconstruction lacks, in units of `residual_scale`: (b, 3, H, W)."""
        return (images - reconstruction) / self.config.residual_scale

    def sample(self, condition: Condition, noise: Tensor, steps: int) -> Tensor:
        """Sample images by `steps` evaluations of the network: (b, 3, H, W) normal noise -> (b, 3, H, W) in [0, 1]."""
        residual = integrate(lambda x, time: self(x, time, *condition), noise, steps)
        return (condition.reconstruction + self.config.residual_scale * residual).clamp(0, 1)

    def decode(
        self, dvae: DiscreteVAE, tokens: Tensor, noise: Tensor, steps: int, precision: torch.dtype = torch.float32
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
