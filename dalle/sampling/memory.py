"""How many bytes decoding takes, before any is taken: counted on caches that have shapes and no memory."""

from dataclasses import dataclass

import torch

from dalle.models.transformer.kv_cache import TextKeys
from dalle.models.transformer.model import Transformer

DRAWN = 64  # bytes for each logit: with noise, filters and what they sort


@dataclass(frozen=True)
class DecodingMemory:
    """Bytes of each part of decoding with one model. What is kept is exact, `working` a bound from above."""

    compact: bool  # whether layers that need all image states keep those, see `Transformer.new_cache`
    weights: int
    caption: int  # keys and values of one caption, which all its candidates share
    cache: int  # of one candidate
    dense: int  # of one candidate, were the caption's and all image keys and values its own in every layer
    working: int  # of one candidate for the length of a step: activations, logits and what is drawn from them

    @property
    def candidate(self) -> int:
        """All that one more candidate takes."""
        return self.cache + self.working

    def total(self, candidates: int, captions: int = 1) -> int:
        """Of this many candidates in all, decoded at a time, of this many captions."""
        return self.weights + captions * self.caption + candidates * self.candidate

    def candidates_that_fit(self, budget: int, captions: int = 1) -> int:
        """The most candidates for which `total` is within the budget; 0 where there is not room for one."""
        return max(0, (budget - self.total(0, captions)) // self.candidate)


def decoding_memory(
    model: Transformer, dtype: torch.dtype | None = None, compact: bool = False, in_place: bool = False
) -> DecodingMemory:
    """What decoding with `model` takes; it may be on the meta device, where it has no memory itself.

    dtype: of caches and attention; None: that of the layers' weights.
    compact, in_place: as in `Transformer.new_cache`.
    """
    config, weights = model.config, [*model.parameters(), *model.buffers()]
    dtype = model.dtype if dtype is None else dtype
    keys = torch.empty(1, config.heads, config.text_positions, config.width // config.heads, dtype=dtype, device="meta")
    captions = [TextKeys(keys, keys)] * config.depth
    cache = model.new_cache(captions, 1, compact, in_place)
    attention = max(layer.activations for layer in cache) * dtype.itemsize
    activations = attention + 4 * max(layer.activations for layer in model.layers)  # the residual stream is fp32
    return DecodingMemory(
        compact=compact,
        weights=sum(weight.nbytes for weight in weights),
        caption=sum(text.keys.nbytes + text.values.nbytes for text in captions),
        cache=sum(layer.nbytes for layer in cache),
        dense=2 * config.depth * model.stream.positions * config.width * dtype.itemsize,
        working=activations + DRAWN * config.image_vocabulary,
    )


def fitting_memory(
    model: Transformer,
    budget: int,
    candidates: int,
    captions: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> DecodingMemory:
    """With keys and values where all candidates fit so, else compact, which lets more of them fit at a time.

    budget: bytes for everything, the weights included.
    candidates: in all, of this many captions; guided images count twice, and so do their captions.
    device: that will decode; None: the one that the model is on.
    """
    device = model.image_head.weight.device if device is None else device
    in_place = device.type == "cuda"
    memory = decoding_memory(model, dtype, in_place=in_place)
    if memory.candidates_that_fit(budget, captions) < candidates:
        memory = decoding_memory(model, dtype, compact=True, in_place=in_place)
    return memory
