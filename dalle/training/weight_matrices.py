"""Selection of the large weight matrices, which the paper stores in 16 bits and compresses (App. D, E)."""

from typing import NamedTuple

from torch import nn

from dalle.models.attention import FusedLinear
from dalle.models.blocks import Float32Linear


class WeightMatrix(NamedTuple):
    """Weight of a layer, and the number of equal matrices stacked in it along the rows."""

    weight: nn.Parameter
    parts: int


def weight_matrices(model: nn.Module) -> dict[str, WeightMatrix]:
    """Return the trained weights of linear layers and convolutions, by name.

    Gains, biases, embeddings and unembeddings are excluded, as in the paper.
    """
    layers = {
        id(module.weight): module
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, Float32Linear)
    }
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) in layers
    }
    return {name: WeightMatrix(weight, _parts(layers[id(weight)])) for name, weight in trained.items()}


def _parts(layer: nn.Module) -> int:
    return layer.parts if isinstance(layer, FusedLinear) else 1
