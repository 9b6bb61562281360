"""Transformer blocks: pre-LN residual branches, MLPs, and linear layers in fp32."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.attention import AttentionFn, CachedAttention, FusedLinear, SelfAttention, full
from dalle.precision import without_autocast


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of the Sparse Transformer (Child et al. 2019) and of CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        # SiLU is one fused kernel forward and one backward, and saves fewer tensors in between
        return F.silu(1.702 * x) / 1.702


class Activation(NamedTuple):
    """Activation function: its module, and the oneDNN operation, if any, that fuses it into the preceding product."""

    module: Callable[[], nn.Module]
    fused: str | None = None  # activation(x) = fused(scale * x) / scale
    scale: float = 1.0


ACTIVATIONS = {"quick_gelu": Activation(QuickGELU, "swish", 1.702), "gelu": Activation(nn.GELU, "gelu")}


@dataclass(frozen=True)
class BlockConfig:
    """Sizes and options of a transformer block.

    Raises:
        ValueError: `activation` or `mlp` is unknown.
    """

    width: int
    heads: int
    activation: str = "quick_gelu"  # of the plain MLP: quick_gelu | gelu
    mlp: str = "plain"  # plain | swiglu
    mlp_width: int | None = None  # None: 4 * width (Table 2); for swiglu 2/3 of that, for an equal parameter count
    qk_norm: bool = False  # see `SelfAttention`
    dropout: float = 0.0  # rate of dropout at the end of each residual branch, during training
    eps: float = 1e-5  # epsilon of the layer norms

    def __post_init__(self) -> None:
        check_names(self.activation, self.mlp)


class MLP(nn.Module):
    """MLP: width -> mlp_width -> width with one activation in between."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        mlp_width = 4 * config.width if config.mlp_width is None else config.mlp_width
        self.activation_spec = ACTIVATIONS[config.activation]
        self.expand = nn.Linear(config.width, mlp_width)
        self.activation = self.activation_spec.module()
        self.out = nn.Linear(mlp_width, config.width)

    @property
    def activations(self) -> int:
        """Number of activations per position: the hidden features before and after the activation, and the output."""
        width, mlp_width = self.out.weight.shape
        return 2 * mlp_width + width

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP at each position: (b, n, width) -> (b, n, width)."""
        return self.out(self.activation(self.expand(x)))

    def pack(self, linear: Callable[..., nn.Module]) -> dict[str, nn.Module]:
        """Return child modules for inference on a CPU, by name, with the activation fused into the first product.

        linear: builds a packed layer, see `dalle.models.cpu_linear.PackedLinear`.
        """
        spec = self.activation_spec
        if spec.fused is None:
            return {"expand": linear(self.expand), "activation": self.activation, "out": linear(self.out)}
        expand = linear(self.expand, activation=spec.fused, output_scale=spec.scale, keep_packed_dtype=True)
        return {"expand": expand, "activation": nn.Identity(), "out": linear(self.out, input_scale=1 / spec.scale)}


class SwiGLU(nn.Module):
    """Gated MLP: out(silu(gate) * value), with gate and value from one linear layer (Shazeer 2020)."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        rounded = -(-8 * config.width // 48) * 16  # a multiple of 16
        mlp_width = rounded if config.mlp_width is None else config.mlp_width
        self.expand = FusedLinear(config.width, mlp_width, parts=2)
        self.out = nn.Linear(mlp_width, config.width)

    @property
    def activations(self) -> int:
        """Number of activations per position: gate, silu(gate), value, their product, and the output."""
        width, mlp_width = self.out.weight.shape
        return 4 * mlp_width + width

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP at each position: (b, n, width) -> (b, n, width)."""
        gate, value = self.expand(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


MLPS: dict[str, Callable[[BlockConfig], MLP | SwiGLU]] = {"plain": MLP, "swiglu": SwiGLU}


def check_names(activation: str, mlp: str) -> None:
    """Raise ValueError for an unknown activation, also if the MLP does not use it, or an unknown MLP."""
    for name, value, choices in (("activation", activation, ACTIVATIONS), ("mlp", mlp, MLPS)):
        if value not in choices:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


Layer = TypeVar("Layer", bound=nn.Module)


class ResidualBranch(nn.Module, Generic[Layer]):
    """Branch of a residual block: dropout(layer(norm(x))), added to x by the caller.

    A transformer of 64 layers has 128 of them (App. D). During training, hooks on it scale gradients or recompute
    activations.
    """

    branch: Layer

    def __init__(self, config: BlockConfig, layer: Layer):
        super().__init__()
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.branch = layer
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, *context: AttentionFn) -> Tensor:
        return self.dropout(self.branch(self.norm(x), *context))

    def decode(self: "ResidualBranch[SelfAttention]", x: Tensor, attend: CachedAttention) -> Tensor:
        """Compute the branch of an attention layer for new positions, which attend to a KV cache."""
        return self.dropout(self.branch.decode(self.norm(x), attend))


class TransformerBlock(nn.Module):
    """Pre-LN transformer block: attention, then MLP, each a residual branch.

    Raises:
        ValueError: `width` of `config` is not a multiple of `heads`.
    """

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config
        self.attention = ResidualBranch(config, SelfAttention(config.width, config.heads, config.qk_norm))
        self.mlp = ResidualBranch(config, MLPS[config.mlp](config))

    def forward(self, x: Tensor, attend: AttentionFn = full) -> Tensor:
        """Apply the block: (b, n, d) -> (b, n, d). `attend`: attention function, such as `full` or `causal`."""
        x = x + self.attention(x, attend)
        return x + self.mlp(x)

    def decode(self, x: Tensor, attend: CachedAttention) -> Tensor:
        """Process new positions, usually one, that attend to a KV cache: (b, n, d) -> (b, n, d)."""
        x = x + self.attention.decode(x, attend)
        return x + self.mlp(x)

    def init_weights(self, qkv: float, attention_out: float, expand: float, mlp_out: float) -> None:
        """Initialise the four linear layers: weights from normals with these standard deviations, biases with 0."""
        attention, mlp = self.attention.branch, self.mlp.branch
        layers = (attention.qkv, qkv), (attention.out, attention_out), (mlp.expand, expand), (mlp.out, mlp_out)
        for layer, std in layers:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    @property
    def mlp_width(self) -> int:
        """Number of input features of the MLP's last linear layer."""
        return self.mlp.branch.out.weight.shape[1]

    @property
    def activations(self) -> int:
        """Number of activations per position in eval mode, including the input, without scores: an upper bound."""
        return self.config.width + self.attention.branch.activations + self.mlp.branch.activations


class Float32Linear(nn.Linear):
    """Linear layer that computes and returns fp32, also under autocast: for logits (App. D)."""

    def forward(self, input: Tensor) -> Tensor:
        with without_autocast(input.device.type):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(input.float(), self.weight.float(), bias)
