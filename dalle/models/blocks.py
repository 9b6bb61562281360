"""What every transformer here is made of: pre-LN residual blocks, the MLP, and linear layers kept in fp32."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.attention import Attend, OfStates, SelfAttention, full
from dalle.precision import without_autocast

Way = Callable[..., Tensor]
"""How a residual branch is run: its function, x (b, n, d) and what else that function is given -> (b, n, d)."""


def directly(branch: Way, x: Tensor, *context: Attend | OfStates) -> Tensor:
    """branch(x)."""
    return branch(x, *context)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of the Sparse Transformer (Child et al. 2019) and of CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        # as one fused pass forward and one backward, with less to remember between them
        return F.silu(1.702 * x) / 1.702


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class MLP(nn.Module):
    """width -> mlp_width -> width with one nonlinearity between; None: 4 width (the factor is in the paper's Table 2).

    Raises:
        ValueError: `activation` is not a name in `ACTIVATIONS`.
    """

    def __init__(self, width: int, activation: str = "quick_gelu", mlp_width: int | None = None):
        super().__init__()
        mlp_width = 4 * width if mlp_width is None else mlp_width
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        self.expand = nn.Linear(width, mlp_width)
        self.activation = ACTIVATIONS[activation]()
        self.out = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        return self.out(self.activation(self.expand(x)))


class Residual(nn.Module):
    """x + branch(norm(x)): one residual block as the paper counts them, 128 in 64 layers (App. D).

    Training may set another `way` to run branch and norm, which scales gradients or recomputes activations.
    """

    way: Way

    def __init__(self, width: int, branch: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.branch = branch
        self.way = directly

    def forward(self, x: Tensor, *context: Attend | OfStates) -> Tensor:
        return x + self.way(self._normed_branch, x, *context)

    def _normed_branch(self, x: Tensor, *context: Attend | OfStates) -> Tensor:
        return self.branch(self.norm(x), *context)


class ResidualBlock(nn.Module):
    """Attention, then MLP, each a residual branch."""

    def __init__(
        self, width: int, heads: int, activation: str = "quick_gelu", mlp_width: int | None = None, eps: float = 1e-5
    ):
        super().__init__()
        self.attention = Residual(width, SelfAttention(width, heads), eps)
        self.mlp = Residual(width, MLP(width, activation, mlp_width), eps)

    def forward(self, x: Tensor, attend: Attend | OfStates = full) -> Tensor:
        """(b, n, d) -> (b, n, d); `attend` says which states see which."""
        return self.mlp(self.attention(x, attend))


class Float32Linear(nn.Linear):
    """A linear layer that computes and answers in fp32, under autocast too: for logits (App. D)."""

    def forward(self, input: Tensor) -> Tensor:
        with without_autocast(input.device.type):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(input.float(), self.weight.float(), bias)
