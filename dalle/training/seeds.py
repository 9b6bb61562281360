"""Random numbers as a function of where training stands: none have to be saved to resume exactly."""

import numpy as np
import torch


def seed_from(*numbers: int) -> int:
    """A 63-bit seed; other `numbers` (seed, step, rank; none negative), or more of them, give another."""
    sequence = np.random.SeedSequence((len(numbers), *numbers))  # it would not tell (1, 2) from (1, 2, 0)
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def step_generator(seed: int, step: int, rank: int, device: torch.device, micro_batch: int = 0) -> torch.Generator:
    """All randomness of one micro-batch, on `rank`, of the update that follows `step` others."""
    return torch.Generator(device).manual_seed(seed_from(seed, step, rank, micro_batch))


def seed_global(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed torch's global generators, which dropout draws from, for the update that follows `step` others."""
    number = seed_from(seed, step, rank)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
