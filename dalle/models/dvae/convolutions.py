"""Layers of the dVAE: convolutions with OpenAI's initialisation, and residual blocks of them (Appendix A.1)."""

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.models.kernels import kernel_device
from dalle.precision import without_autocast


class SameConv2d(nn.Conv2d):
    """A 'same' convolution with OpenAI's initialisation: weights N(0, 1 / fan-in), biases 0."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)

    def reset_parameters(self) -> None:
        fan_in = self.in_channels * self.kernel_size[0] ** 2
        nn.init.normal_(self.weight, std=1 / math.sqrt(fan_in))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def in_full_precision(self, x: Tensor) -> Tensor:
        """Compute self(x) in the weights' precision, also under autocast.

        Used for the layers next to the codes, as in OpenAI's code, and for the last layer.
        """
        with without_autocast(x.device.type):
            x = x.to(self.weight.dtype)
            if self.kernel_size == (1, 1) and kernel_device(x.device) == "cpu":
                return self.as_linear(x)
            return self(x)

    def as_linear(self, x: Tensor) -> Tensor:
        """Compute self(x) of a 1x1 convolution as a matrix product, with the result in channels-last layout.

        On a CPU with one thread, torch's convolution would copy the result, and be slower.
        """
        x = F.linear(rearrange(x, "b c h w -> b h w c"), self.weight.flatten(1), self.bias)
        return rearrange(x, "b h w c -> b c h w")

    def scaled(self, x: Tensor, gain: float) -> Tensor:
        """Compute gain * self(x); the gain is multiplied into weight and bias, which saves a pass over the output."""
        bias = None if self.bias is None else gain * self.bias
        return F.conv2d(x, gain * self.weight, bias, padding=self.kernel_size[0] // 2)


class ResidualBlock(nn.Module):
    """Bottleneck residual block, identity + gain * branch: (b, inputs, h, w) -> (b, outputs, h, w).

    Every convolution follows a ReLU. With `upsample` the output has twice the input's resolution. The published decoder
    upsamples first. Here the 1x1 convolutions come first, at a quarter of the cost: nearest-neighbour upsampling
    commutes with ReLU and with 1x1 convolutions, so the function is the same.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernels: tuple[int, int, int, int],
        gain: float,
        upsample: bool = False,
    ):
        super().__init__()
        hidden = outputs // 4
        widths = [inputs, hidden, hidden, hidden, outputs]
        self.identity = nn.Identity() if inputs == outputs else SameConv2d(inputs, outputs, 1)
        self.first, self.second, self.third, self.last = (
            SameConv2d(a, b, k) for a, b, k in zip(widths[:-1], widths[1:], kernels, strict=True)
        )
        self.gain = gain
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest") if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.upsample(self.first(F.relu(x)))
        h = self.second(F.relu_(h))  # in place: a convolution's backward pass does not need its output
        h = self.third(F.relu_(h))
        h = self.last.scaled(F.relu_(h), self.gain)
        h += self.upsample(self.identity(x))
        return h
