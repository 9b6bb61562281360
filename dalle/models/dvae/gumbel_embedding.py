"""Gumbel-softmax relaxation fused with the decoder's first layer, in chunks of positions to save memory.

With the paper's 8,192 codes, the relaxed codes of one image of 256 pixels take 32 MB, and each step of the relaxation
as much. Here they are computed in chunks of positions, and again in the backward pass from the same random numbers, so
that only the logits are kept.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dalle.models.kernels import kernel_device
from dalle.precision import without_autocast

CHUNK = 1 << 19  # numbers that are computed at once: 2 MB, which stay in the processor's cache
GPU_CHUNK = 1 << 26


def is_worthwhile(logits: Tensor, layer: nn.Conv2d) -> bool:
    """Return True if logits (b, v, h, w) exceed one chunk and `layer` embeds each position by itself."""
    return logits.numel() > _chunk_size(logits) and layer.kernel_size == (1, 1)


def gumbel_embedding(
    logits: Tensor, layer: nn.Conv2d, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """Compute layer(gumbel_softmax(logits)) of a 1x1 convolution: (b, v, h, w) logits -> (b, d, h, w).

    It is computed in float32 and returned in the dtype of the layer's weights. Samples have the distribution of
    `gumbel_softmax`, but are drawn with other random numbers.
    """
    b, _, h, _ = logits.shape
    generator = generator or _default_generator(logits.device)
    with without_autocast(logits.device.type):
        flat = rearrange(logits.float(), "b v h w -> (b h w) v")  # a view if logits are in channels-last layout
        embedded = _GumbelEmbedding.apply(flat, layer.weight.flatten(1).float(), temperature, generator)
        if layer.bias is not None:
            embedded = embedded + layer.bias
    return rearrange(embedded.to(layer.weight.dtype), "(b h w) d -> b d h w", b=b, h=h)


class _GumbelEmbedding(torch.autograd.Function):
    """Autograd function of `gumbel_embedding`: (n, v) logits, (d, v) weight -> (n, d)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weight: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        ctx.save_for_backward(logits, weight)
        ctx.temperature, ctx.random_state = temperature, generator.get_state()
        embedded = logits.new_empty(len(logits), len(weight))
        size = positions_per_chunk(logits)
        for part, out in zip(logits.split(size), embedded.split(size), strict=True):
            torch.mm(_relaxed(part, temperature, generator), weight.T, out=out)
        return embedded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        logits, weight = ctx.saved_tensors
        generator = torch.Generator(logits.device)
        generator.set_state(ctx.random_state)
        grad_logits, grad_weight = torch.empty_like(logits), torch.zeros_like(weight)
        size = positions_per_chunk(logits)
        chunks = (tensor.split(size) for tensor in (logits, gradients[0], grad_logits))
        for part, grad_embedded, out in zip(*chunks, strict=True):
            relaxed = _relaxed(part, ctx.temperature, generator)
            grad_weight.addmm_(grad_embedded.T, relaxed)
            grad_relaxed = grad_embedded @ weight
            grad_relaxed -= torch.linalg.vecdot(grad_relaxed, relaxed).unsqueeze(1)
            torch.mul(grad_relaxed, relaxed.div_(ctx.temperature), out=out)
        return grad_logits, grad_weight, None, None


def _relaxed(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw relaxed codes: (m, v) -> (m, v)."""
    # uniform numbers are drawn five times as fast as exponential ones on a CPU; 0 gives minus infinity, 1 never occurs
    uniform = torch.empty_like(logits).uniform_(generator=generator)
    gumbel = uniform.log_().neg_().log_().neg_()
    return gumbel.add_(logits).div_(temperature).softmax(dim=1)


def _default_generator(device: torch.device) -> torch.Generator:
    """Return torch's global generator of a CPU or a CUDA device."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


def positions_per_chunk(logits: Tensor) -> int:
    """Return the number of rows of (n, v) logits in a chunk."""
    return max(1, _chunk_size(logits) // logits.shape[1])


def _chunk_size(logits: Tensor) -> int:
    return CHUNK if kernel_device(logits.device) == "cpu" else GPU_CHUNK
