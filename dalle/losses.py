"""Loss functions, computed in float32 for any precision of the model (Appendix D).

Likelihoods and divergences are in nats. The dVAE's loss is in nats per pixel value (Appendix A.2 divides the whole
bound by 3 * height * width), so the mean KL per position has an effective weight of beta / (3 * downsample^2) for a KL
weight `beta`: beta / 192 for codes of 8x8 pixels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from dalle.models.dvae.model import PIXEL_MARGIN, map_pixels
from dalle.models.dvae.negative_entropy import negative_entropy
from dalle.models.linear_cross_entropy import IGNORED
from dalle.precision import in_float32


@in_float32
def logit_laplace_nll(likelihood_params: Tensor, images: Tensor, floor: float | None = None) -> Tensor:
    """Compute the negative log-likelihood of pixels under the logit-Laplace distribution (Sec. 2.1; App. A.3, Eq. 2).

    likelihood_params: (b, 6, h, w), mu and ln b of each colour; images: (b, 3, h, w) in [0, 1] -> (b, 3, h, w) nats.
    floor: minimum of ln b (not in the paper), since the density is unbounded on flat images.
    """
    mu, log_scale = likelihood_params.chunk(2, dim=1)
    if floor is not None:
        log_scale = log_scale.clamp(min=floor)
    x = map_pixels(images)
    log_jacobian = torch.log(x) + torch.log1p(-x)
    return math.log(2) + log_scale + log_jacobian + (torch.logit(x) - mu).abs() * torch.exp(-log_scale)


@in_float32
def normal_nll(likelihood_params: Tensor, images: Tensor, scale: float) -> Tensor:
    """Compute the negative log-likelihood under a normal distribution around the decoded image, in nats.

    It is a squared error, normalised as a density, so that KL weights keep their meaning. `scale` is the fixed standard
    deviation, for pixels in [0, 1]. Shapes as in `logit_laplace_nll`.
    """
    return (_unclamped_mean_image(likelihood_params) - images).square() / (2 * scale**2) + math.log(
        scale * math.sqrt(2 * math.pi)
    )


@in_float32
def laplace_nll(likelihood_params: Tensor, images: Tensor, scale: float) -> Tensor:
    """Compute the negative log-likelihood under a Laplace distribution around the decoded image, in nats.

    It is an absolute error, normalised. `scale` is fixed, for pixels in [0, 1]. Shapes as in `logit_laplace_nll`.
    """
    return (_unclamped_mean_image(likelihood_params) - images).abs() / scale + math.log(2 * scale)


def _unclamped_mean_image(likelihood_params: Tensor) -> Tensor:
    # as `mean_image`, but without its clamp, which has zero gradients outside [0, 1]
    return (likelihood_params[:, :3].sigmoid() - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)


@dataclass(frozen=True)
class LikelihoodConfig:
    """Likelihood of pixels given the decoder's output."""

    kind: str = "logit_laplace"  # logit_laplace (Section 2.1) | laplace (absolute error) | normal (squared error)
    scale: float = 0.1  # scale of laplace and normal, for pixels in [0, 1]; logit_laplace predicts its own
    floor: float | None = None  # minimum of ln b for logit_laplace; the paper has none, flat images need one

    def __post_init__(self) -> None:
        if self.kind not in ("logit_laplace", "laplace", "normal"):
            raise ValueError(f"likelihood.kind={self.kind!r} is unknown; choose logit_laplace, laplace or normal")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"likelihood.scale={self.scale} must be a finite number above 0")
        if self.floor is not None and not math.isfinite(self.floor):
            raise ValueError(f"likelihood.floor={self.floor} must be finite; leave it out for no minimum")

    def nll(self, likelihood_params: Tensor, images: Tensor) -> Tensor:
        """Compute nats per pixel value: (b, 6, h, w) params, (b, 3, h, w) images in [0, 1] -> (b, 3, h, w)."""
        if self.kind == "logit_laplace":
            return logit_laplace_nll(likelihood_params, images, self.floor)
        nll = normal_nll if self.kind == "normal" else laplace_nll
        return nll(likelihood_params, images, self.scale)


