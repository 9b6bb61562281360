"""Counter-based random numbers: Gumbel noise as a pure function of (seed, candidate, position, token).

Numbers from a generator would depend on the order of draws, so on batch size and order. Here every number is a hash of
its coordinates (SplitMix64, Steele et al. 2014), computed for a whole batch at once on any device.
"""

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's constants as signed 64-bit integers, which wrap around
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def candidate_keys(seed: int, candidates: Tensor) -> Tensor:
    """Derive a key for each candidate number: int64 of any shape -> the same. `seed` may be any integer."""
    start = torch.tensor((seed + 2**63) % 2**64 - 2**63, device=candidates.device)
    return _hash(_hash(start), candidates)


def gumbel_noise(keys: Tensor, position: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise for sampling the token at `position`: (b,) keys -> (b, vocabulary) fp32.

    The argmax of log-probabilities plus this noise is a sample of the distribution. Rounding in the logits changes the
    sample only if two tokens tie to within it. With inversion of a cumulative sum, rounding could do so at every
    token's boundary.
    """
    here = _hash(keys, torch.full_like(keys, position))
    bits = _hash(here[:, None], torch.arange(vocabulary, device=keys.device))
    # float64 holds 40 random bits, and 1 minus them, exactly. Devices compute logarithms differently, but the result
    # rounds to the same float32, so a CPU and a GPU sample the same tokens
    uniform = _shift(bits, 24, out=bits).double().add_(0.5).mul_(-(2.0**-40)).add_(1.0)
    return uniform.log_().neg_().log_().neg_().float()  # -log(-log(uniform))


def _hash(key: Tensor, number: Tensor | int = 0) -> Tensor:
    """Return the number-th output of SplitMix64 from state `key`."""
    z = key + (number + 1) * _STEP
    shifted = torch.empty_like(z)  # reusing a buffer halves the time
    for by, factor in ((30, _FIRST), (27, _SECOND)):
        z ^= _shift(z, by, out=shifted)
        z *= factor
    z ^= _shift(z, 31, out=shifted)
    return z


def _shift(z: Tensor, by: int, out: Tensor) -> Tensor:
    """Shift z to the right as unsigned numbers, written into `out`."""
    torch.bitwise_right_shift(z, by, out=out)
    out &= (1 << (64 - by)) - 1  # clear the copies of the sign bit
    return out
