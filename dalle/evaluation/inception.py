"""Inception v3 as in the definition of FID, from the weights file that pytorch-fid and torch-fidelity share.

It is the ImageNet model of 2015 in TensorFlow (Szegedy et al. 2016): average pooling excludes the padding, and the last
block uses max pooling where the others average. Modules are named as in the file, so its tensors load unchanged. No
code in the file is run.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.checkpoint import CheckpointError, check_tensors
from dalle.pretrained.restricted_unpickler import read_torch_file

SIDE = 299  # pixels; input size
WIDTH = 2048  # features of an image: the last block, averaged over positions
CLASSES = 1008  # the 1,000 of ImageNet and 8 unused ones; the published scores use all
FILE = "pt_inception-2015-12-05-6726825d.pth"


class ConvSpec(NamedTuple):
    """One convolution: its name in the weights file, output channels, kernel size and stride."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# one step of a branch; two convolutions in a tuple have the same input, and their outputs are concatenated
Step = ConvSpec | str | tuple[ConvSpec, ConvSpec]
POOLS = {
    "avg_pool": partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False),
    "max_pool": partial(F.max_pool2d, kernel_size=3, stride=1, padding=1),
    "max_pool_stride_2": partial(F.max_pool2d, kernel_size=3, stride=2),
}


def _inception_a(pool_features: int) -> list[list[Step]]:
    """Return the branches of block A: 5x5 convolutions, one of them as two of 3x3 (Figure 5 of Szegedy et al. 2016)."""
    return [
        [ConvSpec("branch1x1", 64)],
        [ConvSpec("branch5x5_1", 48), ConvSpec("branch5x5_2", 64, (5, 5))],
        [
            ConvSpec("branch3x3dbl_1", 64),
            ConvSpec("branch3x3dbl_2", 96, (3, 3)),
            ConvSpec("branch3x3dbl_3", 96, (3, 3)),
        ],
        ["avg_pool", ConvSpec("branch_pool", pool_features)],
    ]


def _inception_c(channels_7x7: int) -> list[list[Step]]:
    """Return the branches of block C: 7x7 convolutions, factorised into rows and columns (Figure 6)."""
    return [
        [ConvSpec("branch1x1", 192)],
        [
            ConvSpec("branch7x7_1", channels_7x7),
            ConvSpec("branch7x7_2", channels_7x7, (1, 7)),
            ConvSpec("branch7x7_3", 192, (7, 1)),
        ],
        [
            ConvSpec("branch7x7dbl_1", channels_7x7),
            ConvSpec("branch7x7dbl_2", channels_7x7, (7, 1)),
            ConvSpec("branch7x7dbl_3", channels_7x7, (1, 7)),
            ConvSpec("branch7x7dbl_4", channels_7x7, (7, 1)),
            ConvSpec("branch7x7dbl_5", 192, (1, 7)),
        ],
        ["avg_pool", ConvSpec("branch_pool", 192)],
    ]


def _inception_e(pool: str) -> list[list[Step]]:
    """Return the branches of block E: 3x3 convolutions that end in a row and a column in parallel (Figure 7)."""
    return [
        [ConvSpec("branch1x1", 320)],
        [ConvSpec("branch3x3_1", 384), (ConvSpec("branch3x3_2a", 384, (1, 3)), ConvSpec("branch3x3_2b", 384, (3, 1)))],
        [
            ConvSpec("branch3x3dbl_1", 448),
            ConvSpec("branch3x3dbl_2", 384, (3, 3)),
            (ConvSpec("branch3x3dbl_3a", 384, (1, 3)), ConvSpec("branch3x3dbl_3b", 384, (3, 1))),
        ],
        [pool, ConvSpec("branch_pool", 192)],
    ]


# strided blocks, from 35 x 35 to 17 x 17 positions (B) and to 8 x 8 (D)
INCEPTION_B: list[list[Step]] = [
    [ConvSpec("branch3x3", 384, (3, 3), stride=2)],
    [
        ConvSpec("branch3x3dbl_1", 64),
        ConvSpec("branch3x3dbl_2", 96, (3, 3)),
        ConvSpec("branch3x3dbl_3", 96, (3, 3), stride=2),
    ],
    ["max_pool_stride_2"],
]
INCEPTION_D: list[list[Step]] = [
    [ConvSpec("branch3x3_1", 192), ConvSpec("branch3x3_2", 320, (3, 3), stride=2)],
    [
        ConvSpec("branch7x7x3_1", 192),
        ConvSpec("branch7x7x3_2", 192, (1, 7)),
        ConvSpec("branch7x7x3_3", 192, (7, 1)),
        ConvSpec("branch7x7x3_4", 192, (3, 3), stride=2),
    ],
    ["max_pool_stride_2"],
]
BLOCKS = {
    "Mixed_5b": _inception_a(32),  # 35 x 35 positions
    "Mixed_5c": _inception_a(64),
    "Mixed_5d": _inception_a(64),
    "Mixed_6a": INCEPTION_B,
    "Mixed_6b": _inception_c(128),
    "Mixed_6c": _inception_c(160),
    "Mixed_6d": _inception_c(160),
    "Mixed_6e": _inception_c(192),
    "Mixed_7a": INCEPTION_D,
    "Mixed_7b": _inception_e("avg_pool"),
    "Mixed_7c": _inception_e("max_pool"),
}


