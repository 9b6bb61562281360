"""Random streams: all distinct and reproducible."""

from itertools import combinations

import pytest
import torch

from dalle.seeds import derive_seed, numpy_generator, torch_generator

# numpy's own seeding takes the first three for one another, and 2**32 for (0, 1)
NUMBERS = [(1, 2), (1, 2, 0), (1, 2, 0, 0), (12,), (), (0,), (0, 1), (2**32,), (-1,), (2**80,)]


@pytest.mark.parametrize("make", [derive_seed, lambda *of: numpy_generator(*of).integers(2**62)])
def test_no_two_streams_coincide(make):
    streams = [(purpose, *numbers) for purpose in ("a", "b", "a1") for numbers in NUMBERS]
    drawn = {stream: make(*stream) for stream in streams}
    assert all(drawn[one] != drawn[other] for one, other in combinations(streams, 2))


def test_stream_does_not_depend_on_integer_type():
    assert derive_seed("records", 3, 4) == derive_seed("records", torch.tensor(3).item(), 4)
    import numpy as np

    assert derive_seed("records", np.int64(3), np.uint8(4)) == derive_seed("records", 3, 4)
    first, second = (torch.rand(4, generator=torch_generator("loss", 1, 2)) for _ in range(2))
    assert torch.equal(first, second)


def test_seeds_fit_torch_generators():
    assert all(0 <= derive_seed("size", number) < 2**63 for number in range(1000))
