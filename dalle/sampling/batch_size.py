"""Batch size of decoding: as many images as memory holds, up to the number above which throughput stops rising."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dalle.models.transformer.model import Transformer
from dalle.sampling.cgroup_memory import free_in_cgroups
from dalle.sampling.memory import DecodingMemory, memory_within_budget
from dalle.sampling.sampling_config import SamplingConfig, memory_limit

SATURATING_BATCH_SIZE = {"cpu": 64, "cuda": 512}  # more images at a time are no faster, and an interruption loses more
MEMORY_MARGIN = 0.1  # share of the free memory that is left for other uses


@dataclass(frozen=True)
class BatchSize:
    """Number of images decoded at a time, and the memory it was derived from."""

    images: int
    unlimited: int  # batch size with unlimited memory
    budget: int  # bytes that sampling may take
    memory: DecodingMemory  # bytes that sampling takes; a guided image counts as two candidates


def choose_batch_size(
    model: Transformer, captions: int, config: SamplingConfig, precision: torch.dtype = torch.float32
) -> BatchSize:
    """Choose the batch size for `config.candidates` images of each caption within `config.memory`.

    config: with a decoding method and window that `choose_method` has chosen: parallel decoding takes more memory.
    precision: of the linear layers, see `dalle.sampling.decode.sample_batches`.

    Raises:
        ValueError: one image does not fit into memory, or the window of parallel decoding is larger than the image.
    """
    device = model.image_head.weight.device
    candidates = config.candidates
    rows = 2 if config.guided else 1  # sequences decoded for each image
    unlimited = min(SATURATING_BATCH_SIZE.get(device.type, 64), captions * candidates)
    captions_per_batch = max(1, unlimited // candidates)
    # captions in memory; with guidance the empty one twice, as it is copied
    prefixes, min_prefixes = rows * captions_per_batch + rows - 1, 2 * rows - 1
    weights = sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()])
    allowed = memory_budget(config.memory, device)
    if config.memory == "auto" and device.type == "cpu":
        allowed -= weights * precision.itemsize // torch.float32.itemsize  # the packed copy of the weights
    budget = allowed + weights  # `total` counts the weights, which are in memory already

    window = config.window if config.decoding == "parallel" else None
    memory = memory_within_budget(model, budget, rows * unlimited, prefixes, window=window)
    images = memory.candidates_that_fit(budget, prefixes) // rows
    if images < candidates:
        images = min(candidates, memory.candidates_that_fit(budget, min_prefixes) // rows)
    if images < 1:
        one = format_bytes(memory.total(rows, min_prefixes) - weights)
        mend = "free some memory" if config.memory == "auto" else "allow more with memory=<GB>"
        raise ValueError(
            f"sampling one image takes {one} beside the models, and {format_bytes(max(0, allowed))} are available: "
            f"{mend}"
        )
    return BatchSize(min(images, unlimited), unlimited, allowed, memory)


def all_images_fit(model: Transformer, captions: int, config: SamplingConfig, precision: torch.dtype) -> bool:
    """Return True if memory does not limit the batch size. The arguments are those of `choose_batch_size`."""
    try:
        batch_size = choose_batch_size(model, captions, config, precision)
    except ValueError:  # not even one fits
        return False
    return batch_size.images == batch_size.unlimited


def memory_budget(memory: str, device: torch.device) -> int:
    """Return the bytes that `memory` allows; "auto" is 90% of the free memory. Raises ValueError if it is neither."""
    limit = memory_limit(memory)
    return int(free_memory(device) * (1 - MEMORY_MARGIN)) if limit is None else limit


def free_memory(device: torch.device) -> int:
    """Return the bytes available on `device` now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        return int(min(available, free_in_cgroups()))
    except (OSError, StopIteration):  # not Linux: total memory, as free memory is unknown
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def format_bytes(size: int) -> str:
    """Format a number of bytes for messages: 1.5 GB, 22 MB, 640 bytes."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.3g} {unit}"
    return f"{size} bytes"