class BasicConv2d(nn.Module):
    """Convolution, batch norm, ReLU. No padding if strided or if `padded` is false."""

    def __init__(self, inputs: int, spec: ConvSpec, padded: bool = True):
        super().__init__()
        height, width = spec.kernel
        padding = (height // 2, width // 2) if padded and spec.stride == 1 else 0
        self.conv = nn.Conv2d(inputs, spec.outputs, spec.kernel, spec.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(spec.outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class InceptionBlock(nn.Module):
    """Parallel branches with the same input, concatenated along the channels."""

    def __init__(self, inputs: int, branches: Sequence[Sequence[Step]]):
        super().__init__()
        self.branches = branches
        self.outputs = 0
        for branch in branches:
            width = inputs
            for step in branch:
                if not isinstance(step, str):
                    for spec in _parallel_convs(step):
                        self.add_module(spec.name, BasicConv2d(width, spec))
                    width = sum(spec.outputs for spec in _parallel_convs(step))
            self.outputs += width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(branch, x) for branch in self.branches], dim=1)

    def _branch(self, branch: Sequence[Step], x: Tensor) -> Tensor:
        for step in branch:
            if isinstance(step, str):
                x = POOLS[step](x)
            else:
                x = torch.cat([self.get_submodule(spec.name)(x) for spec in _parallel_convs(step)], dim=1)
        return x


def _parallel_convs(step: ConvSpec | tuple[ConvSpec, ConvSpec]) -> tuple[ConvSpec, ...]:
    return (step,) if isinstance(step, ConvSpec) else step


# own implementation: torchmetrics uses torch-fidelity's, which needs torchvision
class Inception(nn.Module):
    """Feature network of FID: images to features and logits. Use `load` for the trained weights."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, ConvSpec("", 32, (3, 3), stride=2))
        self.Conv2d_2a_3x3 = BasicConv2d(32, ConvSpec("", 32, (3, 3)), padded=False)
        self.Conv2d_2b_3x3 = BasicConv2d(32, ConvSpec("", 64, (3, 3)))
        self.Conv2d_3b_1x1 = BasicConv2d(64, ConvSpec("", 80))
        self.Conv2d_4a_3x3 = BasicConv2d(80, ConvSpec("", 192, (3, 3)), padded=False)
        width = 192
        for name, branches in BLOCKS.items():
            block = InceptionBlock(width, branches)
            self.add_module(name, block)
            width = block.outputs
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features (b, 2048) and logits (b, 1008) of images (b, 3, h, w) in [0, 255].

        The logits are without bias, as the Inception score needs them.
        """
        x = (resize_tensorflow1(images, SIDE) - 128) / 128  # (b, 3, 299, 299)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (b, 64, 147, 147)
        x = POOLS["max_pool_stride_2"](x)  # (b, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (b, 192, 71, 71)
        x = POOLS["max_pool_stride_2"](x)  # (b, 192, 35, 35)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)  # (b, 2048, 8, 8) after the last
        features = x.mean(dim=(2, 3))
        return features, features @ self.fc.weight.T

    @classmethod
    def load(cls, path: str | Path) -> "Inception":
        """Load the network in eval mode from a weights file. Raises CheckpointError if it is missing or wrong."""
        with torch.device("meta"):
            model = cls()
        expected = {name: value for name, value in model.state_dict().items() if not _is_batch_counter(name)}
        tensors = {
            name: value.float()
            for name, value in read_torch_file(path, _is_allowed_class).tensors.items()
            if not _is_batch_counter(name)
        }
        try:
            check_tensors(expected, tensors, Path(path))
        except CheckpointError as error:
            raise CheckpointError(f"{error}. FID needs the weights published as {FILE}") from None
        for name, buffer in model.named_buffers():
            if _is_batch_counter(name):
                tensors[name] = torch.zeros_like(buffer, device="cpu")
        model.load_state_dict(tensors, assign=True)
        return model.eval()


def _is_batch_counter(name: str) -> bool:
    """Return True if a tensor is a batch counter of batch norm, which files may lack and evaluation does not use."""
    return name.endswith("num_batches_tracked")


def _is_allowed_class(name: str) -> bool:
    return False  # the file is a mapping of tensors


def resize_tensorflow1(images: Tensor, side: int) -> Tensor:
    """Resize images as TensorFlow 1 does: (b, c, h, w) floats -> (b, c, side, side).

    Bilinear without antialiasing; output pixel i is at i * h / side, half a pixel off other libraries.
    """
    rows, columns = (_interpolation_matrix(length, side).to(images) for length in images.shape[-2:])
    return rows @ images @ columns.T


def _interpolation_matrix(length: int, side: int) -> Tensor:
    """Return the matrix of bilinear interpolation from `length` to `side` pixels on an axis: (side, length) fp32."""
    positions = torch.arange(side) * (length / side)
    lower = positions.long()
    fraction = positions - lower
    weights = torch.zeros(side, length)
    weights.scatter_add_(1, lower[:, None], 1 - fraction[:, None])
    return weights.scatter_add_(1, (lower + 1).clamp(max=length - 1)[:, None], fraction[:, None])
