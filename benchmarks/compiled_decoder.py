"""Llama-like decoder that decodes as gpt-fast does: a static KV cache, and one compiled step for every token.

Shapes never change: a step attends to all slots of the cache, with a mask, so it is compiled once for each batch size.
The prompt is processed without compilation, as gpt-fast does by default.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.transformer.config import TransformerConfig


class MissingCompilerError(Exception):
    """torch.compile finds no C++ compiler."""


class CompiledDecoder(nn.Module):
    """Decoder-only transformer with RMS norms, rotary positions and gated MLPs, without biases.

    It has one vocabulary for captions and images, and about as many parameters as ours of the same width and depth.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.positions = config.text_positions + config.grid**2
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.embed = nn.Embedding(config.text_vocabulary + config.image_vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.head = nn.Linear(config.width, self.embed.num_embeddings, bias=False)
        self.register_buffer("angles", rotary_angles(self.positions, self.head_width))
        self.register_buffer("mask", torch.ones(self.positions, self.positions, dtype=torch.bool).tril())

    def new_cache(self, batch: int) -> list[Tensor]:
        """Allocate keys and values of every layer for all positions: (2, batch, heads, positions, d) each."""
        shape = 2, batch, self.heads, self.positions, self.head_width
        return [self.embed.weight.new_zeros(shape) for _ in self.blocks]

    def forward(self, tokens: Tensor, positions: Tensor, cache: list[Tensor]) -> Tensor:
        """Compute the logits after the last of (b, n) tokens at (n,) positions: (b, vocabulary). Writes to `cache`."""
        x = self.embed(tokens)  # (b, n, width)
        angles, mask = self.angles[positions], self.mask[positions]  # type: ignore[index]
        for block, layer_cache in zip(self.blocks, cache, strict=True):
            x = block(x, angles, mask, positions, layer_cache)  # (b, n, width)
        return self.head(self.norm(x[:, -1]))


class Block(nn.Module):
    """Transformer block: attention to a static cache, then a gated MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        mlp_width = -(-8 * width // 48) * 16  # 8/3 of the width, as many parameters as a plain MLP of 4
        self.heads = heads
        self.attention_norm, self.mlp_norm = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.value = (nn.Linear(width, mlp_width, bias=False) for _ in range(2))
        self.mlp_out = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor, positions: Tensor, cache: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        keys, values = cache.unbind()
        keys[:, :, positions], values[:, :, positions] = rotate(k, angles), v
        attended = F.scaled_dot_product_attention(rotate(q, angles), keys, values, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        states = self.mlp_norm(x)
        return x + self.mlp_out(F.silu(self.gate(states)) * self.value(states))


def rotary_angles(positions: int, width: int) -> Tensor:
    """Return the rotation angles of each position and pair of features: (positions, width / 2)."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.arange(positions)[:, None] * frequencies


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs of features: (b, heads, n, d), (n, d / 2) -> (b, heads, n, d)."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    sine, cosine = angles.float().sin(), angles.float().cos()
    return torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=-1).flatten(-2).to(x.dtype)


def sampler(model: CompiledDecoder, compile: bool = True) -> Callable[[Tensor, int], Tensor]:
    """Return a function that samples tokens after a prompt: (b, n) tokens, a count -> (b, count) tokens.

    Raises:
        MissingCompilerError: torch.compile has no C++ compiler on this machine.
    """
    if compile and not has_compiler():
        raise MissingCompilerError("no C++ compiler for torch.compile; install g++, or name one in CXX")

    def step(tokens: Tensor, positions: Tensor, cache: list[Tensor]) -> Tensor:
        probabilities = model(tokens, positions, cache).float().softmax(dim=-1)
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=-1, keepdim=True)

    next_token = torch.compile(step, fullgraph=True, dynamic=False) if compile else step

    @torch.inference_mode()
    def sample(prompt: Tensor, count: int) -> Tensor:
        cache, n = model.new_cache(len(prompt)), prompt.shape[1]
        sampled = [step(prompt, torch.arange(n), cache)]
        for position in range(n, n + count - 1):
            sampled.append(next_token(sampled[-1], torch.tensor([position]), cache))
        return torch.cat(sampled, dim=1)

    return sample


@cache
def has_compiler() -> bool:
    """Return True if the C++ compiler that torch.compile calls is there."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None
