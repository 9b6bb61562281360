"""Small models that tests of several floors share."""

from collections.abc import Callable

import pytest
import torch

from dalle.models.transformer import Transformer, TransformerConfig

MakeTransformer = Callable[..., Transformer]


@pytest.fixture(scope="session")
def make_transformer() -> MakeTransformer:
    """Builds tiny transformers whose weights are all random: fresh ones start with logits of zero."""

    def make(seed: int = 0, **changes) -> Transformer:
        sizes = {
            "text_positions": 6,
            "text_vocabulary": 11,
            "image_vocabulary": 13,
            "grid": 4,
            "width": 16,
            "depth": 2,
            "heads": 2,
            "kernel": 3,
        }
        model = Transformer(TransformerConfig(**{**sizes, **changes}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1:  # biases, and the norms' gains
                    parameter.add_(noise * 0.1)
                else:
                    parameter.copy_(noise if name.startswith("embed") else noise * parameter.shape[-1] ** -0.5)
        return model.eval()

    return make
