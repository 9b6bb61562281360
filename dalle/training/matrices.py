"""Which parameters are the large matrices, that the paper keeps in 16 bits and compresses (App. D, E)."""

from torch import nn

from dalle.models.blocks import Float32Linear


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained weights of linear layers and convolutions, by name.

    Not among them are gains, biases, embeddings and unembeddings: the paper spares those in every respect.
    """
    weights = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, Float32Linear)
    }
    named = model.named_parameters()
    return {name: each for name, each in named if id(each) in weights and each.requires_grad}
