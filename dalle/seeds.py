"""Seeds of independent random streams, derived by hashing a purpose and integers.

Random numbers are functions of the seed and of the position of a computation (step, record), so checkpoints store no
generator state. numpy's own seed sequences pad with zeros: `default_rng((1, 2))` equals `default_rng((1, 2, 0))`.
"""

import hashlib

import numpy as np
import torch


def derive_seed(purpose: str, *numbers: int) -> int:
    """Hash a purpose and integers of any size and sign to a 63-bit seed."""
    return _digest(purpose, numbers) >> 65


def numpy_generator(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a new numpy generator, seeded by the hash of `purpose` and `numbers`."""
    return np.random.default_rng(_digest(purpose, numbers))


def torch_generator(purpose: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new torch generator on `device`, seeded by the hash of `purpose` and `numbers`."""
    return torch.Generator(device).manual_seed(derive_seed(purpose, *numbers))


def seed_global_generators(purpose: str, *numbers: int, device: torch.device | str = "cpu") -> None:
    """Seed torch's global generators of the CPU and of `device`, used by weight initialisation and dropout.

    The seed is derived from `purpose`, a word such as "dropout", and any integers (run seed, step, rank).
    """
    seed = derive_seed(purpose, *numbers)
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed(seed)


def _digest(purpose: str, numbers: tuple[int, ...]) -> int:
    """Hash a purpose and integers to a number of 128 bits, from 0 to 2**128 - 1."""
    text = repr((purpose, *map(int, numbers)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
