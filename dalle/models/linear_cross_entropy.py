"""Cross-entropy of a linear layer, with logits computed in chunks of positions.

The logits of the paper's model for 8 captions and images take 0.4 GB in float32, and their gradient as much. Above a
limit they are computed in chunks of positions, and again in the backward pass, as in Cut Cross-Entropy (Wijmans et al.
2024). That costs a third more products with this layer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.kernels import kernel_device
from dalle.precision import in_float32

IGNORED = -100  # target without a loss
MAX_LOGITS = 1 << 25  # logits that are computed at once: 128 MB


@in_float32
def linear_cross_entropy(states: Tensor, linear: nn.Linear, targets: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each target under softmax(linear(states)), in float32.

    states: (b, n, d); targets: (b, n) classes, or `IGNORED` -> (b, n) nats, 0 if ignored. Equal to
    `dalle.losses.token_nll` of the logits up to rounding. Targets may also be distributions, (b, n, v) floats, without
    a gradient.
    """
    if targets.is_floating_point():
        distributions = targets.detach().flatten(0, 1)
        return _cross_entropy(states.flatten(0, 1), linear, distributions).view(states.shape[:2])
    flat, flat_targets = states.flatten(0, 1), targets.flatten()
    if kernel_device(flat.device) == "cpu":
        # positions without a target cost nothing; a GPU would have to wait for their number
        (chosen,) = (flat_targets != IGNORED).nonzero(as_tuple=True)
        nll = _cross_entropy(flat[chosen], linear, flat_targets[chosen])
        return nll.new_zeros(len(flat)).index_put((chosen,), nll).view(targets.shape)
    return _cross_entropy(flat, linear, flat_targets).view(targets.shape)


def _cross_entropy(states: Tensor, linear: nn.Linear, targets: Tensor) -> Tensor:
    """Compute the negative log-likelihood of targets: (m, d) states -> (m,) nats.

    targets: (m,) classes, of which `IGNORED` ones have no loss, or (m, v) distributions.
    """
    if len(states) * linear.out_features > MAX_LOGITS:
        return _ChunkedCrossEntropy.apply(states, linear.weight, linear.bias, targets)
    logits = _logits(states, linear.weight, linear.bias)
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Negative log-likelihood with logits in chunks: (m, d) states, (v, d) weight, (v,) bias -> (m,).

    targets: (m,) classes, of which `IGNORED` ones have no loss, or (m, v) distributions.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        nll, normaliser = states.new_empty(len(states)), states.new_empty(len(states))
        for part in _chunks(len(states), len(weight)):
            logits = _logits(states[part], weight, bias)
            normaliser[part] = logits.logsumexp(dim=1)
            nll[part] = _nll(logits, normaliser[part], targets[part])
        ctx.save_for_backward(states, weight, bias, targets, normaliser)
        return nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        states, weight, bias, targets, normaliser = ctx.saved_tensors
        grad_states, grad_weight = torch.empty_like(states), torch.zeros_like(weight, dtype=states.dtype)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=states.dtype)
        for part in _chunks(len(states), len(weight)):
            error = _logits(states[part], weight, bias).sub_(normaliser[part, None]).exp_()  # probabilities
            _nll_gradient_(error, targets[part], gradients[0][part])
            grad_states[part] = error @ weight.to(states.dtype)
            grad_weight.addmm_(error.T, states[part])
            if grad_bias is not None:
                grad_bias += error.sum(dim=0)
        return (
            grad_states,
            grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(weight.dtype),
            None,
        )


def _nll(logits: Tensor, normaliser: Tensor, targets: Tensor) -> Tensor:
    """Compute the negative log-likelihood of targets from logits and the logarithms of their normalisers: -> (m,)."""
    if targets.is_floating_point():
        return normaliser * targets.sum(dim=1) - torch.einsum("mv,mv->m", targets, logits)
    index = targets.masked_fill(targets == IGNORED, 0)  # any class, since the loss of ignored targets is set to 0
    nll = normaliser - logits.gather(1, index[:, None]).squeeze(1)
    return nll.masked_fill_(targets == IGNORED, 0)


def _nll_gradient_(probabilities: Tensor, targets: Tensor, gradient: Tensor) -> None:
    """Turn probabilities in place into the gradient with respect to the logits. gradient: (m,), of the losses."""
    if targets.is_floating_point():
        probabilities.mul_(targets.sum(dim=1, keepdim=True)).sub_(targets)
    else:
        index = targets.masked_fill(targets == IGNORED, 0)
        probabilities.scatter_add_(1, index[:, None], -torch.ones_like(probabilities[:, :1]))
        gradient = gradient.masked_fill(targets == IGNORED, 0)
    probabilities.mul_(gradient[:, None])


def _chunks(count: int, classes: int) -> list[slice]:
    size = max(1, MAX_LOGITS // classes)
    return [slice(start, start + size) for start in range(0, count, size)]


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(states, weight.to(states.dtype), None if bias is None else bias.to(states.dtype))
