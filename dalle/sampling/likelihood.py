"""Log-likelihoods under the transformer: of images given a caption, and of a caption given images.

All are in nats and teacher-forced: one forward pass scores all tokens of an image.
"""

import torch
from einops import rearrange
from torch import Tensor

from dalle.losses import token_nll
from dalle.models.transformer.model import Transformer


@torch.inference_mode()
def cells_given_caption(model: Transformer, caption: Tensor, tokens: Tensor, batch_size: int = 64) -> Tensor:
    """Log-likelihood of each image token given the caption and earlier tokens: (T,), (m, h, w) -> (m, h, w) on the CPU.

    batch_size: images scored at a time; changes speed and memory only.

    Raises:
        ValueError: images of another size than the model's.
    """
    grid = model.sequence.grid
    if tokens.shape[1:] != (grid, grid):
        raise ValueError(
            f"the pictures are {tokens.shape[1]} x {tokens.shape[2]} tokens, and the transformer knows how likely "
            f"{grid} x {grid} are; choose among others by rerank=clip"
        )
    device = model.image_head.weight.device
    found = []
    for some in rearrange(tokens, "m h w -> m (h w)").split(batch_size):
        some = some.to(device)
        logits = model(caption.to(device).expand(len(some), -1), some).image  # (b, I, v)
        found.append(-token_nll(logits, some).cpu())
    return torch.cat(found).view(tokens.shape)


def image_given_caption(model: Transformer, caption: Tensor, tokens: Tensor, batch_size: int = 64) -> Tensor:
    """log p(image | caption) of several images: (T,) caption, (m, h, w) image tokens -> (m,) nats on the CPU."""
    return cells_given_caption(model, caption, tokens, batch_size).sum(dim=(1, 2))


def image_alone(model: Transformer, references: Tensor, tokens: Tensor, batch_size: int = 64) -> Tensor:
    """log p(image), the log of the mean of p(image | caption) over (r, T) references: (m, h, w) -> (m,) nats."""
    given = torch.stack([image_given_caption(model, caption, tokens, batch_size) for caption in references])
    return given.logsumexp(dim=0) - torch.tensor(len(references)).log()


def caption_given_image(
    model: Transformer, caption: Tensor, tokens: Tensor, references: Tensor, batch_size: int = 64
) -> Tensor:
    """log p(caption | image) - log p(caption): (T,) caption, (m, h, w) image tokens, (r, T) references -> (m,) nats.

    This is the pointwise mutual information of image and caption. Text comes first in the sequence, so it is computed
    by Bayes' rule: log p(image | caption) - log p(image). The omitted term log p(caption) is the same for all images of
    a caption. p(image) is estimated with the references: the empty caption (`dalle.sampling.guidance`) for a model
    trained with caption dropout, else several captions of other images.
    """
    return image_given_caption(model, caption, tokens, batch_size) - image_alone(model, references, tokens, batch_size)
