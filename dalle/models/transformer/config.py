"""Configuration of the transformer: sizes, attention patterns and initialisation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dalle.checkpoint import count_children
from dalle.config_validation import check_sizes
from dalle.models.blocks import BlockConfig, check_names
from dalle.models.transformer.patterns import PatternOptions


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer; the defaults are the paper's 12-billion-parameter model."""

    text_positions: int = 256  # text positions; the first is the start token, so a caption has at most one token fewer
    text_vocabulary: int = 16_384  # size of the captions' BPE vocabulary
    image_vocabulary: int = 8192  # size of the dVAE's codebook
    grid: int = 32  # image tokens along each side
    width: int = 3968  # of the residual stream
    depth: int = 64  # layers, each with two residual blocks: attention and MLP
    heads: int = 62  # attention heads, in the paper 64 wide each
    patterns: list[str] = field(default_factory=lambda: ["paper"])  # [paper], one pattern for all layers, or one each
    kernel: int = 11  # side of the convolutional pattern's neighbourhood
    row_counts_itself: bool = True  # the row pattern's grid + 1 positions include the query; false: all precede it
    convolution_wraps: bool = True  # the neighbourhood wraps over row ends; false: it ends at the image's edges
    pads: str = "learned"  # text padding: learned embeddings, attended to | masked, never attended to (Sec. 2.2)
    # position embedding of an image token: predicted, of the cell predicted from it | own, of its own cell
    image_position_embedding: str = "predicted"
    attention_normalisation: str = "joint"  # one softmax over text and image keys | separate (Sec. 2.2, fn. 7)
    # auto: sparse on a CPU if faster, else dense | dense: dense mask, less memory | sparse: block-sparse attention |
    # flex: FlexAttention on a CUDA GPU, else dense
    attention: str = "auto"
    activation: str = "quick_gelu"  # of the MLP: quick_gelu or gelu; the paper does not specify it
    mlp: str = "plain"  # plain: linear, activation, linear | swiglu: gated by SiLU, equal parameter count
    qk_norm: bool = False  # RMS norm of queries and keys per head: the usual remedy for divergence in bfloat16
    dropout: float = 0.0  # rate on embeddings and residual branches in training; the paper mentions none
    initial_scale: float = 0.125  # scale of the initial weights; 0.5 is better for short runs of small models

    def __post_init__(self) -> None:
        check_sizes(self)
        if not 0 <= self.initial_scale < math.inf:
            raise ValueError(f"initial_scale={self.initial_scale} must be a finite number, at least 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd: the convolutional pattern is centred on its query")
        check_names(self.activation, self.mlp)

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(
            self.width, self.heads, self.activation, self.mlp, qk_norm=self.qk_norm, dropout=self.dropout
        )

    @property
    def pattern_options(self) -> PatternOptions:
        return PatternOptions(self.kernel, self.row_counts_itself, self.convolution_wraps)

    @staticmethod
    def infer_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Infer the config's sizes from a transformer's tensor shapes. Raises KeyError if they are not those of one."""
        return {
            "text_positions": shapes["embed.text_position.weight"][0],
            "text_vocabulary": shapes["text_head.weight"][0] - 1,
            "image_vocabulary": shapes["image_head.weight"][0],
            "grid": shapes["embed.row.weight"][0],
            "width": shapes["norm.weight"][0],
            "depth": count_children(shapes, "layers."),
        }
