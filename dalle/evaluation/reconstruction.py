"""How much of a picture survives the codebook, and how much of the codebook is used."""

from collections.abc import Iterator
from itertools import islice

import torch
from PIL import Image

from dalle.data.loader import ordered
from dalle.data.source import Source
from dalle.data.transforms import inference_crop
from dalle.models.dvae import DiscreteVAE, codebook_use
from dalle.pixels import to_images


@torch.inference_mode()
def reconstructions(
    dvae: DiscreteVAE, source: Source, pictures: int, batch_size: int = 64
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches of the first `pictures` of `source`: (pictures, hard reconstructions, tokens).

    Pictures are (b, 3, s, s) in [0, 1], tokens (b, h, w) int64, the most probable code at each position.
    """
    device = next(dvae.parameters()).device
    batches = ordered(source, inference_crop, min(batch_size, pictures))
    left = pictures
    for batch in islice(batches, -(-pictures // batch_size)):
        images = batch.images[:left].to(device).float() / 255
        tokens = dvae.encode(images)
        yield images, dvae.decode(tokens), tokens
        left -= len(images)


def reconstruction_metrics(dvae: DiscreteVAE, source: Source, pictures: int) -> dict[str, float]:
    """`dvae_hard_error` (root mean square, pixels in [0, 1]), `codes_used` and `code_perplexity`."""
    counts = torch.zeros(dvae.vocabulary)
    squares, values = 0.0, 0
    for images, decoded, tokens in reconstructions(dvae, source, pictures):
        squares += (images - decoded).square().sum().item()
        values += images.numel()
        counts += torch.bincount(tokens.flatten(), minlength=dvae.vocabulary).cpu()
    used, perplexity = codebook_use(counts)
    return {"dvae_hard_error": (squares / values) ** 0.5, "codes_used": float(used), "code_perplexity": perplexity}


def reconstructed_images(dvae: DiscreteVAE, source: Source, pictures: int) -> list[Image.Image]:
    """The hard reconstructions of the first `pictures` of `source`."""
    return [image for _, decoded, _ in reconstructions(dvae, source, pictures) for image in to_images(decoded)]
