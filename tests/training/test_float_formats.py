import pytest
import torch

from dalle.training.float_formats import FLOAT_0_6_10, FLOAT_1_6_9, FloatFormat, ieee

FORMATS = pytest.mark.parametrize("format", [FLOAT_1_6_9, FLOAT_0_6_10, ieee(5, 10), ieee(3, 4)], ids=str)


def all_numbers(format: FloatFormat) -> torch.Tensor:
    """Return the values of all 16-bit codes, in the order of the codes."""
    return format.decode(torch.arange(2**16, dtype=torch.int32).to(torch.int16))


def test_paper_formats_have_16_bits_and_max_just_under_16():
    assert (FLOAT_1_6_9.largest, FLOAT_0_6_10.largest) == (16 - 2**-6, 16 - 2**-7)
    assert (FLOAT_1_6_9.smallest_exponent, FLOAT_0_6_10.smallest_exponent) == (-59, -59)
    assert (FLOAT_1_6_9.smallest, FLOAT_0_6_10.smallest) == (2.0**-68, 2.0**-69)
    for format in (FLOAT_1_6_9, FLOAT_0_6_10):
        numbers = all_numbers(format)
        assert numbers.max() == format.largest
        assert numbers[numbers > 0].min() == format.smallest
    assert all_numbers(FLOAT_1_6_9).min() == -FLOAT_1_6_9.largest
    assert all_numbers(FLOAT_0_6_10).min() == 0
    assert len(all_numbers(FLOAT_0_6_10).unique()) == 2**16
    assert len(all_numbers(FLOAT_1_6_9).unique()) == 2**16 - 1  # 0 and -0 are one


@pytest.mark.parametrize("format", [FLOAT_1_6_9, FLOAT_0_6_10, ieee(5, 10)], ids=str)
def test_every_representable_number_round_trips(format):
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    numbers = format.decode(codes)
    kept = numbers.isfinite()
    assert format.encode(numbers)[kept].equal(codes[kept])
    assert numbers.unflatten(0, (256, 256)).shape == format.decode(codes.unflatten(0, (256, 256))).shape


def test_format_with_float16_sizes_equals_float16():
    """Compared with torch's conversion: rounding to even, subnormal numbers, overflow, signs and codes."""
    generator = torch.Generator().manual_seed(0)
    octaves = torch.randint(-30, 20, (20_000,), generator=generator)
    values = torch.randn(20_000, generator=generator) * 2.0**octaves
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    halves = halves[halves.isfinite()].sort().values
    ties = (halves[1:] + halves[:-1]) / 2
    edges = torch.tensor([0.0, -0.0, 65504.0, 65519.9, 65520.0, -1e9, torch.inf, -torch.inf, 1e-45])
    for numbers in (values, ties, edges):
        assert ieee(5, 10).encode(numbers).equal(numbers.half().view(torch.int16))
        assert ieee(5, 10).round(numbers).equal(numbers.half().float())


@FORMATS
def test_rounds_to_nearest(format):
    generator = torch.Generator().manual_seed(0)
    values = format.largest * torch.rand(2000, generator=generator) ** 20
    numbers = all_numbers(format)
    numbers = numbers[numbers.isfinite()].unique()
    above = torch.searchsorted(numbers, values)
    distances = torch.stack([numbers[above - 1], numbers[above.clamp(max=len(numbers) - 1)]]) - values
    assert (format.round(values) - values).abs().equal(distances.abs().min(dim=0).values)


@FORMATS
def test_rounding_is_monotonic_and_keeps_relative_precision(format):
    values = torch.logspace(-24, 1.19, 5000, dtype=torch.float64).float().sort().values
    rounded = format.round(values)
    assert (rounded.diff() >= 0).all()
    normal = (values >= 2.0**format.smallest_exponent) & (values <= format.largest)
    assert normal.any()
    assert ((rounded - values).abs() <= values * 2.0 ** -(format.significand_bits + 1))[normal].all()


def test_overflow_saturates_underflow_is_zero_and_signs_are_kept():
    values = torch.tensor([1e6, -1e6, torch.inf, -torch.inf, 2.0**-70, -(2.0**-70), 1.6 * 2.0**-68, torch.nan, 0.0])
    expected = [
        FLOAT_1_6_9.largest,
        -FLOAT_1_6_9.largest,
        FLOAT_1_6_9.largest,
        -FLOAT_1_6_9.largest,
        0,
        0,
        2 * 2.0**-68,
        0,
        0,
    ]
    assert FLOAT_1_6_9.decode(FLOAT_1_6_9.encode(values)).tolist() == expected
    assert FLOAT_0_6_10.decode(FLOAT_0_6_10.encode(torch.tensor([100.0, -1.0, torch.nan]))).tolist() == [
        FLOAT_0_6_10.largest,
        0,
        0,
    ]
    assert ieee(4, 10).round(torch.tensor([1e3, torch.nan, 2.0**-17])).tolist()[::2] == [torch.inf, 0]
    assert ieee(4, 10).round(torch.tensor(torch.nan)).isnan()


def test_zero_has_code_zero():
    for format in (FLOAT_1_6_9, FLOAT_0_6_10):
        assert format.encode(torch.zeros(3)).tolist() == [0, 0, 0]


def test_invalid_sizes_raise():
    for exponent, significand in ((1, 10), (8, 7), (5, 0), (6, 10)):
        with pytest.raises(ValueError, match="a float format needs 2 to 7 exponent bits"):
            FloatFormat(exponent, significand, 0)
