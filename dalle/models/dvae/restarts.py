"""Restart unused codes of a dVAE where its reconstructions are worst.

Not in the paper. With a relaxed codebook, as with a quantised one, codes that are never chosen get no gradient that
would bring them back (VQ-VAE's random restarts: Dhariwal et al. 2020, "Jukebox", Section 3.1).
"""

import torch
from einops import rearrange, reduce
from torch import Tensor

from dalle.models.dvae.model import DiscreteVAE, map_pixels, mean_image

CHANGED_PARAMETERS = (
    "encoder.output.weight",
    "encoder.output.bias",
    "decoder.input.weight",
)  # parameters that a restart changes
MARGIN = 2.0  # logits by which a restarted code beats the code that it splits, at the position that it starts from


@torch.no_grad()
def restart_unused_codes(
    model: DiscreteVAE, images: Tensor, generator: torch.Generator, batch_size: int | None = None
) -> int:
    """Move each code that no position of `images` uses to a position with a large error. Returns their number.

    images: (b, 3, h * downsample, w * downsample) in [0, 1]. A code is unused if it is nowhere the most probable one.
    batch_size: images in a pass of the encoder and the decoder; None: all at once, which takes more memory.
    Positions are drawn without replacement, in proportion to the squared error of their pixels. The restarted code is
    a copy of the position's code, with an encoder row turned towards the position's features: the boundary between the
    two is half-way between the position and the mean of all positions of its code. Its embedding is that of the code
    that it splits. Needs bottleneck_kernel=1 and logits (not vector quantisation).
    """
    batches = images.split(batch_size or len(images))
    parts = zip(*(_positions(model, batch) for batch in batches), strict=True)
    features, tokens, errors = (torch.cat(part) for part in parts)  # (n, c), (n,), (n,)

    counts = torch.bincount(tokens, minlength=model.vocabulary)
    unused = (counts == 0).nonzero().flatten()
    unused = unused[: len(errors)]
    if not len(unused):
        return 0
    positions = torch.multinomial(errors + 1e-12, len(unused), generator=generator)
    split_codes = tokens[positions]
    sums = torch.zeros(model.vocabulary, features.shape[1], device=features.device)
    means = sums.index_add_(0, tokens, features) / counts.clamp_min(1)[:, None]

    offset = features[positions] - means[split_codes]  # (u, c), of u unused codes
    offset = MARGIN * 2 * offset / offset.square().sum(dim=1, keepdim=True).clamp_min(1e-6)
    midpoint = (features[positions] + means[split_codes]) / 2
    encoder, decoder = model.encoder.output, model.decoder.input
    assert encoder.bias is not None
    encoder.weight[unused] = encoder.weight[split_codes] + offset[:, :, None, None]
    encoder.bias[unused] = encoder.bias[split_codes] - (offset * midpoint).sum(dim=1)
    decoder.weight[:, unused] = decoder.weight[:, split_codes]
    return len(unused)


def _positions(model: DiscreteVAE, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, (n, c), code and squared error, (n,) each, at all n positions of `images`."""
    features = model.encoder.features(map_pixels(images))  # (b, c, h, w)
    tokens = model.encoder.output.in_full_precision(features).argmax(dim=1)  # (b, h, w)
    side = model.downsample
    errors = (mean_image(model.decoder.decode_embeddings(model.decoder.embed_tokens(tokens))) - images).square()
    errors = reduce(errors, "b c (h p) (w q) -> (b h w)", "mean", p=side, q=side)
    return rearrange(features.float(), "b c h w -> (b h w) c"), tokens.flatten(), errors
