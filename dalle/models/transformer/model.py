"""The transformer: a decoder-only model of caption and image tokens as one stream (Sec. 2.2, App. B.1)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from dalle import checkpoint
from dalle.models.attention import TextImageSoftmax, causal
from dalle.models.blocks import BlockConfig, Float32Linear, TransformerBlock
from dalle.models.sizes import check_sizes
from dalle.models.transformer.kv_cache import (
    Cache,
    CaptionCache,
    KeyCache,
    Slices,
    StateCache,
    Tables,
    TextKeys,
    layout_of,
)
from dalle.models.transformer.patterns import PATTERNS, PatternOptions, layer_names
from dalle.models.transformer.sequence import Stream, StreamEmbedding
from dalle.models.transformer.sparse_attention import attend_for
from dalle.tokenizer import CaptionTokenizer


@dataclass
class TransformerConfig:
    """Sizes of the transformer; the defaults are the paper's 12-billion-parameter model."""

    text_positions: int = 256  # text slots: one starts the text, so a caption has at most one token fewer
    text_vocabulary: int = 16_384  # entries of the captions' BPE
    image_vocabulary: int = 8192  # entries of the dVAE's codebook
    grid: int = 32  # image tokens along each side
    width: int = 3968  # of the residual stream
    depth: int = 64  # layers, each of two residual blocks: attention and MLP
    heads: int = 62  # 64 wide each
    patterns: list[str] = field(default_factory=lambda: ["paper"])  # or a name for all layers, or one each
    kernel: int = 11  # side of the convolutional pattern's neighbourhood
    row_counts_itself: bool = True  # among the grid + 1 states that the row pattern shows; false: those before it
    convolution_wraps: bool = True  # over the ends of rows; false: the neighbourhood ends at the picture's edges
    pads: str = "learned"  # vectors where the caption has ended, seen by all; masked: seen by no state (Sec. 2.2)
    image_places: str = "predicted"  # an image input's row and column: of the cell predicted next, or its own
    attention_normalisation: str = "joint"  # of text and image keys: joint, or separate softmaxes (Sec. 2.2, fn. 7)
    # auto: on a CPU structured where that is faster, else a dense mask | masked, for less memory | structured
    attention: str = "auto"
    activation: str = "quick_gelu"  # of the MLP: quick_gelu or gelu; the paper does not say
    mlp: str = "plain"  # plain: one layer, the activation, another | swiglu: gated by silu, with as many weights
    qk_norm: bool = False  # RMS norm of queries and keys in each head: the usual cure for bfloat16 that diverges
    initial_scale: float = 0.125  # of all fresh weights; short trainings of small models do better with 0.5

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.initial_scale < 0:
            raise ValueError(f"initial_scale={self.initial_scale} must be at least 0")

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(self.width, self.heads, self.activation, self.mlp, qk_norm=self.qk_norm)

    @staticmethod
    def sizes_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The sizes that the shapes of a transformer's tensors tell. Raises KeyError for tensors that are of none."""
        return {
            "text_positions": shapes["embed.text_position.weight"][0],
            "text_vocabulary": shapes["text_head.weight"][0] - 1,
            "image_vocabulary": shapes["image_head.weight"][0],
            "grid": shapes["embed.row.weight"][0],
            "width": shapes["norm.weight"][0],
            "depth": checkpoint.count_children(shapes, "layers."),
        }


class Logits(NamedTuple):
    """Unnormalised log-probabilities, fp32, of what each state predicts: a softmax for each kind of token."""

    text: Tensor  # (b, T, text_vocabulary + 1), the last class being "pad"
    image: Tensor  # (b, I, image_vocabulary)


