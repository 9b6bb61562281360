"""Metric `reconstruction`: reconstruction error of the dVAE and use of its codebook."""

from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice

import torch
from torch import Tensor

from dalle.data import attribution
from dalle.data.blocks import BlocksSource
from dalle.data.source import Source
from dalle.evaluation.held_out import HeldOut, unit
from dalle.evaluation.judges.blocks_judge import judge
from dalle.evaluation.measured import Measured
from dalle.evaluation.metrics import bound
from dalle.evaluation.metrics.similarity import WINDOW, check_torchmetrics, psnr, ssim
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject
from dalle.image_conversion import to_pil_images
from dalle.losses import LikelihoodConfig
from dalle.models.dvae.model import DiscreteVAE, codebook_use
from dalle.sampling.sheet import Row, sample_sheet

ABOUT = (
    "Pictures that training never saw, through the most probable code at each position. `psnr` (dB, at most 100) and "
    "`ssim` are means over pictures, `dvae_hard_error` is the root mean square over all pixels in [0, 1]. "
    "`codes_used` of the codebook occur, as many as `code_perplexity` used equally often could tell apart."
)
SHOWN = 8  # images on the image grid
NO_BOUND = (
    "No ELBO and no soft/hard gap: the dVAE's checkpoint does not say the likelihood that it was trained with, nor its "
    "last temperature. Checkpoints of dVAEs that are trained with this version do."
)
NO_POSTERIOR = "No ELBO and no soft/hard gap: the codes of a VQ-VAE are chosen, not drawn, and never relaxed."
NO_SSIM = f"No SSIM: it compares windows of {WINDOW} pixels, and the pictures are smaller."


def measure(subject: Subject, config: EvaluateConfig) -> Measured:
    """Reconstruct the first `config.pictures` images of the validation split and measure the errors."""
    check_torchmetrics()
    source, objective = subject.sources["val"], subject.objective
    pairs = HeldOut(source, config.pictures)
    numbers = hard_metrics(subject.dvae, pairs, source)
    about, notes = ABOUT, [] if "ssim" in numbers else [NO_SSIM]
    if subject.dvae.config.quantises_vectors:
        notes.append(NO_POSTERIOR)
    elif objective is None:
        notes.append(NO_BOUND)
    else:
        about = f"{ABOUT} {bound.ABOUT}"
        likelihood = LikelihoodConfig(**objective["likelihood"])
        numbers |= bound.bound_metrics(subject.dvae, pairs, likelihood, objective["temperature"], config.seed)
        numbers["soft_hard_gap"] = numbers["dvae_hard_error"] - numbers["dvae_soft_error"]
    if isinstance(source, BlocksSource):
        about += " `dvae_hard_judge` is the share of reconstructions in which every stated fact still holds."
    notes += pairs.shortfall(config.pictures)
    settings = {**pairs.described(), "seed": config.seed, **(objective or {}), "torchmetrics": version("torchmetrics")}
    sheet = reconstruction_sheet(subject.dvae, source, note=attribution(subject.data))
    return Measured(about, numbers, settings, {"reconstructions": sheet}, notes=notes)


@torch.inference_mode()
def reconstructions(dvae: DiscreteVAE, pairs: HeldOut) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches of (images, hard reconstructions, tokens).

    Images are (b, 3, s, s) in [0, 1], tokens (b, h, w) int64, the most probable code at each position.
    """
    device = next(dvae.parameters()).device
    for batch in pairs:
        images = unit(batch.images.to(device))
        tokens = dvae.encode(images)
        yield images, dvae.decode(tokens), tokens


def hard_metrics(dvae: DiscreteVAE, pairs: HeldOut, source: Source) -> dict[str, float]:
    """Compute the metrics in `ABOUT`. `pairs` are of `source`. SSIM is left out for images below its window size."""
    counts = torch.zeros(dvae.vocabulary)
    totals: dict[str, float] = {}
    values = seen = 0
    for images, decoded, tokens in reconstructions(dvae, pairs):
        found = {"squares": (images - decoded).square().sum(), "psnr": psnr(images, decoded).sum()}
        if min(images.shape[-2:]) >= WINDOW:
            found["ssim"] = ssim(images, decoded).sum()
        if isinstance(source, BlocksSource):
            statements = (source.scene(index).statement for index in range(seen, seen + len(images)))
            verdicts = [
                judge(image, said).holds for image, said in zip(to_pil_images(decoded), statements, strict=True)
            ]
            found["dvae_hard_judge"] = torch.tensor(sum(verdicts))
        totals = {name: totals.get(name, 0.0) + value.item() for name, value in found.items()}
        counts += torch.bincount(tokens.flatten(), minlength=dvae.vocabulary).cpu()
        values += images.numel()
        seen += len(images)
    used, perplexity = codebook_use(counts)
    error = (totals.pop("squares") / values) ** 0.5
    means = {name: total / seen for name, total in totals.items()}
    return {"dvae_hard_error": error, "codes_used": float(used), "code_perplexity": perplexity, **means}


def reconstruction_sheet(dvae: DiscreteVAE, source: Source, note: str = ""):
    """Image grid of the first images of `source` above their reconstructions from the most probable codes."""
    ((images, decoded, _),) = islice(reconstructions(dvae, HeldOut(source, SHOWN)), 1)
    rows = [Row("pictures", to_pil_images(images), None), Row("reconstructions", to_pil_images(decoded), None)]
    return sample_sheet(rows, columns=SHOWN, note=note)
