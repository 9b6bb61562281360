"""Batch size of decoding: as many images as memory holds, up to the number above which throughput stops rising."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dalle.models.transformer.model import Transformer
from dalle.sampling.memory import DecodingMemory, fitting_memory
from dalle.sampling.sampling_config import SamplingConfig, memory_limit

ENOUGH = {"cpu": 64, "cuda": 512}  # images at a time; more are no faster, and an interruption would lose more
SPARE = 0.1  # share of the free memory that is left for other uses


@dataclass(frozen=True)
class Chunk:
    """Batch size of decoding and the memory it was derived from."""

    images: int
    wanted: int  # batch size if memory were no limit
    memory: int  # bytes that sampling may take
    needs: DecodingMemory  # bytes that it takes; a guided image counts as two candidates


def chunk_for(
    model: Transformer, captions: int, config: SamplingConfig, precision: torch.dtype = torch.float32
) -> Chunk:
    """Choose the batch size for `config.candidates` images of each caption within `config.memory`.

    precision: of the linear layers, see `dalle.sampling.decode.batches`.

    Raises:
        ValueError: memory does not hold one image.
    """
    device = model.image_head.weight.device
    candidates = config.candidates
    rows = 2 if config.guided else 1  # sequences decoded for each image
    wanted = min(ENOUGH.get(device.type, 64), captions * candidates)
    together = max(1, wanted // candidates)  # captions in a batch
    texts, least = rows * together + rows - 1, 2 * rows - 1  # captions in memory: the empty one twice, as it is copied
    weights = sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()])
    allowed = memory_in_bytes(config.memory, device)
    if config.memory == "auto" and device.type == "cpu":
        allowed -= weights * precision.itemsize // torch.float32.itemsize  # the packed copy of the weights
    budget = allowed + weights  # `total` counts the weights, which are in memory already

    needs = fitting_memory(model, budget, rows * wanted, texts)
    images = needs.candidates_that_fit(budget, texts) // rows
    if images < candidates:
        images = min(candidates, needs.candidates_that_fit(budget, least) // rows)
    if images < 1:
        one = in_words(needs.total(rows, least) - weights)
        raise ValueError(
            f"drawing one image takes {one} beside the models, and there are {in_words(max(0, allowed))} for it: "
            "free some memory, or allow more with memory=<GB>"
        )
    return Chunk(min(images, wanted), wanted, allowed, needs)


def memory_in_bytes(memory: str, device: torch.device) -> int:
    """Return the bytes that `memory` allows; "auto" is 90% of the free memory. Raises ValueError if it is no amount."""
    limit = memory_limit(memory)
    return int(free_memory(device) * (1 - SPARE)) if limit is None else limit


def free_memory(device: torch.device) -> int:
    """Return the bytes available on `device` now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: total memory, as free memory is unknown
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_words(size: int) -> str:
    """Format bytes for messages: 1.5 GB, 22 MB, 640 bytes."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.3g} {unit}"
    return f"{size} bytes"
