"""Floating-point formats of at most 16 bits that no hardware has, as tensors of codes.

The paper keeps Adam's mean in 1-6-9 and its variance in 0-6-10: bits of sign, exponent and significand (App. D). Where
their exponents lie it says only of the 1-6-9 numbers that machines exchange: the largest is just under 16 (App. E).
We take that for all of them. It leaves 63 octaves, down to 2^-59, and below these subnormal numbers; a variance, being
a square, needs them. With the symmetric exponents of IEEE 754 it would vanish below 2^-40.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SmallFloat:
    """A format of [sign,] exponent and significand bits; numbers below the smallest octave are subnormal."""

    exponent_bits: int
    significand_bits: int  # behind the point; the one before it is implied
    largest_exponent: int  # the largest number is just under 2 ** (largest_exponent + 1)
    signed: bool = True
    infinite: bool = False  # as in IEEE 754 the topmost exponent is infinity; otherwise a number, as too large ones are

    def __post_init__(self) -> None:
        bits = self.signed + self.exponent_bits + self.significand_bits
        if not 2 <= self.exponent_bits <= 7 or self.significand_bits < 1 or bits > 16:
            raise ValueError(
                f"a small float needs 2 to 7 exponent bits, at least 1 significand bit and at most 16 bits in all, "
                f"not {self.exponent_bits}, {self.significand_bits} and {bits}"
            )

    @property
    def smallest_exponent(self) -> int:
        """Of the smallest number that is not subnormal."""
        return self.largest_exponent - (2**self.exponent_bits - 2 - self.infinite)

    @property
    def largest(self) -> float:
        return 2.0**self.largest_exponent * (2 - 2.0**-self.significand_bits)

    @property
    def smallest(self) -> float:
        """The smallest number above 0, a subnormal one."""
        return 2.0 ** (self.smallest_exponent - self.significand_bits)

    def encode(self, values: Tensor) -> Tensor:
        """float32 of any shape -> codes, int16 of the same shape: the nearest number, of two such the even one.

        What is too large becomes the largest number, or infinity where there is one. Without a sign, what is below
        0 becomes 0. No code means "not a number"; 0 stands for it.
        """
        magnitudes = values.float().abs().nan_to_num(nan=0.0)
        exponents = (magnitudes.view(torch.int32) >> 23) - 127
        exponents = exponents.clamp(self.smallest_exponent, self.largest_exponent + 1)
        significands = (magnitudes / _power_of_two(exponents - self.significand_bits)).round()
        # the implied one, and what rounding carries over, add up to the right exponent
        octaves = (exponents - self.smallest_exponent) << self.significand_bits
        codes = (octaves + significands.clamp(max=2**15).int()).clamp(max=self._largest_code + self.infinite)
        signs = values.signbit().int() << self._sign_bit
        return (codes | signs if self.signed else codes * (values > 0)).to(torch.int16)

    def decode(self, codes: Tensor) -> Tensor:
        """The float32 numbers that `codes` stand for, exactly."""
        wide = codes.int() & 0xFFFF
        magnitudes = wide & ((1 << self._sign_bit) - 1)
        octaves = magnitudes >> self.significand_bits
        implied = (octaves > 0).int() << self.significand_bits
        significands = (magnitudes & ((1 << self.significand_bits) - 1)) + implied
        exponents = octaves.clamp(min=1) - 1 + self.smallest_exponent
        values = significands * _power_of_two(exponents - self.significand_bits)
        if self.infinite:
            values = values.masked_fill(magnitudes > self._largest_code, torch.inf)
        return torch.where((wide >> self._sign_bit) > 0, -values, values)

    def round(self, values: Tensor) -> Tensor:
        """float32 -> the float32 numbers that are left of them in this format; what is not a number stays so."""
        return torch.where(values.isnan(), values, self.decode(self.encode(values)))

    @property
    def _sign_bit(self) -> int:
        return self.exponent_bits + self.significand_bits

    @property
    def _largest_code(self) -> int:
        return (1 << self._sign_bit) - 1 - (self.infinite << self.significand_bits)


MEAN = SmallFloat(6, 9, largest_exponent=3)  # of Adam's running mean
VARIANCE = SmallFloat(6, 10, largest_exponent=3, signed=False)


def ieee(exponent_bits: int, significand_bits: int) -> SmallFloat:
    """The format of these sizes as IEEE 754 would have it; (5, 10) is float16."""
    return SmallFloat(exponent_bits, significand_bits, 2 ** (exponent_bits - 1) - 1, infinite=True)


def _power_of_two(exponents: Tensor) -> Tensor:
    """2 ** exponents, exactly, for int32 exponents from -126 to 127."""
    return ((exponents + 127) << 23).view(torch.float32)
