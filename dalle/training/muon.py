"""Muon (Jordan et al. 2024): orthogonalised momentum for matrices, AdamW for all other parameters.

Not in the paper. In runs of thousands of small updates it needs a quarter of AdamW's updates (docs/lab.md).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dalle.training.paper_adam import PaperAdamW, finite_gradient
from dalle.training.sharding import from_local, gather, is_dtensor, local, own_shard

MOMENTUM = 0.95
ITERATIONS = 5
# coefficients of x, x^3 and x^5: singular values in [0.01, 1] are in about [0.7, 1.2] after ITERATIONS
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MAX_BATCH = 1 << 24  # elements of the matrices that are orthogonalised together
RMS = 0.2  # RMS of AdamW's usual updates, so that both can use one learning rate (Liu et al. 2025, Sec. 2.2)


class Muon(PaperAdamW):
    """Muon for parameter groups with `orthogonal_parts`, AdamW for all others.

    Parameters of such a group are weights of linear layers or convolutions. Each consists of `orthogonal_parts`
    matrices stacked along the rows (queries, keys and values: 3). `half_products` computes with them in bfloat16, as is
    always done on GPUs.
    """

    def _update_group(self, parameters: list[nn.Parameter], finite: Tensor, group: dict[str, Any]) -> None:
        if "orthogonal_parts" not in group:
            return super()._update_group(parameters, finite, group)
        for batch in batches(parameters):
            self._update_batch(batch, finite, group)

    def _update_batch(self, batch: list[nn.Parameter], finite: Tensor, group: dict[str, Any]) -> None:
        """Update parameters of one shape."""
        parts = group["orthogonal_parts"]
        directions = torch.stack([self._direction(parameter, finite) for parameter in batch])
        updates = rearrange(directions, "n (parts rows) columns -> (n parts) rows columns", parts=parts)
        half = updates.is_cuda or group["half_products"]
        updates = newton_schulz(updates, torch.bfloat16 if half else torch.float32)
        step_size = group["lr"] * RMS * math.sqrt(max(updates.shape[1:]))
        updates = rearrange(updates, "(n parts) rows columns -> n (parts rows) columns", parts=parts)
        for parameter, update in zip(batch, updates, strict=True):
            local(parameter).mul_(1 - finite * group["lr"] * group["weight_decay"])
            update = own_shard(update.view(parameter.shape), parameter)
            local(parameter).addcmul_(update, finite * step_size, value=-1)

    def _direction(self, parameter: nn.Parameter, finite: Tensor) -> Tensor:
        """Update the momentum and return the Nesterov direction as a whole matrix: (outputs, inputs * kernel)."""
        gradient = finite_gradient(parameter, finite)
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = local(state["momentum"]).lerp_(gradient, finite * (1 - MOMENTUM))
        direction = gradient.lerp(momentum, MOMENTUM)
        return gather(from_local(direction, parameter)).flatten(1)


def batches(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Iterate over lists of parameters of one shape and at most `MAX_BATCH` elements, or with one parameter.

    Small matrices are slow one by one; large ones do not fit together.
    """
    by_shape: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        # whole matrices of a sharded model may not fit together: one at a time
        key = parameter if is_dtensor(parameter) else parameter.shape
        by_shape.setdefault(key, []).append(parameter)
    for same_shape in by_shape.values():
        size = max(1, MAX_BATCH // same_shape[0].numel())
        yield from (same_shape[start : start + size] for start in range(0, len(same_shape), size))


def newton_schulz(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximate the nearest (semi-)orthogonal matrices by Newton-Schulz iteration: (n, rows, columns) -> the same.

    Singular vectors are unchanged; singular values become about 0.7 to 1.2.

    dtype: of the products; bfloat16 is precise enough for an update (Jordan et al. 2024).
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # makes the Gram matrix the smaller of the two
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return (x.mT if tall else x).to(matrices.dtype)
