"""A small discrete VAE with random weights, and images, in float64 for exact comparisons."""

import torch

from dalle.models.dvae.model import DiscreteVAE, DVAEConfig

TINY = DVAEConfig(vocabulary=11, width=8, groups=3, blocks_per_group=2, decoder_input=6, gain=0.7)


def build(config: DVAEConfig = TINY, seed: int = 0) -> DiscreteVAE:
    """Return a model in eval mode with random weights and biases."""
    torch.manual_seed(seed)
    model = DiscreteVAE(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # fresh ones are 0, and would hide what becomes of them
                parameter.normal_(std=0.3)
    return model.eval()


def pictures(batch: int = 2, height: int = 16, width: int = 16, seed: int = 0) -> torch.Tensor:
    """Return random images: (batch, 3, height, width) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)
