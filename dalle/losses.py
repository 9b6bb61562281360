"""Every quantity that is minimised, computed in float32 whatever the precision of the model (Appendix D).

Units: likelihoods and divergences are in nats. The dVAE's loss is nats per pixel value (Appendix A.2 divides the
whole bound by 3 * height * width), so a KL weight `beta` acts as beta / (3 * downsample^2) on the mean KL of one
position: beta / 192 for codes of 8x8 pixels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from dalle.models.dvae.model import PIXEL_MARGIN, map_pixels
from dalle.precision import in_float32


@in_float32
def logit_laplace_nll(parameters: Tensor, images: Tensor, floor: float | None = None) -> Tensor:
    """Negative log-likelihood of pixels under the logit-Laplace distribution (Section 2.1; Appendix A.3, Eq. 2).

    parameters: (b, 6, h, w), mu and ln b of each colour; images: (b, 3, h, w) in [0, 1] -> (b, 3, h, w) nats.
    `floor` keeps ln b from falling below it (the paper mentions none): on flat pictures the density is unbounded.
    """
    mu, log_scale = parameters.chunk(2, dim=1)
    if floor is not None:
        log_scale = log_scale.clamp(min=floor)
    x = map_pixels(images)
    log_jacobian = torch.log(x) + torch.log1p(-x)
    return math.log(2) + log_scale + log_jacobian + (torch.logit(x) - mu).abs() * torch.exp(-log_scale)


@in_float32
def normal_nll(parameters: Tensor, images: Tensor, scale: float) -> Tensor:
    """The same for a normal distribution of fixed standard deviation `scale` (of pixels in [0, 1]) around the decoded
    picture: squared error in honest units, so that KL weights keep their meaning."""
    return (_picture(parameters) - images).square() / (2 * scale**2) + math.log(scale * math.sqrt(2 * math.pi))


@in_float32
def laplace_nll(parameters: Tensor, images: Tensor, scale: float) -> Tensor:
    """The same for a Laplace distribution of fixed `scale`: absolute error in honest units."""
    return (_picture(parameters) - images).abs() / scale + math.log(2 * scale)


def _picture(parameters: Tensor) -> Tensor:
    # unlike `mean_picture` without the clamp, whose gradient is zero just outside [0, 1]
    return (parameters[:, :3].sigmoid() - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)


@dataclass(frozen=True)
class LikelihoodConfig:
    """What the decoder's output says about a pixel."""

    kind: str = "logit_laplace"  # logit_laplace (Section 2.1) | laplace (absolute error) | normal (squared error)
    scale: float = 0.1  # of laplace and normal, in pixels of [0, 1]; logit_laplace learns its own
    floor: float | None = None  # least ln b of logit_laplace; the paper has none, flat pictures need one

    def __post_init__(self) -> None:
        if self.kind not in ("logit_laplace", "laplace", "normal"):
            raise ValueError(f"likelihood.kind={self.kind!r} is unknown; choose logit_laplace, laplace or normal")

    def nll(self, parameters: Tensor, images: Tensor) -> Tensor:
        """(b, 6, h, w), (b, 3, h, w) in [0, 1] -> (b, 3, h, w) nats per pixel value."""
        if self.kind == "logit_laplace":
            return logit_laplace_nll(parameters, images, self.floor)
        nll = normal_nll if self.kind == "normal" else laplace_nll
        return nll(parameters, images, self.scale)


@in_float32
def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL(q || uniform) of the categorical posterior at each position: (b, v, h, w) logits -> (b, h, w) nats.

    The encoder's logits are taken as a plain categorical distribution at every relaxation temperature, as the first
    author says in openai/DALL-E issue 26; the sum over the codebook is exact, not sampled (the paper leaves it open).
    Between 0 and ln(v).
    """
    log_q = F.log_softmax(logits, dim=1)
    return (log_q.exp() * log_q).sum(dim=1) + math.log(logits.shape[1])


@in_float32
def quantisation_error(logits: Tensor) -> Tensor:
    """Squared distance to the nearest code: (b, v, h, w) logits of vector quantisation -> (b, h, w).

    Its gradients move code and encoder's vector towards each other: the second and third term of VQ-VAE's loss
    (van den Oord et al. 2017, Eq. 3), equally weighted, which their results hardly depend on.
    """
    return -logits.amax(dim=1).clamp(max=0)  # rounding leaves some a little above


@in_float32
def negative_elb(nll: Tensor, kl: Tensor, kl_weight: float) -> Tensor:
    """The dVAE's loss (Eq. 1, Appendix A.2): nats per pixel value.

    nll: (b, 3, H, W) nats per pixel value; kl: (b, h, w) nats per position -> scalar. At `kl_weight` = 1 it is the
    negative evidence lower bound.
    """
    per_image = reduce(nll, "b c h w -> b", "sum") + kl_weight * reduce(kl, "b h w -> b", "sum")
    return per_image.mean() / nll[0].numel()


@in_float32
def contrastive(images: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy (CLIP paper, Section 2.3).

    images, captions: (b, d) unit vectors, row i of one belonging to row i of the other; scale: the exponentiated
    temperature parameter -> scalar nats.
    """
    logits = scale * images @ captions.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@in_float32
def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each token: (b, n, v) logits, (b, n) targets -> (b, n) nats; 0 where ignored.

    Targets may also be distributions over the tokens, (b, n, v) floats: then it is the expected one, which is their
    cross-entropy.
    """
    flat = rearrange(logits, "b n v -> (b n) v")  # on a GPU only losses of (rows, v) have deterministic kernels
    flat_targets = targets.flatten(0, 1)
    return F.cross_entropy(flat, flat_targets, reduction="none").view(targets.shape[:2])
