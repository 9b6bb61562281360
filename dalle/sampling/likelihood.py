"""Log-likelihoods under the transformer: of images given a caption, and of a caption given images.

All are in nats and teacher-forced: one forward pass scores all tokens of an image.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from dalle.losses import token_nll
from dalle.models.transformer.model import Transformer

MAX_LOGITS = 2**26  # most logits of image tokens in memory at a time: 256 MB in float32
MAX_BATCH_SIZE = 64  # scoring more images at a time is no faster


def scoring_batch_size(model: Transformer) -> int:
    """Return the number of images scored at a time: the logits of all their positions are in memory."""
    logits = model.sequence.image_positions * model.sequence.image_vocabulary
    return max(1, min(MAX_BATCH_SIZE, MAX_LOGITS // logits))


@torch.inference_mode()
def token_log_likelihood(
    model: Transformer,
    caption: Tensor,
    tokens: Tensor,
    batch_size: int | None = None,
    on_chunk: Callable[[], None] = lambda: None,
) -> Tensor:
    """Compute log p of each image token given caption and earlier tokens: (T,), (m, h, w) -> (m, h, w) nats on the CPU.

    batch_size: images scored at a time, for speed and memory only; None: `scoring_batch_size`.
    on_chunk: called after each of these batches. An exception stops scoring.

    Raises:
        ValueError: images of another size than the model's.
    """
    grid = model.sequence.grid
    if tokens.shape[1:] != (grid, grid):
        raise ValueError(
            f"the images have {tokens.shape[1]} x {tokens.shape[2]} tokens, but the transformer scores images of "
            f"{grid} x {grid}; use rerank=clip for other sizes"
        )
    device = model.image_head.weight.device
    log_likelihoods = []
    for images in rearrange(tokens, "m h w -> m (h w)").split(batch_size or scoring_batch_size(model)):
        images = images.to(device)
        logits = model(caption.to(device).expand(len(images), -1), images).image  # (b, I, v)
        log_likelihoods.append(-token_nll(logits, images).cpu())
        on_chunk()
    return torch.cat(log_likelihoods).view(tokens.shape)


def image_log_likelihood(
    model: Transformer,
    caption: Tensor,
    tokens: Tensor,
    batch_size: int | None = None,
    on_chunk: Callable[[], None] = lambda: None,
) -> Tensor:
    """Compute log p(image | caption) of m images: (T,) caption, (m, h, w) image tokens -> (m,) nats on the CPU."""
    return token_log_likelihood(model, caption, tokens, batch_size, on_chunk).sum(dim=(1, 2))


def marginal_log_likelihood(
    model: Transformer,
    references: Tensor,
    tokens: Tensor,
    batch_size: int | None = None,
    on_chunk: Callable[[], None] = lambda: None,
) -> Tensor:
    """Estimate log p(image), the log of the mean p(image | caption) of (r, T) references: (m, h, w) -> (m,) nats."""
    by_reference = torch.stack(
        [image_log_likelihood(model, caption, tokens, batch_size, on_chunk) for caption in references]
    )
    return by_reference.logsumexp(dim=0) - torch.tensor(len(references)).log()


def pointwise_mutual_information(
    model: Transformer,
    caption: Tensor,
    tokens: Tensor,
    references: Tensor,
    batch_size: int | None = None,
    on_chunk: Callable[[], None] = lambda: None,
) -> Tensor:
    """Compute the pointwise mutual information of a caption and images: log p(caption | image) - log p(caption).

    (T,) caption, (m, h, w) image tokens, (r, T) references -> (m,) nats. Text comes first in the sequence, so this is
    computed by Bayes' rule as log p(image | caption) - log p(image). It orders the images of a caption as
    log p(caption | image) does. p(image) is estimated with the references: the empty caption
    (`dalle.sampling.guidance`) for a model trained with caption dropout, else several captions of other images.
    """
    return image_log_likelihood(model, caption, tokens, batch_size, on_chunk) - marginal_log_likelihood(
        model, references, tokens, batch_size, on_chunk
    )
