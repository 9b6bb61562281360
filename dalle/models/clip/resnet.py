"""CLIP's ResNet image encoder, with attention pooling (CLIP paper, Section 2.4; OpenAI's released code)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.models.attention import full

CELL = 32  # downsampling factor: pixels per cell of the last feature map, along each side
GROWTH = 4  # ratio of a block's output channels to those of its 3x3 convolution


class ConvBatchNorm(nn.Module):
    """Convolution without bias, followed by batch norm: (b, inputs, h, w) -> (b, outputs, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """Bottleneck residual block: (b, inputs, h, w) -> (b, 4 * width, h / stride, w / stride).

    Average pooling replaces strided convolutions, which avoids aliasing.
    """

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = GROWTH * width
        self.reduce = ConvBatchNorm(inputs, width, 1)
        self.middle = ConvBatchNorm(width, width, 3)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.expand = ConvBatchNorm(width, outputs, 1)
        self.shortcut = ConvBatchNorm(inputs, outputs, 1) if stride > 1 or inputs != outputs else nn.Identity()
        nn.init.zeros_(self.expand.norm.weight)  # the branch is zero at initialisation

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.reduce(x))  # (b, d, h, w)
        branch = F.relu(self.middle(branch))  # (b, d, h, w)
        branch = self.expand(self.pool(branch))  # (b, 4 d, h / stride, w / stride)
        return F.relu(branch + self.shortcut(self.pool(x)))


class AttentionPool(nn.Module):
    """Attention pooling over all cells, with their mean as the query: (b, width, h, w) -> (b, embedding)."""

    def __init__(self, width: int, cells: int, heads: int, embedding: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"the last stage, {width} wide, does not divide into heads={heads}")
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(1 + cells, width) * width**-0.5)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, embedding)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        cells = rearrange(x, "b d h w -> b (h w) d")
        cells = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + self.positions  # (b, 1 + h w, d)
        q, k, v = self.query(cells[:, :1]), self.key(cells), self.value(cells)
        q, k, v = (rearrange(tensor, "b n (heads d) -> b heads n d", heads=self.heads) for tensor in (q, k, v))
        return self.out(rearrange(full(q, k, v), "b heads 1 d -> b (heads d)"))  # (b, embedding)


class ResNetEncoder(nn.Module):
    """ResNet: pixels (b, 3, image_size, image_size) -> features (b, embedding).

    Three convolutions, stages of residual blocks, attention pooling. Each stage after the first halves the resolution
    and doubles the width. `blocks` is the number of blocks in each stage (RN50: 3, 4, 6, 3), `width` the width of the
    first stage (RN50: 64).

    Raises:
        ValueError: an image_size that is not a multiple of 32, an odd width, or heads that do not divide 32 * width.
    """

    def __init__(self, image_size: int, width: int, blocks: Sequence[int], heads: int, embedding: int):
        super().__init__()
        if image_size % CELL or width % 2:
            raise ValueError(f"image_size={image_size} must be a multiple of {CELL}, and width={width} even")
        half = width // 2
        self.stem = nn.Sequential(
            ConvBatchNorm(3, half, 3, stride=2),
            nn.ReLU(),
            ConvBatchNorm(half, half, 3),
            nn.ReLU(),
            ConvBatchNorm(half, width, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        widths = [width * 2**stage for stage in range(len(blocks))]  # of the 3x3 convolutions
        inputs = [width, *(GROWTH * stage_width for stage_width in widths)]
        self.stages = nn.Sequential(
            *(_stage(inputs[stage], widths[stage], blocks[stage], 2 if stage else 1) for stage in range(len(blocks)))
        )
        self.pool = AttentionPool(inputs[-1], (image_size // CELL) ** 2, heads, embedding)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)  # (b, d, h / 4, w / 4)
        x = self.stages(x)  # (b, 32 d, h / 32, w / 32)
        return self.pool(x)  # (b, embedding)


def _stage(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """Build one stage: `depth` residual blocks in sequence, the first of them with `stride`."""
    first = Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(Bottleneck(GROWTH * width, width, 1) for _ in range(depth - 1)))
