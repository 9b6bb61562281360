"""What the dVAE is built of: convolutions as OpenAI starts them, and residual blocks of them (Appendix A.1)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from dalle.precision import without_autocast


class Convolution(nn.Conv2d):
    """A 'same' convolution with OpenAI's initialisation: weights N(0, 1 / fan-in), biases 0."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)

    def reset_parameters(self) -> None:
        fan_in = self.in_channels * self.kernel_size[0] ** 2
        nn.init.normal_(self.weight, std=1 / math.sqrt(fan_in))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def in_full_precision(self, x: Tensor) -> Tensor:
        """self(x) in the weights' precision, under autocast too: next to the codes as in OpenAI's, and last."""
        with without_autocast(x.device.type):
            return self(x.to(self.weight.dtype))

    def scaled(self, x: Tensor, gain: float) -> Tensor:
        """gain * self(x), without a pass over the activations: the gain is multiplied into weights and biases."""
        bias = None if self.bias is None else gain * self.bias
        return F.conv2d(x, gain * self.weight, bias, padding=self.kernel_size[0] // 2)


class Block(nn.Module):
    """A bottleneck residual block, ReLU before every convolution: identity + gain * branch.

    With `upsample` the block works at twice its input's resolution. The published decoder repeats pixels first;
    here they are repeated after the 1x1 convolutions, which is the same function at a quarter of the work, since
    repeating pixels commutes with ReLU and with 1x1 convolutions.
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
        self.identity = nn.Identity() if inputs == outputs else Convolution(inputs, outputs, 1)
        self.first, self.second, self.third, self.last = (
            Convolution(a, b, k) for a, b, k in zip(widths[:-1], widths[1:], kernels, strict=True)
        )
        self.gain = gain
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest") if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.upsample(self.first(F.relu(x)))
        h = self.second(F.relu_(h))  # in place: a convolution does not need its output again
        h = self.third(F.relu_(h))
        h = self.last.scaled(F.relu_(h), self.gain)
        return h + self.upsample(self.identity(x))