class Transformer(nn.Module):
    """Models p(caption, image) token by token. Trained by `dalle.stages.transformer`.

    Raises:
        ValueError: sizes or pattern names in `config` that cannot work.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.stream = Stream(
            config.text_positions,
            config.text_vocabulary,
            config.image_vocabulary,
            config.grid,
            config.pads,
            config.image_places,
        )
        self.layer_names = layer_names(config.patterns, config.depth)
        options = PatternOptions(config.kernel, config.row_counts_itself, config.convolution_wraps)
        self.patterns = {name: PATTERNS.choose(name).build(options) for name in set(self.layer_names)}

        self.embed = StreamEmbedding(self.stream, config.width)
        self.attend = nn.ModuleDict(
            {
                name: attend_for(
                    pattern, config.text_positions, config.grid, config.attention, config.attention_normalisation
                )
                for name, pattern in self.patterns.items()
            }
        )
        self.softmax = TextImageSoftmax(config.attention_normalisation)
        blocks = nn.ModuleList(TransformerBlock(config.block) for _ in range(config.depth))
        self.layers = cast(Sequence[TransformerBlock], blocks)
        self.norm = nn.LayerNorm(config.width)
        self.text_head = Float32Linear(config.width, config.text_vocabulary + 1)
        self.image_head = Float32Linear(config.width, config.image_vocabulary)
        self._initialise()

    @property
    def dtype(self) -> torch.dtype:
        """That of the layers' matrices, and so of keys and values."""
        return next(each.dtype for each in self.layers[0].parameters() if each.ndim == 2)

    def forward(
        self, caption: Tensor, image: Tensor, attend: Mapping[str, Callable[..., Tensor]] | None = None
    ) -> Logits:
        """Logits of the next token at every position: (b, T) captions with `PAD`s, (b, I) image tokens.

        attend: how the layers of each pattern attend, by its name; None: in the model's own way, `self.attend`.
        """
        ways = self.attend if attend is None else attend
        x = self.embed(caption, image)  # (b, n, d)
        hidden = self.stream.hidden(caption)  # (b, T), or None
        for layer, name in zip(self.layers, self.layer_names, strict=True):
            x = layer(x, partial(ways[name], hidden=hidden))  # (b, n, d)
        text, image_states = self.stream.split(self.norm(x))
        return Logits(self.text_head(text), self.image_head(image_states))

    def prefill(self, caption: Tensor) -> CaptionCache:
        """Keys and values of (b, T) captions, for `new_cache`. In every pattern text sees text alone."""
        kept: CaptionCache = []
        hidden = self.stream.hidden(caption)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.append(TextKeys(k.contiguous(), v.contiguous(), hidden))
            return causal(q, k, v, hidden)

        x = self.embed.text(caption)
        for layer in self.layers:
            x = layer(x, attend)
        return kept

    def new_cache(
        self, captions: CaptionCache, candidates: int, compact: bool = False, in_place: bool = False
    ) -> Cache:
        """An empty cache for `candidates` images of each caption, which share the caption's part.

        compact: layers that need all image states to the end keep the states, half as much as keys and values. It
            takes a little longer (see `dalle.models.transformer.kv_cache.StateCache`) and computes the same.
        in_place: `decode_one_token` will be given positions as tensors, and do the same work for each of them.
        """
        places, kinds = {}, {}
        for name, pattern in self.patterns.items():
            layout = layout_of(pattern, self.config.grid)
            places[name] = (Tables if in_place else Slices)(layout, captions[0].keys.device)
            kinds[name] = StateCache if compact and layout.slots == self.stream.image_positions else KeyCache
        return [
            kinds[name](text, candidates, places[name], self.softmax, layer.attention.branch)
            for text, name, layer in zip(captions, self.layer_names, self.layers, strict=True)
        ]

    def decode_one_token(self, previous: Tensor, position: int | Tensor, cache: Cache) -> Tensor:
        """Logits of cell `position` from the token of the cell before it: (b,) -> (b, image_vocabulary).

        To be called for positions 0, 1, 2 ... in turn; `stream.start_of_image` stands before cell 0. b is
        captions * candidates, a caption's candidates side by side. Writes the state into `cache`. The position is
        a whole number, or a (1,) int64 tensor where the cache is one to work in place.
        """
        x = self.embed.image_state(previous, position).unsqueeze(1)  # (b, 1, d)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer.decode(x, partial(layer_cache.attend, position))  # (b, 1, d)
        return self.image_head(self.norm(x)).squeeze(1)

    def _initialise(self) -> None:
        """As the Sparse Transformer (Child et al. 2019, Sec. 6); whether DALL-E kept all of it is not known.

        With s = `initial_scale`: weights N(0, s / sqrt(inputs)), those that end a residual branch times
        1 / sqrt(2 depth); biases 0; embeddings N(0, s / sqrt(width)), rows and columns, which are two, times
        1 / sqrt(2); the logits start at zero.
        """
        width, scale = self.config.width, self.config.initial_scale
        inner, share = scale / math.sqrt(width), 1 / math.sqrt(2 * self.config.depth)
        for module in self.embed.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=inner)
        for layer in self.layers:
            out = share * scale / math.sqrt(layer.mlp_width)
            layer.initialise(qkv=inner, attention_out=share * inner, expand=inner, mlp_out=out)
        for head in (self.text_head, self.image_head):
            nn.init.normal_(head.weight)  # not used; the draws that follow stay what they have always been
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        for axis in (self.embed.row, self.embed.column):
            nn.init.normal_(axis.weight, std=scale / math.sqrt(2 * width))

    def save(self, folder: str | Path, meta: dict | None = None, tokenizer: CaptionTokenizer | None = None) -> None:
        """Write a checkpoint folder that `load` rebuilds the model from."""
        checkpoint.save_model(folder, "transformer", self, self.config, meta, tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> "Transformer":
        """A model in eval mode from a checkpoint folder. Raises `CheckpointError` saying what is wrong."""
        return checkpoint.load_model(folder, "transformer", TransformerConfig, cls)
