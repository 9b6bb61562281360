"""Memory of decoding in bytes, computed before any is allocated, from caches on the meta device."""

from dataclasses import dataclass

import torch

from dalle.models.transformer.kv_cache import PrefixKV
from dalle.models.transformer.model import Transformer

BYTES_PER_LOGIT = 64  # noise, logits processors and their sorts


@dataclass(frozen=True)
class DecodingMemory:
    """Bytes of each part of decoding with one model. Weights and caches are exact, `working` is an upper bound."""

    recompute_kv: bool  # some layers cache hidden states, not keys and values, see `Transformer.new_cache`
    weights: int
    caption: int  # keys and values of one caption, which all its candidates share
    cache: int  # of one candidate
    dense: int  # of one candidate, if each layer held the keys and values of all text and image positions
    working: int  # of one candidate during a step: activations, logits and sampling

    @property
    def candidate(self) -> int:
        """Bytes that each candidate takes: its cache, and its working memory during a step."""
        return self.cache + self.working

    def total(self, candidates: int, captions: int = 1) -> int:
        """Bytes of the weights, of `captions` captions, and of `candidates` images in all that are decoded together."""
        return self.weights + captions * self.caption + candidates * self.candidate

    def candidates_that_fit(self, budget: int, captions: int = 1) -> int:
        """Largest number of candidates whose `total` is at most `budget` bytes; 0 if not even one fits."""
        return max(0, (budget - self.total(0, captions)) // self.candidate)


def decoding_memory(
    model: Transformer,
    dtype: torch.dtype | None = None,
    recompute_kv: bool = False,
    static_shapes: bool = False,
    window: int | None = None,
) -> DecodingMemory:
    """Compute the memory of decoding with `model`, which may be on the meta device.

    dtype: of caches and attention; None: that of the layers' weights.
    recompute_kv, static_shapes: as in `Transformer.new_cache`.
    window: positions of each image in a pass of parallel decoding, which always caches keys and values; None:
        sequential decoding.

    Raises:
        ValueError: a window larger than the image.
    """
    config, weights = model.config, [*model.parameters(), *model.buffers()]
    dtype = model.dtype if dtype is None else dtype
    keys = torch.empty(1, config.heads, config.text_positions, config.width // config.heads, dtype=dtype, device="meta")
    captions = [PrefixKV(keys, keys)] * config.depth
    if window is None:
        cache = model.new_cache(captions, 1, recompute_kv, static_shapes)
    else:
        cache, recompute_kv = model.new_window_cache(captions, 1, window), False
    queries = 1 if window is None else window
    attention = max(layer.activations for layer in cache) * dtype.itemsize
    # the residual stream is fp32
    activations = attention + 4 * queries * max(layer.activations for layer in model.layers)
    return DecodingMemory(
        recompute_kv=recompute_kv,
        weights=sum(weight.nbytes for weight in weights),
        caption=sum(text.keys.nbytes + text.values.nbytes for text in captions),
        cache=sum(layer.nbytes for layer in cache),
        dense=2 * config.depth * model.sequence.positions * config.width * dtype.itemsize,
        working=activations + BYTES_PER_LOGIT * queries * config.image_vocabulary,
    )


def memory_within_budget(
    model: Transformer,
    budget: int,
    candidates: int,
    captions: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    window: int | None = None,
) -> DecodingMemory:
    """Compute the memory with key-value caches if all candidates fit, else with `recompute_kv`, so that more fit.

    Parallel decoding, with a `window`, has key-value caches only.

    budget: bytes for everything, the weights included.
    candidates, captions: numbers in all; guided images count twice, and so do their captions.
    device: device of decoding; None: the model's.
    """
    device = model.image_head.weight.device if device is None else device
    static_shapes = device.type == "cuda"
    memory = decoding_memory(model, dtype, static_shapes=static_shapes, window=window)
    if window is None and memory.candidates_that_fit(budget, captions) < candidates:
        memory = decoding_memory(model, dtype, recompute_kv=True, static_shapes=static_shapes)
    return memory
