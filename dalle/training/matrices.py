"""The large matrices, which the paper keeps in 16 bits and compresses (App. D, E)."""

from typing import NamedTuple

from torch import nn

from dalle.models.attention import FusedLinear
from dalle.models.blocks import Float32Linear


class Matrix(NamedTuple):
    """The weight of a layer, and how many matrices of equal shape it holds, one below the other."""

    weight: nn.Parameter
    parts: int


def matrices(model: nn.Module) -> dict[str, Matrix]:
    """The trained weights of linear layers and convolutions, by name.

    Not among them are gains, biases, embeddings and unembeddings: the paper spares those in every respect.
    """
    layers = {
        id(module.weight): module
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, Float32Linear)
    }
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad and id(each) in layers}
    return {name: Matrix(each, _parts(layers[id(each)])) for name, each in trained.items()}


def _parts(layer: nn.Module) -> int:
    return layer.parts if isinstance(layer, FusedLinear) else 1
