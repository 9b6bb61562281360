"""Metric `reconstruction`: RMSE, PSNR, SSIM and ELBO of the dVAE on held-out images, and use of its codebook."""

from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from dalle.data import attribution
from dalle.data.blocks import BlocksSource
from dalle.data.source import Source
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.judges.blocks_judge import judge
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics import elbo
from dalle.evaluation.metrics.psnr_ssim import WINDOW, check_torchmetrics, psnr, ssim
from dalle.image_conversion import to_pil_images, to_unit_range
from dalle.losses import LikelihoodConfig
from dalle.models.dvae.model import DiscreteVAE, codebook_use
from dalle.sampling.labelled_grid import ImageRow, labelled_grid

DESCRIPTION = (
    "Held-out images, reconstructed from the most probable code at each position. `psnr` (dB, at most 100) and `ssim` "
    "are means over images; `reconstruction_rmse` is the root mean square error over all pixel values in [0, 1]. "
    "`codes_used` is the number of codes that occur, `code_perplexity` the perplexity of their distribution."
)
JUDGE_DESCRIPTION = " `dvae_hard_judge` is the share of reconstructions in which every stated fact still holds."
GRID_IMAGES = 8  # images on the image grid
NO_OBJECTIVE = (
    "No ELBO and no error of relaxed codes: the dVAE's checkpoint does not record its likelihood and last temperature. "
    "Checkpoints of dVAEs that are trained with this version do."
)
NO_POSTERIOR = "No ELBO and no error of relaxed codes: a VQ-VAE selects its codes deterministically."
NO_SSIM = f"No SSIM: it needs images of at least {WINDOW} pixels."


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Reconstruct the first `config.pairs` images of the validation split and compute the errors."""
    check_torchmetrics()
    source, objective = context.sources["val"], context.objective
    pairs = HeldOut(source, config.pairs)
    numbers = reconstruction_metrics(context.dvae, pairs, source)
    description, notes = DESCRIPTION, [] if "ssim" in numbers else [NO_SSIM]
    if context.dvae.config.quantises_vectors:
        notes.append(NO_POSTERIOR)
    elif objective is None:
        notes.append(NO_OBJECTIVE)
    else:
        description = f"{DESCRIPTION} {elbo.DESCRIPTION}"
        likelihood = LikelihoodConfig(**objective["likelihood"])
        numbers |= elbo.elbo_metrics(context.dvae, pairs, likelihood, objective["temperature"], config.seed)
        gap = numbers["reconstruction_rmse"] - numbers["reconstruction_rmse_relaxed"]
        numbers["reconstruction_rmse_gap"] = gap
    if isinstance(source, BlocksSource):
        description += JUDGE_DESCRIPTION
    notes += pairs.shortfall(config.pairs)
    settings = {**pairs.settings(), "seed": config.seed, **(objective or {}), "torchmetrics": version("torchmetrics")}
    grid = reconstruction_grid(context.dvae, source, note=attribution(context.data.name))
    return MetricResult(description, numbers, settings, {"reconstructions": grid}, notes=notes)


@torch.inference_mode()
def reconstructions(dvae: DiscreteVAE, pairs: HeldOut) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches of (images, reconstructions, tokens).

    Images are (b, 3, s, s) in [0, 1], tokens (b, h, w) int64, the most probable code at each position.
    """
    device = next(dvae.parameters()).device
    for batch in pairs:
        images = to_unit_range(batch.images.to(device))
        tokens = dvae.encode(images)
        yield images, dvae.decode(tokens), tokens


def reconstruction_metrics(dvae: DiscreteVAE, pairs: HeldOut, source: Source) -> dict[str, float]:
    """Compute the metrics in `DESCRIPTION` and, for `blocks`, `dvae_hard_judge`. `pairs` are of `source`.

    SSIM is left out for images below its window size.
    """
    code_counts = torch.zeros(dvae.vocabulary)
    totals: dict[str, float] = {}
    values = num_images = 0
    for images, decoded, tokens in reconstructions(dvae, pairs):
        sums = {"squared_error": (images - decoded).square().sum(), "psnr": psnr(images, decoded).sum()}
        if min(images.shape[-2:]) >= WINDOW:
            sums["ssim"] = ssim(images, decoded).sum()
        if isinstance(source, BlocksSource):
            statements = (source.scene(index).statement for index in range(num_images, num_images + len(images)))
            correct = [judge(*pair).holds for pair in zip(to_pil_images(decoded), statements, strict=True)]
            sums["dvae_hard_judge"] = torch.tensor(sum(correct))
        totals = {name: totals.get(name, 0.0) + value.item() for name, value in sums.items()}
        code_counts += torch.bincount(tokens.flatten(), minlength=dvae.vocabulary).cpu()
        values += images.numel()
        num_images += len(images)
    codes_used, perplexity = codebook_use(code_counts)
    rmse = (totals.pop("squared_error") / values) ** 0.5
    means = {name: total / num_images for name, total in totals.items()}
    return {"reconstruction_rmse": rmse, "codes_used": float(codes_used), "code_perplexity": perplexity, **means}


def reconstruction_grid(dvae: DiscreteVAE, source: Source, note: str = "") -> Image.Image:
    """Draw a grid of the first images of `source` above their reconstructions from the most probable codes."""
    ((images, decoded, _),) = islice(reconstructions(dvae, HeldOut(source, GRID_IMAGES)), 1)
    rows = [ImageRow("images", to_pil_images(images), None), ImageRow("reconstructions", to_pil_images(decoded), None)]
    return labelled_grid(rows, columns=GRID_IMAGES, note=note)
