"""Gradient norms of parts of a model: each residual block, and each other top-level child."""

import torch
from torch import Tensor, nn

from dalle.training.sharding import RESIDUAL_BLOCKS, total_norm
from dalle.training.train_metrics import TrainMetrics


class GradientNorms:
    """Means of the gradient norm of each part over the updates between two readings, accumulated on the device."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.parts = parts_of(model)
        self.means = TrainMetrics(device)

    def update(self, finite: Tensor) -> None:
        """Add the norms of the present gradients to the means, unless the update is skipped (`finite` is 0)."""
        norms: dict[str, float | Tensor] = {}
        for name, parameters in self.parts.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norms[f"gradient_norm/{name}"] = total_norm(gradients) if gradients else 0.0
        self.means.update(norms, finite)

    def compute_and_reset(self) -> dict[str, float]:
        """Return the means by name, as gradient_norm/layers.0. All ranks must call it."""
        return self.means.compute_and_reset()


def parts_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters by the outermost residual block, or else the top-level child, they belong to."""
    blocks = [name for name, module in model.named_modules() if isinstance(module, RESIDUAL_BLOCKS)]
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            enclosing_blocks = (block for block in blocks if name.startswith(f"{block}."))  # outermost first
            parts.setdefault(next(enclosing_blocks, name.partition(".")[0]), []).append(parameter)
    return parts
