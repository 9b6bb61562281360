"""Gumbel noise from counter-based random numbers: a pure function of (seed, candidate, position, token).

Added to log-probabilities, it samples tokens by the Gumbel-max trick.

Numbers from a generator would depend on the order of draws, so on batch size and order. Here every number is a hash of
its coordinates (SplitMix64, Steele et al. 2014), computed for a whole batch at once on any device.
"""

import operator

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's constants as signed 64-bit integers, which wrap around
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


def candidate_noise_keys(seed: int, candidates: Tensor) -> Tensor:
    """Derive a key for each candidate number: int64 of any shape -> the same. `seed` may be any integer."""
    state = torch.tensor((operator.index(seed) + 2**63) % 2**64 - 2**63, device=candidates.device)
    return _splitmix64(_splitmix64(state), candidates)


def gumbel_noise(keys: Tensor, position: int | Tensor, vocabulary: int) -> Tensor:
    """Return standard Gumbel noise for sampling the token at `position`: (b,) keys -> (b, vocabulary) fp32.

    position: the same for all keys, or (b,) int64, one for each.

    The argmax of log-probabilities plus this noise is a sample of the distribution. Rounding in the logits changes the
    sample only if two tokens tie to within it. With inversion of a cumulative sum, rounding could do so at every
    token's boundary.
    """
    positions = position if isinstance(position, Tensor) else torch.full_like(keys, position)
    position_keys = _splitmix64(keys, positions)
    bits = _splitmix64(position_keys[:, None], torch.arange(vocabulary, device=keys.device))
    # float64 holds 40 random bits, and 1 minus them, exactly. Devices compute logarithms differently, but the result
    # rounds to the same float32, so a CPU and a GPU sample the same tokens
    uniform = _logical_right_shift(bits, 24, out=bits).double().add_(0.5).mul_(-(2.0**-40)).add_(1.0)
    return uniform.log_().neg_().log_().neg_().float()  # -log(-log(uniform))


def _splitmix64(state: Tensor, number: Tensor | int = 0) -> Tensor:
    """Return output number `number`, from 0, of the generator SplitMix64 in `state`: int64, broadcast."""
    z = state + (number + 1) * _GAMMA
    shifted = torch.empty_like(z)  # reusing a buffer halves the time
    for bits, multiplier in ((30, _MULTIPLIER_1), (27, _MULTIPLIER_2)):
        z ^= _logical_right_shift(z, bits, out=shifted)
        z *= multiplier
    z ^= _logical_right_shift(z, 31, out=shifted)
    return z


def _logical_right_shift(z: Tensor, bits: int, out: Tensor) -> Tensor:
    """Shift int64 z to the right by `bits`, as unsigned numbers. Returns `out`, which is overwritten."""
    torch.bitwise_right_shift(z, bits, out=out)
    out &= (1 << (64 - bits)) - 1  # clear the copies of the sign bit
    return out
