"""ELBO of held-out images, with sampled codes and with the relaxed codes of training (Eq. 1). The paper writes ELB."""

import math

import torch

from dalle.evaluation.held_out import HeldOut
from dalle.image_conversion import to_unit_range
from dalle.losses import LikelihoodConfig, kl_to_uniform
from dalle.models.dvae.model import PIXEL_MARGIN, DiscreteVAE, mean_image
from dalle.models.dvae.relaxation import argmax_one_hot
from dalle.seeds import torch_generator

DESCRIPTION = (
    "`elbo_nats` is the evidence lower bound per image (Eq. 1 with KL weight 1 and a uniform prior; higher is better), "
    "with codes sampled from the encoder's distribution. `elbo_relaxed_nats` uses the relaxed codes at the last "
    "temperature of training and is not a bound; `elbo_gap_nats` is by how much it exceeds the bound. "
    "`bits_per_dimension` is the negative ELBO per 8-bit value, with the density taken as constant within a step of "
    "1/255; it can be compared across likelihoods, and may be below 0 for uniform images. `kl_nats` is the mean KL "
    "divergence per position. `reconstruction_rmse_relaxed` is the reconstruction RMSE with relaxed codes, and "
    "`reconstruction_rmse_gap` is by how much `reconstruction_rmse` exceeds it."
)


@torch.inference_mode()
def elbo_metrics(
    dvae: DiscreteVAE, pairs: HeldOut, likelihood: LikelihoodConfig, temperature: float, seed: int
) -> dict[str, float]:
    """Compute the metrics in `DESCRIPTION`. Codes are sampled once per image; the relaxed codes use the same noise."""
    device = next(dvae.parameters()).device
    generator = torch_generator("relaxed codes", seed, device=device)
    totals: dict[str, float] = dict.fromkeys(("nll", "nll_relaxed", "kl", "squared_error_relaxed"), 0.0)
    values = positions = 0
    for batch in pairs:
        images = to_unit_range(batch.images.to(device))
        logits = dvae.logits(images)
        relaxed = dvae.relax(logits, temperature, generator)  # (b, v, h, w)
        likelihood_params = dvae.decode_codes(relaxed)
        for name, terms in {
            "nll": likelihood.nll(dvae.decode_codes(argmax_one_hot(relaxed)), images),
            "nll_relaxed": likelihood.nll(likelihood_params, images),
            "kl": kl_to_uniform(logits),
            "squared_error_relaxed": (mean_image(likelihood_params) - images).square(),
        }.items():
            totals[name] += terms.double().sum().item()
        values += images.numel()
        positions += logits[:, 0].numel()
    negative_elbo, negative_elbo_relaxed = totals["nll"] + totals["kl"], totals["nll_relaxed"] + totals["kl"]
    # the logit-Laplace density is over pixels mapped to (0.1, 0.9), where a step is shorter (App. A.3)
    step = (1 - 2 * PIXEL_MARGIN if likelihood.kind == "logit_laplace" else 1) / 255
    return {
        "elbo_nats": -negative_elbo / pairs.num_pairs,
        "elbo_relaxed_nats": -negative_elbo_relaxed / pairs.num_pairs,
        "elbo_gap_nats": (negative_elbo - negative_elbo_relaxed) / pairs.num_pairs,
        "bits_per_dimension": (negative_elbo / values - math.log(step)) / math.log(2),
        "kl_nats": totals["kl"] / positions,
        "reconstruction_rmse_relaxed": math.sqrt(totals["squared_error_relaxed"] / values),
    }
