"""Seeds of every random stream, derived from its purpose and numbers, so that no two streams coincide.

Random numbers are functions of where a computation stands (seed, step, record), so nothing about them is saved.
numpy's own sequences of seeds pad with zeros: `default_rng((1, 2))` draws what `default_rng((1, 2, 0))` does.
"""

import hashlib

import numpy as np
import torch


def derive_seed(purpose: str, *numbers: int) -> int:
    """Hash a purpose and integers of any size and sign to a seed of 63 bits."""
    return _digest(purpose, numbers) >> 65


def numpy_generator(purpose: str, *numbers: int) -> np.random.Generator:
    """Return numpy's generator of the stream (purpose, numbers)."""
    return np.random.default_rng(_digest(purpose, numbers))


def torch_generator(purpose: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return torch's generator of the stream (purpose, numbers) on `device`."""
    return torch.Generator(device).manual_seed(derive_seed(purpose, *numbers))


def seed_global_generators(purpose: str, *numbers: int, device: torch.device | str = "cpu") -> None:
    """Seed torch's global generators of the CPU and of `device`, which fresh weights and dropout draw from."""
    seed = derive_seed(purpose, *numbers)
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed(seed)


def _digest(purpose: str, numbers: tuple[int, ...]) -> int:
    """128 bits."""
    text = repr((purpose, *map(int, numbers)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
