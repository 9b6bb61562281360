"""Data augmentation for the training of the judges of drawings; it does not change the classes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.evaluation.judges.small_resnet import resized


def augment_content(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift, scale and turn pictures a little, and make a third of them gray.

    (b, 3, s, s) in [0, 1] -> the same, and a mask (b,) of those that are gray.
    """
    count = len(images)
    uniform = torch.rand(5, count, generator=generator)
    scale, angle = 0.85 + 0.5 * uniform[0], (uniform[1] - 0.5) * math.pi / 9
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    shift = (uniform[2:4] - 0.5) * 0.25
    theta = torch.stack([torch.stack([cosine, -sine, shift[0]], -1), torch.stack([sine, cosine, shift[1]], -1)], dim=1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - images, grid, align_corners=False)  # white outside
    gray = uniform[4] < 1 / 3
    return torch.where(gray[:, None, None, None], moved.mean(dim=1, keepdim=True), moved), gray


def augment_style(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of a batch of images, crop all of it a little, and blur it half of the time.

    (b, 3, s, s) in [0, 1] -> the same shape. Samples of a model are less sharp than real drawings.
    """
    side = images.shape[-1]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    crop = int(torch.randint(side * 3 // 4, side + 1, (), generator=generator))
    top, left = torch.randint(0, side - crop + 1, (2,), generator=generator).tolist()
    images = images[:, :, top : top + crop, left : left + crop]
    if torch.rand((), generator=generator) < 0.5:
        images = resized(images, int(torch.randint(side * 3 // 8, side, (), generator=generator)))
    return resized(images, side)