@in_float32
def kl_to_uniform(logits: Tensor) -> Tensor:
    """Compute KL(q || uniform) of the categorical posterior at each position: (b, v, h, w) logits -> (b, h, w) nats.

    Between 0 and ln(v). The logits define a categorical distribution, independent of the relaxation temperature, as the
    first author states in openai/DALL-E issue 26. The sum over the codebook is exact, not sampled (the paper does not
    specify this).
    """
    b, v, h, _ = logits.shape
    flat = rearrange(logits, "b v h w -> (b h w) v")  # a view if logits are in channels-last layout
    return rearrange(negative_entropy(flat), "(b h w) -> b h w", b=b, h=h) + math.log(v)


@in_float32
def quantisation_error(logits: Tensor) -> Tensor:
    """Compute the squared distance to the nearest code: (b, v, h, w) logits of vector quantisation -> (b, h, w).

    It is not detached, so its gradients are those of the codebook loss, which moves the code to the encoder's vector,
    plus those of the commitment loss, which moves the vector to the code: the second and third term of VQ-VAE's loss
    (van den Oord et al. 2017, Eq. 3) with beta = 1. The codebook has no other gradients, see
    `straight_through_vectors`.
    """
    return -logits.amax(dim=1).clamp(max=0)  # rounding errors can make logits slightly positive


@in_float32
def per_pixel_loss(nll: Tensor, penalty: Tensor, weight: float) -> Tensor:
    """Compute the loss of an image and its codes, nll + `weight` * penalty, per pixel value (Eq. 1, Appendix A.2).

    nll: (b, 3, H, W) nats per pixel value; penalty: (b, h, w), one per position -> scalar, the mean over images of both
    sums over the image, divided by 3 * H * W.

    With the KL as penalty, and `weight` = beta, it is the loss of the dVAE; for beta = 1 the negative evidence lower
    bound (ELBO), which the paper writes ELB. With `quantisation_error` as penalty it is the loss of a VQ-VAE.
    """
    per_image = reduce(nll, "b c h w -> b", "sum") + weight * reduce(penalty, "b h w -> b", "sum")
    return per_image.mean() / nll[0].numel()


@in_float32
def contrastive(
    images: Tensor,
    captions: Tensor,
    scale: Tensor,
    all_images: Tensor | None = None,
    all_captions: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Compute CLIP's symmetric cross-entropy loss (CLIP paper, Section 2.3).

    images, captions: (b, d) unit vectors, paired by row; scale: logit scale, exp of the temperature parameter ->
    scalar nats.

    all_images, all_captions: (n, d) vectors of all ranks, of which this rank's begin at row `first`; None: there are no
    others. The loss is then that of b images among n captions and of b captions among n images; its mean over ranks is
    the loss of all n pairs.
    """
    all_images = images if all_images is None else all_images
    all_captions = captions if all_captions is None else all_captions
    by_image = scale * images @ all_captions.T  # (b, n)
    by_caption = by_image.T if len(all_images) == len(images) else scale * captions @ all_images.T  # (b, n)
    target = torch.arange(first, first + len(images), device=images.device)
    return (F.cross_entropy(by_image, target) + F.cross_entropy(by_caption, target)) / 2


@in_float32
def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each token: (b, n, v) logits, (b, n) targets -> (b, n) nats; 0 if ignored.

    Targets may also be distributions over the tokens, (b, n, v) floats; the result is then the cross-entropy.
    """
    flat = rearrange(logits, "b n v -> (b n) v")  # on a GPU only 2-D cross-entropy has deterministic kernels
    flat_targets = targets.flatten(0, 1)
    nll = F.cross_entropy(flat, flat_targets, reduction="none", ignore_index=IGNORED)
    return nll.view(targets.shape[:2])
