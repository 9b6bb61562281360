"""A model with gradients of a given rank, and readers of PowerSGD's saved tensors, for tests of compression."""

from collections.abc import Callable

import torch
from torch import nn


def model_with_gradients(rank: int, seed: int = 0) -> nn.Module:
    """Return three layers whose matrices have gradients of the given rank."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 24), nn.Embedding(5, 24), nn.Conv2d(4, 32, 3))
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            rows, columns = parameter.flatten(1).shape
            factors = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
            parameter.grad = (factors[0] @ factors[1]).reshape(parameter.shape)
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the gradient of each parameter, by name."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def reader(state: dict[str, torch.Tensor]) -> Callable[[str], dict[str, torch.Tensor]]:
    """Return a reader of saved tensors by kind, for `PowerSGD.load_state_dict`."""
    kinds = {name: name.partition(".") for name in state}
    return lambda kind: {kinds[name][2]: tensor for name, tensor in state.items() if kinds[name][0] == kind}


def set_gradients(model: nn.Module, given: dict[str, torch.Tensor]) -> None:
    """Set the gradients of a model to copies of those `given`, by name of the parameter."""
    for name, parameter in model.named_parameters():
        parameter.grad = given[name].clone()
