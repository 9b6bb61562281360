"""Custom floating-point formats of at most 16 bits, stored as integer codes.

The paper stores Adam's mean in 1-6-9 and its variance in 0-6-10: bits of sign, exponent and significand (App. D). It
gives the exponent range only for the 1-6-9 numbers that machines exchange: the largest is just under 16 (App. E). Here
that range applies to both formats. It leaves 63 octaves, down to 2^-59, and subnormal numbers below, which a variance
needs, being a square. With the symmetric exponents of IEEE 754 it would underflow below 2^-40.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FloatFormat:
    """Floating-point format with an optional sign bit, exponent bits and significand bits, including subnormals.

    Raises ValueError for unsupported numbers of bits.
    """

    exponent_bits: int
    significand_bits: int  # without the implied leading 1
    largest_exponent: int  # the largest number is just under 2 ** (largest_exponent + 1)
    signed: bool = True
    has_infinity: bool = False  # the largest exponent code is infinity, as in IEEE 754; else large numbers saturate

    def __post_init__(self) -> None:
        bits = self.signed + self.exponent_bits + self.significand_bits
        if not 2 <= self.exponent_bits <= 7 or self.significand_bits < 1 or bits > 16:
            raise ValueError(
                f"a float format needs 2 to 7 exponent bits, at least 1 significand bit and at most 16 bits in all, "
                f"not {self.exponent_bits}, {self.significand_bits} and {bits}"
            )

    @property
    def smallest_exponent(self) -> int:
        """Exponent e of the format's smallest normal number, 2 ** e."""
        return self.largest_exponent - (2**self.exponent_bits - 2 - self.has_infinity)

    @property
    def largest(self) -> float:
        """Largest finite number of the format."""
        return 2.0**self.largest_exponent * (2 - 2.0**-self.significand_bits)

    @property
    def smallest(self) -> float:
        """Smallest positive number of the format, a subnormal."""
        return 2.0 ** (self.smallest_exponent - self.significand_bits)

    def encode(self, values: Tensor) -> Tensor:
        """Encode float32 values as int16 codes of the same shape, rounding to nearest, ties to even.

        Values that are too large become the largest number, or infinity if the format has it. Unsigned formats encode
        negative values as 0. NaN is encoded as 0.
        """
        magnitudes = values.float().abs().nan_to_num(nan=0.0)
        exponents = (magnitudes.view(torch.int32) >> 23) - 127
        exponents = exponents.clamp(self.smallest_exponent, self.largest_exponent + 1)
        significands = (magnitudes / _power_of_two(exponents - self.significand_bits)).round()
        # the implied 1, and a carry from rounding, add up to the right exponent
        biased_exponents = (exponents - self.smallest_exponent) << self.significand_bits
        codes = (biased_exponents + significands.clamp(max=2**15).int()).clamp(
            max=self._largest_code + self.has_infinity
        )
        signs = values.signbit().int() << self._sign_bit
        return (codes | signs if self.signed else codes * (values > 0)).to(torch.int16)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode the int16 codes that `encode` returns to float32 values of the same shape, without rounding."""
        bits = codes.int() & 0xFFFF
        magnitudes = bits & ((1 << self._sign_bit) - 1)
        biased_exponents = magnitudes >> self.significand_bits
        implied = (biased_exponents > 0).int() << self.significand_bits
        significands = (magnitudes & ((1 << self.significand_bits) - 1)) + implied
        exponents = biased_exponents.clamp(min=1) - 1 + self.smallest_exponent
        values = significands * _power_of_two(exponents - self.significand_bits)
        if self.has_infinity:
            values = values.masked_fill(magnitudes > self._largest_code, torch.inf)
        return torch.where((bits >> self._sign_bit) > 0, -values, values)

    def round(self, values: Tensor) -> Tensor:
        """Round float32 values to the nearest numbers of this format, returned in float32; NaN stays NaN."""
        return torch.where(values.isnan(), values, self.decode(self.encode(values)))

    @property
    def _sign_bit(self) -> int:
        return self.exponent_bits + self.significand_bits

    @property
    def _largest_code(self) -> int:
        return (1 << self._sign_bit) - 1 - (self.has_infinity << self.significand_bits)


FLOAT_1_6_9 = FloatFormat(6, 9, largest_exponent=3)  # of Adam's running mean
FLOAT_0_6_10 = FloatFormat(6, 10, largest_exponent=3, signed=False)  # of Adam's running variance


def ieee(exponent_bits: int, significand_bits: int) -> FloatFormat:
    """Return the IEEE 754 format with these numbers of bits; (5, 10) is float16."""
    return FloatFormat(exponent_bits, significand_bits, 2 ** (exponent_bits - 1) - 1, has_infinity=True)


def _power_of_two(exponents: Tensor) -> Tensor:
    """Compute 2 ** exponents exactly, for int32 exponents from -126 to 127."""
    return ((exponents + 127) << 23).view(torch.float32)
