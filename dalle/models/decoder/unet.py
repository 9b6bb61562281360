"""U-Net of the diffusion decoder: convolutions at several resolutions, conditioned on a time and on code embeddings."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.precision import without_autocast

GROUPS = 8  # of each group norm; widths are multiples of it
TIME_CHANNELS = 64  # numbers of the sinusoidal embedding of a time
MAX_PERIOD = 10_000.0  # of the embedding, for times multiplied by 1,000 (Vaswani et al. 2017, Section 3.5)


class ScaleShiftBlock(nn.Module):
    """Residual block whose second norm is scaled and shifted by the time (Dhariwal and Nichol 2021, Section 3).

    The last convolution starts at zero, so that the block is its shortcut at first.
    """

    def __init__(self, inputs: int, outputs: int, time_width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, outputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.scale_shift = zero_init(nn.Linear(time_width, 2 * outputs))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Compute the block: (b, inputs, h, w) features, (b, time_width) time -> (b, outputs, h, w)."""
        h = self.first(F.silu(self.norm1(x)))
        scale, shift = self.scale_shift(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = self.second(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.shortcut(x) + h


class Level(nn.Module):
    """Residual blocks at one resolution of the U-Net; code embeddings are added to their input."""

    def __init__(self, inputs: int, outputs: int, blocks: int, code_channels: int, time_width: int):
        super().__init__()
        self.codes = nn.Conv2d(code_channels, inputs, 1)
        widths = [inputs, *[outputs] * blocks]
        self.blocks = nn.ModuleList(
            ScaleShiftBlock(a, b, time_width) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: Tensor, time: Tensor, codes: Tensor) -> Tensor:
        """Compute the level.

        x: (b, inputs, h, w). time: (b, time_width). codes: (b, code_channels, h / k, w / k) -> (b, outputs, h, w).
        """
        x = x + F.interpolate(self.codes(codes), x.shape[-2:])  # nearest neighbour: each code fills its square
        for block in self.blocks:
            x = block(x, time)
        return x


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) over patches of pixels; its output starts at zero.

    channels, outputs: of the image-like input and output. width: of the first level; it doubles in each further one, at
    half the resolution. patch: side of the squares of pixels that the first level sees as one position.
    """

    def __init__(
        self, channels: int, outputs: int, width: int, levels: int, blocks: int, patch: int, code_channels: int
    ):
        super().__init__()
        self.patch = patch
        widths = [width * 2**level for level in range(levels)]
        time_width = 4 * width
        self.time = nn.Sequential(nn.Linear(TIME_CHANNELS, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.input = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.down = nn.ModuleList(
            Level(level_width, level_width, blocks, code_channels, time_width) for level_width in widths
        )
        self.up = nn.ModuleList(
            Level(2 * level_width, level_width, blocks, code_channels, time_width) for level_width in widths[:-1]
        )
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.downsample = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.upsample = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairs)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.output = zero_init(nn.Conv2d(width, outputs * patch**2, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, codes: Tensor) -> Tensor:
        """Compute the output.

        x: (b, channels, H, W). time: (b,) in [0, 1]. codes: (b, code_channels, h, w) -> (b, outputs, H, W).
        """
        t = self.time(sinusoidal_embedding(time))
        x = self.input(F.pixel_unshuffle(x, self.patch))  # (b, width, H / patch, W / patch)
        skips = []
        for number, level in enumerate(self.down):
            x = level(x if number == 0 else self.downsample[number - 1](x), t, codes)
            skips.append(x)
        for number in reversed(range(len(self.up))):
            x = F.interpolate(self.upsample[number](x), scale_factor=2.0)
            x = self.up[number](torch.cat([x, skips[number]], dim=1), t, codes)
        x = F.silu(self.norm(x))
        with without_autocast(x.device.type):
            return F.pixel_shuffle(self.output(x.to(self.output.weight.dtype)), self.patch)


def sinusoidal_embedding(time: Tensor) -> Tensor:
    """Embed times in [0, 1] by sines and cosines of geometric frequencies: (b,) -> (b, TIME_CHANNELS)."""
    half = TIME_CHANNELS // 2
    exponents = torch.arange(half, device=time.device, dtype=torch.float32) / half
    angles = 1000 * time[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Set weight and bias of `layer` to zero, and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
