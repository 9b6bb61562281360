"""Changes of `TransformerConfig` that tests of the transformer try, and examples of its inputs."""

import torch
from every_pattern import OPTIONS

from dalle.models.transformer.model import Transformer
from dalle.models.transformer.patterns import PATTERNS

READINGS = [
    *OPTIONS,
    {"pads": "masked"},
    {"image_position_embedding": "own"},
    {"attention_normalisation": "separate"},
    {
        "pads": "masked",
        "attention_normalisation": "separate",
        "image_position_embedding": "own",
        "convolution_wraps": False,
    },
]
BLOCKS = [{"qk_norm": True}, {"mlp": "swiglu"}, {"qk_norm": True, "mlp": "swiglu"}]
CHANGES = [*({"patterns": [name]} for name in PATTERNS), {}, *READINGS, *BLOCKS]


def example(model: Transformer, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random captions of different lengths, (batch, text_positions), and image tokens, (batch, grid * grid)."""
    generator = torch.Generator().manual_seed(seed)
    sequence = model.sequence
    captions = [
        torch.randint(sequence.text_vocabulary, (1 + n % sequence.caption_limit,), generator=generator).tolist()
        for n in range(batch)
    ]
    shape = (batch, sequence.image_positions)
    return sequence.pad_captions(captions), torch.randint(sequence.image_vocabulary, shape, generator=generator)
