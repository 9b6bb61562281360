"""Decoding step of the sampler: on a GPU one CUDA graph, captured once and replayed for every token.

A step is some thousand small kernels, and launching them one by one takes longer than running them. A graph launches
them all at once, but repeats exactly what was recorded. So the position is a tensor, looked up on the GPU
(`dalle.models.transformer.cache_layout.GatheredIndex`), and input tokens and output logits have fixed addresses.
"""

from typing import Protocol

import torch
from torch import Tensor

from dalle.models.transformer.kv_cache import Cache, PrefixCache
from dalle.models.transformer.model import Transformer

WARMUP_STEPS = 3  # steps before the capture, in which libraries choose kernels and allocate workspaces


class DecodingStep(Protocol):
    """Interface of a decoding step: `Transformer.decode_one_token` with its cache."""

    cache: Cache

    def __call__(self, previous: Tensor, position: int) -> Tensor:
        """Decode one step: (b,) previous tokens -> (b, image_vocabulary) logits."""
        ...


def decoding_step(model: Transformer, prefix: PrefixCache, candidates: int, recompute_kv: bool = False) -> DecodingStep:
    """Create the decoding step for the device, with a new cache for `candidates` images of each caption.

    On a GPU the returned logits are overwritten by the next step.
    """
    if prefix[0].keys.device.type == "cuda":
        return CUDAGraphStep(model, model.new_cache(prefix, candidates, recompute_kv, static_shapes=True))
    return EagerStep(model, model.new_cache(prefix, candidates, recompute_kv))


class EagerStep:
    """Decoding step that calls `model.decode_one_token`."""

    def __init__(self, model: Transformer, cache: Cache):
        self.model, self.cache = model, cache

    def __call__(self, previous: Tensor, position: int) -> Tensor:
        """Decode one step: (b,) tokens -> (b, image_vocabulary) logits."""
        return self.model.decode_one_token(previous, position, cache=self.cache)


class CUDAGraphStep:
    """CUDA graph of `model.decode_one_token` with a cache of static shapes, captured when created."""

    def __init__(self, model: Transformer, cache: Cache):
        self.cache = cache
        self.device = cache[0].prefix.keys.device
        self.previous = torch.full((cache[0].batch_size,), model.sequence.start_of_image, device=self.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        with torch.cuda.device(self.device):  # graphs are captured and replayed on the current device
            self.graph = torch.cuda.CUDAGraph()
            capture_stream = torch.cuda.Stream()
            capture_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(capture_stream):
                for _ in range(WARMUP_STEPS):  # position 0 is written again by the first real step
                    model.decode_one_token(self.previous, self.position, cache)
            torch.cuda.current_stream().wait_stream(capture_stream)
            # same stream: cuBLAS keeps a workspace per stream, and torch's own capture stream is on the first device
            # thread_local: other threads, such as the studio's, may use the GPU during the capture
            with torch.cuda.graph(self.graph, stream=capture_stream, capture_error_mode="thread_local"):
                self.logits = model.decode_one_token(self.previous, self.position, cache)

    def __call__(self, previous: Tensor, position: int) -> Tensor:
        """Decode one step: (b,) tokens -> (b, image_vocabulary) logits, overwritten by the next call."""
        self.previous.copy_(previous)
        self.position.fill_(position)
        with torch.cuda.device(self.device):
            self.graph.replay()
        return self.logits
