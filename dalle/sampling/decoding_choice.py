"""Choice between sequential and parallel decoding for `decoding=auto`, from recorded figures, never from timing.

Parallel decoding is faster if a pass keeps more tokens than it costs sequential steps. Both figures were recorded with
`benchmarks/parallel_decoding.py`. A choice from them is the same in every run on a machine of the same kind.
"""

from typing import NamedTuple

import torch

from dalle.sampling.sampling_config import DecodingConfig

# tokens that a pass keeps, by window, with the default guesses: no more than in any measurement
TOKENS_PER_PASS = {4: 1.8, 8: 2.3, 16: 2.5}
# duration of a pass in sequential steps on a CPU, by window and by sequences of a step (two for a guided image)
PASS_COST = {
    4: {1: 1.4, 2: 1.5, 4: 1.5, 6: 1.7},
    8: {1: 1.5, 2: 1.7, 4: 1.7, 6: 2.0},
    16: {1: 1.6, 2: 2.1, 4: 2.1, 6: 2.9},
}
MIN_GAIN = 1.2  # parallel decoding is chosen if the figures promise this speed over sequential decoding


class DecodingChoice(NamedTuple):
    """Decoding method, and the reason for it in a few words."""

    decoding: str  # sequential | parallel
    reason: str


def choose_decoding(
    config: DecodingConfig, images: int, positions: int, device: torch.device, precision: torch.dtype
) -> DecodingChoice:
    """Choose the decoding method: that of `config`, or for `auto` the one that recorded figures expect to be faster.

    images: number of images to sample; `config.batch_size` of them are decoded at a time, or all.
    positions: tokens of an image.
    precision: number format of decoding. In 16 bits parallel decoding may sample other images, so it is not chosen.
    """
    if config.decoding != "auto":
        return DecodingChoice(config.decoding, "as set")
    if device.type != "cpu":
        return DecodingChoice("sequential", f"parallel decoding has not been measured on {device.type}")
    if precision != torch.float32:
        return DecodingChoice("sequential", "in 16 bits parallel decoding may sample other images")
    if config.window > positions:
        return DecodingChoice("sequential", f"window={config.window} is larger than an image of {positions} tokens")
    batch = images if config.batch_size is None else min(images, config.batch_size)
    at_a_time = f"{batch} image{'s' if batch > 1 else ''} at a time"
    gain = expected_gain(config.window, batch * (2 if config.guided else 1))
    if gain is None:
        return DecodingChoice(
            "sequential", f"parallel decoding has not been measured for {at_a_time}, window={config.window}"
        )
    decoding = "parallel" if gain >= MIN_GAIN else "sequential"
    return DecodingChoice(decoding, f"for {at_a_time}, parallel decoding is expected to be {gain:.1f} times as fast")


def expected_gain(window: int, sequences: int) -> float | None:
    """Return the expected speed of parallel decoding over sequential decoding; None without recorded figures.

    Between recorded windows and numbers of sequences, it takes the figures that promise less.
    """
    tokens = [kept for size, kept in TOKENS_PER_PASS.items() if size <= window]
    costs = [
        cost
        for size, by_sequences in PASS_COST.items()
        for number, cost in by_sequences.items()
        if size >= window and number >= sequences
    ]
    return max(tokens) / min(costs) if tokens and costs else None
