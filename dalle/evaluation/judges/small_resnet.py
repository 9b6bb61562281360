"""Small ResNet of the judges of drawings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        keeps_shape = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if keeps_shape else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.first(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.second(h)))


class ResNet(nn.Module):
    """ResNet with half the resolution at its input and at every block but the first (He et al. 2016)."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.input = nn.Conv2d(3, widths[0], 3, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        pairs = zip([widths[0], *widths[:-1]], widths, strict=True)
        self.blocks = nn.Sequential(
            *(BasicBlock(a, b, 1 if number == 0 else 2) for number, (a, b) in enumerate(pairs)),
            BasicBlock(widths[-1], widths[-1], 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute mean and maximum of the last feature maps: (b, 3, s, s) in [0, 1] -> (b, 2 * widths[-1])."""
        x = self.blocks(F.relu(self.norm(self.input(2 * images - 1))))
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)


def resized(images: Tensor, side: int) -> Tensor:
    """Scale square images to `side` pixels: (b, 3, s, s) -> (b, 3, side, side)."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
