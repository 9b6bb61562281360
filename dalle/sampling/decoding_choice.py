"""Choice of how images are decoded: the method for `decoding=auto`, the window of its passes, and the batch size.

Parallel decoding is faster if a pass keeps more tokens than it costs sequential steps. Both figures were recorded with
`benchmarks/parallel_decoding.py`, and method and window follow from them, never from timing. So they are the same in
every run on a machine of the same kind, unless the free memory, which limits the batch size, is too little for them.
"""

from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import torch

from dalle.models.transformer.model import Transformer
from dalle.sampling.batch_size import BatchSize, all_images_fit, choose_batch_size
from dalle.sampling.sampling_config import DecodingConfig, SamplingConfig

Config = TypeVar("Config", bound=DecodingConfig)
Sampling = TypeVar("Sampling", bound=SamplingConfig)
Sampling_co = TypeVar("Sampling_co", bound=SamplingConfig, covariant=True)

# tokens that a pass keeps, by window, with guess=above: mean of 8 captions with the defaults of the model `drawings`
TOKENS_PER_PASS = {4: 1.9, 8: 2.6, 16: 3.8}
# duration of a pass in sequential steps on a CPU, by window and by sequences of a step (two for a guided image): the
# longest of three measurements, on processors with and without AMX
PASS_COST = {
    4: {1: 1.4, 2: 1.5, 4: 1.8, 8: 2.1},
    8: {1: 1.5, 2: 1.7, 4: 2.4, 8: 3.1},
    16: {1: 2.0, 2: 2.1, 4: 3.6, 8: 5.0},
}
MIN_GAIN = 1.2  # parallel decoding is chosen if the figures promise this speed over sequential decoding


class DecodingChoice(NamedTuple):
    """Decoding method with the window of its passes, the reason for it in a few words, and the batch size."""

    decoding: str  # sequential | parallel
    window: int | None  # tokens that a pass verifies; a set window is kept, None: sequential
    reason: str
    batch_size: BatchSize | None = None  # what memory allows; None: that of the config

    @property
    def recompute_kv(self) -> bool:
        """True if keys and values are computed again at each step, to save memory."""
        return self.batch_size is not None and self.batch_size.memory.recompute_kv

    def apply(self, config: Config) -> Config:
        """Return `config` with this method, window and batch size."""
        batch_size = config.batch_size if self.batch_size is None else self.batch_size.images
        return replace(config, decoding=self.decoding, window=self.window, batch_size=batch_size)


@dataclass(frozen=True)
class ChosenConfig(Generic[Sampling_co]):
    """Resolved config with the decoding method, window and batch size of the choice that was made for it."""

    config: Sampling_co
    choice: DecodingChoice


def choose_decoding(
    model: Transformer, captions: int, config: Sampling, precision: torch.dtype
) -> ChosenConfig[Sampling]:
    """Choose how `config.candidates` images of each caption are decoded, for the memory that is free now.

    config: a resolved one.
    precision: number format of decoding.

    Raises:
        ValueError: one image does not fit into memory.
    """
    device, positions = model.image_head.weight.device, model.sequence.image_positions
    choice = choose_method(config, captions * config.candidates, positions, device, precision)
    if config.batch_size is not None:
        return ChosenConfig(choice.apply(config), choice)
    parallel_by_choice = config.decoding == "auto" and choice.decoding == "parallel"
    if parallel_by_choice and not all_images_fit(model, captions, choice.apply(config), precision):
        choice = _sequential(config, "the larger caches of parallel decoding do not fit into memory")
    choice = choice._replace(batch_size=choose_batch_size(model, captions, choice.apply(config), precision))
    return ChosenConfig(choice.apply(config), choice)


def choose_method(
    config: DecodingConfig, images: int, positions: int, device: torch.device, precision: torch.dtype
) -> DecodingChoice:
    """Choose the decoding method and its window: those of `config`, or what recorded figures expect to be fastest.

    images: number of images to sample; `config.batch_size` of them are decoded at a time, or all.
    positions: tokens of an image.
    precision: number format of decoding. In 16 bits parallel decoding may sample other images, so `auto` does not
        choose it.
    """
    batch = images if config.batch_size is None else min(images, config.batch_size)
    sequences = batch * (2 if config.guided else 1)
    if config.decoding == "sequential":
        return DecodingChoice("sequential", config.window, "as set")
    if config.decoding == "parallel":
        return DecodingChoice("parallel", config.window or best_window(sequences, positions), "as set")
    if device.type != "cpu":
        return _sequential(config, f"parallel decoding has not been measured on {device.type}")
    if precision != torch.float32:
        return _sequential(config, "in 16 bits parallel decoding may sample other images")
    if config.window is not None and config.window > positions:
        return _sequential(config, f"window={config.window} is larger than an image of {positions} tokens")
    window = config.window or best_window(sequences, positions)
    at_a_time = f"{batch} image{'s' if batch > 1 else ''} at a time"
    gain = expected_gain(window, sequences)
    if gain is None:
        return _sequential(config, f"parallel decoding has not been measured for {at_a_time}, window={window}")
    reason = f"for {at_a_time}, window={window} is expected to be {gain:.1f} times as fast"
    return DecodingChoice("parallel", window, reason) if gain >= MIN_GAIN else _sequential(config, reason)


def _sequential(config: DecodingConfig, reason: str) -> DecodingChoice:
    return DecodingChoice("sequential", config.window, reason)


def best_window(sequences: int, positions: int) -> int:
    """Return the window of the largest expected gain for a number of sequences, at most `positions`.

    Beyond the largest recorded number of sequences, it is the window for that number.
    """
    windows = [window for window in TOKENS_PER_PASS if window <= positions]
    recorded = min(sequences, max(max(costs) for costs in PASS_COST.values()))
    return max(windows, key=lambda window: expected_gain(window, recorded) or 0.0, default=positions)


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
