"""Number of images that are decoded at a time: as many as memory holds, up to where more would gain nothing."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dalle.models.transformer.model import Transformer
from dalle.sampling.memory import DecodingMemory, fitting_memory
from dalle.sampling.sampling_config import SamplingConfig, memory_limit

ENOUGH = {"cpu": 64, "cuda": 512}  # images at a time; with more, none comes faster, and a stop loses more
SPARE = 0.1  # share of the free memory that is left to others


@dataclass(frozen=True)
class Chunk:
    """Images that are decoded at a time."""

    images: int
    wanted: int  # as many as there would be with memory enough
    memory: int  # bytes that drawing may take
    needs: DecodingMemory  # bytes that it takes; of a guided image twice those of a candidate


def chunk_for(
    model: Transformer, captions: int, config: SamplingConfig, precision: torch.dtype = torch.float32
) -> Chunk:
    """Size the chunks in which to draw `config.candidates` of each caption within `config.memory`.

    precision: of the linear layers, see `dalle.sampling.decode.batches`.

    Raises:
        ValueError: there is not memory for one image.
    """
    device = model.image_head.weight.device
    candidates = config.candidates
    rows = 2 if config.guided else 1  # that are decoded for each image
    wanted = min(ENOUGH.get(device.type, 64), captions * candidates)
    together = max(1, wanted // candidates)  # captions
    texts, least = rows * together + rows - 1, 2 * rows - 1  # in memory: the empty caption once more, to be copied from
    weights = sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()])
    allowed = memory_in_bytes(config.memory, device)
    if config.memory == "auto" and device.type == "cpu":
        allowed -= weights * precision.itemsize // torch.float32.itemsize  # those that are packed
    budget = allowed + weights  # which `total` counts, and which are there already

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
    """Bytes that `memory` allows: with "auto" most of what is free now. ValueError where it is no amount of memory."""
    limit = memory_limit(memory)
    return int(free_memory(device) * (1 - SPARE)) if limit is None else limit


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on `device` now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux: all there is, for want of a better guess
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_words(size: int) -> str:
    """Bytes as people read them: 1.5 GB, 22 MB, 640 bytes."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.3g} {unit}"
    return f"{size} bytes"
