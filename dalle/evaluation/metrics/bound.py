"""ELBO of held-out images, with sampled codes and with the relaxed codes of training (Eq. 1). The paper writes ELB."""

import math

import torch

from dalle.evaluation.held_out import HeldOut, unit
from dalle.losses import LikelihoodConfig, kl_to_uniform
from dalle.models.dvae.model import PIXEL_MARGIN, DiscreteVAE, mean_image
from dalle.models.dvae.relaxation import argmax_one_hot
from dalle.seeds import torch_generator

ABOUT = (
    "`elb_nats` is the evidence lower bound of a picture (Eq. 1 with KL weight 1 and a uniform prior; higher is "
    "better), with codes drawn from the encoder's distribution; `elb_relaxed_nats` is the same with the relaxed codes "
    "of training's last temperature, which is no bound, and `elb_gap_nats` what the relaxation flatters it by. "
    "`bits_per_dimension` is the negative bound for each 8-bit value, its density taken as flat within a step of "
    "1/255, so it compares across likelihoods, and flat pictures can bring it below 0. `kl_nats` is the mean for a "
    "position. `dvae_soft_error` is the error of relaxed codes, `soft_hard_gap` how much larger that of the most "
    "probable codes is."
)


@torch.inference_mode()
def bound_metrics(
    dvae: DiscreteVAE, pairs: HeldOut, likelihood: LikelihoodConfig, temperature: float, seed: int
) -> dict[str, float]:
    """Compute the metrics in `ABOUT`. Codes are sampled once per image; the relaxed codes use the same noise."""
    device = next(dvae.parameters()).device
    generator = torch_generator("relaxed codes", seed, device=device)
    totals: dict[str, float] = dict.fromkeys(("exact", "relaxed", "kl", "squares"), 0.0)
    values = positions = 0
    for batch in pairs:
        images = unit(batch.images.to(device))
        logits = dvae.logits(images)
        soft = dvae.relax(logits, temperature, generator)  # (b, v, h, w)
        parameters = dvae.decode_codes(soft)
        for name, found in {
            "exact": likelihood.nll(dvae.decode_codes(argmax_one_hot(soft)), images),
            "relaxed": likelihood.nll(parameters, images),
            "kl": kl_to_uniform(logits),
            "squares": (mean_image(parameters) - images).square(),
        }.items():
            totals[name] += found.double().sum().item()
        values += images.numel()
        positions += logits[:, 0].numel()
    exact, relaxed = totals["exact"] + totals["kl"], totals["relaxed"] + totals["kl"]
    # the logit-Laplace density is over pixels mapped to (0.1, 0.9), where a step is shorter (App. A.3)
    step = (1 - 2 * PIXEL_MARGIN if likelihood.kind == "logit_laplace" else 1) / 255
    return {
        "elb_nats": -exact / pairs.seen,
        "elb_relaxed_nats": -relaxed / pairs.seen,
        "elb_gap_nats": (exact - relaxed) / pairs.seen,
        "bits_per_dimension": (exact / values - math.log(step)) / math.log(2),
        "kl_nats": totals["kl"] / positions,
        "dvae_soft_error": math.sqrt(totals["squares"] / values),
    }
