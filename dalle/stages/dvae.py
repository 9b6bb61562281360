"""Stage 1: the discrete VAE, trained on images to maximise the evidence lower bound (Section 2.1, App. A)."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from dalle import distributed, losses
from dalle.data.loader import ImageBatch
from dalle.losses import LikelihoodConfig
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig, codebook_use, mean_image
from dalle.models.dvae.relaxation import argmax_one_hot
from dalle.models.dvae.restarts import CHANGED_PARAMETERS, restart_unused_codes
from dalle.seeds import torch_generator
from dalle.stages.data_config import StageDataConfig
from dalle.stages.data_module import DataModule, StageContext
from dalle.stages.preview_grid import preview_grid
from dalle.training.ema import EMAConfig
from dalle.training.flops import ImageCost, forward_flops
from dalle.training.optimizer import OptimizerConfig
from dalle.training.schedules import Schedule
from dalle.training.sharding import copy_to, copy_whole, is_sharded

log = logging.getLogger(__name__)


RESTART_IMAGES = 512  # training images; a code that none of them uses is restarted
ELBO_METRICS = ("kl", "negative_elbo", "true_negative_elbo", "bound_gap")  # metrics that are not defined for a VQ-VAE


@dataclass(frozen=True)
class DVAEStageConfig(StageDataConfig):
    """Stage 1, the discrete VAE: the paper's recipe (Section 2.1, Appendix A.2)."""

    model_class: ClassVar[type[nn.Module]] = DiscreteVAE

    name: str = "dvae"
    model: DVAEConfig = field(default_factory=DVAEConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    kl_weight: Schedule = field(default_factory=lambda: Schedule("cosine", 0.0, 6.6, 5_000))  # beta
    temperature: Schedule = field(default_factory=lambda: Schedule("cosine", 1.0, 1 / 16, 150_000))  # tau
    restart_codes_every: int = 0  # updates between restarts of unused codes; 0: never, as in the paper
    restart_codes_from: int = 0  # first update with a restart: while the KL weight is high, codes are not committed yet
    restart_codes_until: int = 0  # no restarts from this update on, so that the last codes can settle; 0: to the end
    # vector quantisation: weight, above 0, of the codebook and the commitment loss together (VQ-VAE, Eq. 3, where beta
    # weights the commitment loss alone)
    commitment: float = 1.0
    transform: str = "dvae"
    validation_images: int = 256
    steps: int = 3_000_000
    batch_size: int = 512
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.999))

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.temperature.start, self.last_temperature) <= 0:
            raise ValueError(
                f"temperature from {self.temperature.start} to {self.last_temperature} must be above 0: the relaxation "
                "divides by it"
            )
        if self.model.quantises_vectors and self.float32_matmul_precision != "highest":
            raise ValueError(
                f"float32_matmul_precision={self.float32_matmul_precision} would round the distances to the codes of "
                f"relaxation={self.model.relaxation}, which are small differences of large numbers; use highest"
            )
        if self.model.quantises_vectors and not self.commitment > 0:
            raise ValueError(
                f"commitment={self.commitment} must be above 0: it weights the only loss that trains the codebook of "
                "relaxation=vector_quantisation"
            )
        if self.restart_codes_every and (self.model.quantises_vectors or self.model.bottleneck_kernel != 1):
            raise ValueError(
                f"restart_codes_every={self.restart_codes_every} needs bottleneck_kernel=1 and logits, "
                f"not bottleneck_kernel={self.model.bottleneck_kernel} and relaxation={self.model.relaxation}; use 0"
            )
        if self.restart_codes_every and 0 < self.restart_codes_until <= self.restart_codes_from:
            raise ValueError(
                f"restart_codes_until={self.restart_codes_until} must be above restart_codes_from="
                f"{self.restart_codes_from}, or no code is restarted; use 0 for the end of training"
            )

    def model_for(self, image_size: int, dvae: DVAEConfig | None = None) -> DVAEConfig:
        return self.model

    def example_batch(self, images: int, image_size: int) -> tuple[Any, ...]:
        return (torch.zeros(images, 3, image_size, image_size),)

    def example_loss(self, model: nn.Module, batch: tuple[Any, ...], ranks: int) -> Tensor:
        (images,) = batch
        likelihood_params, logits = model(images, self.last_temperature)
        return self.loss_and_terms(likelihood_params, logits, images, step=0)[0]

    def loss_and_terms(
        self, likelihood_params: Tensor, logits: Tensor, images: Tensor, step: int
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute the negative ELBO (Eq. 1), or the loss of a VQ-VAE, from the outputs, and the terms of either.

        likelihood_params, logits: as `DiscreteVAE.forward` returns them. images: (b, 3, h, w) in [0, 1].
        """
        nll = self.likelihood.nll(likelihood_params, images)
        if self.model.quantises_vectors:
            distance = losses.quantisation_error(logits)
            loss = losses.per_pixel_loss(nll, distance, self.commitment)
            return loss, {"nll": nll.mean(), "distance": distance.mean()}
        kl, kl_weight = losses.kl_to_uniform(logits), self.kl_weight.value(step)
        return losses.per_pixel_loss(nll, kl, kl_weight), {"nll": nll.mean(), "kl": kl.mean(), "kl_weight": kl_weight}

    @property
    def last_temperature(self) -> float:
        """Relaxation temperature at the end of training; the schedule may be longer than the run, or constant."""
        return self.temperature.value(self.steps)


class DVAEStage:
    """Training stage of the dVAE, see `dalle.training.stage.Stage`."""

    name = "dvae"

    def __init__(self, config: DVAEStageConfig, data: Any, context: StageContext):
        self.config = config
        self.data = DataModule(data, config, context)
        self.model = DiscreteVAE(config.model).to(context.device)
        self.validation_loss = "nll" if config.model.quantises_vectors else "negative_elbo"

    def batches(self, start: int) -> Iterator[ImageBatch]:
        return self.data.batches(start)

    def before_update(self, step: int, batches: Sequence[Any]) -> None:
        """Restart unused codes if one is due after `step` updates, as the settings `restart_codes_...` say."""
        config = self.config
        first = max(1, config.restart_codes_from)
        if not config.restart_codes_every or step % config.restart_codes_every:
            return
        if not first <= step < (config.restart_codes_until or config.steps):
            return
        model = self.whole_model()
        if distributed.is_main_process():  # others would round sums in another order, and replicas would differ
            generator = torch_generator("code restarts", self.data.seed, step, device=self.data.device)
            images = self.data.sample_of_training(RESTART_IMAGES, step)
            count = restart_unused_codes(model, images, generator, self.data.batch_size)
            log.info("step %d: restarted %d codes", step, count)
        for name in CHANGED_PARAMETERS:
            parameter = model.get_parameter(name)
            distributed.broadcast_to_all(parameter)
            copy_to(self.model.get_parameter(name), parameter)

    def whole_model(self) -> DiscreteVAE:
        """Return the model, or a copy with whole weights if it is sharded. All ranks must call it."""
        if not is_sharded(self.model):
            return self.model
        with torch.device("meta"):
            copy = DiscreteVAE(self.config.model)
        copy.to_empty(device=self.data.device)
        copy_whole(self.model, copy)
        return copy

    def loss(
        self, model: nn.Module, batch: ImageBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute the negative ELBO with relaxed codes, or the loss of a VQ-VAE, and their terms."""
        images = self.data.pixels(batch)
        temperature = self.config.temperature.value(step)
        likelihood_params, logits = model(images, temperature, generator)
        loss, terms = self.config.loss_and_terms(likelihood_params, logits, images, step)
        if self.config.model.quantises_vectors:
            return loss, terms
        return loss, terms | {"temperature": temperature}

    def image_cost(self) -> ImageCost:
        size, grid = self.data.image_size, self.data.image_size // self.model.downsample
        encoder = forward_flops(self.model.encoder, (3, size, size))
        return ImageCost(encoder + forward_flops(self.model.decoder, (self.model.vocabulary, grid, grid)))

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compute held-out metrics: negative ELBO, errors of soft and hard reconstructions, codebook usage.

        Likelihoods are in nats per pixel value, the KL in nats per position; errors are root mean square errors of
        pixels in [0, 1]. `soft_error` is that of relaxed samples at the final temperature, `hard_error` that of the
        most probable codes, which the transformer is trained on. `true_negative_elbo` is the bound with codes sampled
        from the encoder's distribution, without relaxation; `bound_gap` is its difference from the relaxed bound.
        """
        assert isinstance(model, DiscreteVAE)
        counts = torch.zeros(model.vocabulary, device=self.data.device)
        sums: dict[str, float] = dict.fromkeys(("nll", "sampled_nll", "kl", "soft", "hard", "images"), 0.0)
        for batch in self.data.held_out_share(self.config.validation_images):
            if batch.is_padding:
                continue
            images = self.data.pixels(batch)
            logits = model.logits(images)
            relaxed = self._relax_held_out(logits, batch.first)
            relaxed_params = model.decode_codes(relaxed)
            sampled_params = model.decode_codes(argmax_one_hot(relaxed))
            tokens = logits.argmax(dim=1)
            counts += torch.bincount(tokens.flatten(), minlength=model.vocabulary)
            for name, value in {
                "nll": self.config.likelihood.nll(relaxed_params, images),
                "sampled_nll": self.config.likelihood.nll(sampled_params, images),
                "kl": losses.kl_to_uniform(logits),
                "soft": (mean_image(relaxed_params) - images).square(),
                "hard": (model.decode(tokens) - images).square(),
            }.items():
                sums[name] += value.mean().item() * len(images)
            sums["images"] += len(images)
        (counts,), sums = distributed.all_reduce_sum([counts]), distributed.all_reduce_sums(sums)
        used, perplexity = codebook_use(counts)
        count = sums.pop("images")
        means = {name: value / count for name, value in sums.items()}
        positions_per_value = 1 / (3 * model.downsample**2)
        metrics = {
            "nll": means["nll"],
            "kl": means["kl"],
            "negative_elbo": means["nll"] + means["kl"] * positions_per_value,
            "true_negative_elbo": means["sampled_nll"] + means["kl"] * positions_per_value,
            "bound_gap": means["sampled_nll"] - means["nll"],
            "soft_error": math.sqrt(means["soft"]),
            "hard_error": math.sqrt(means["hard"]),
            "codes_used": float(used),
            "code_perplexity": perplexity,
        }
        if self.config.model.quantises_vectors:  # codes are neither sampled nor relaxed: there is no bound
            return {name: value for name, value in metrics.items() if name not in ELBO_METRICS}
        warning = collapse_warning(metrics, model.vocabulary)
        if warning:
            log.warning(warning)
        return metrics

    def _relax_held_out(self, logits: Tensor, first: int) -> Tensor:
        """Relax the codes of held-out images from number `first` on: (b, v, h, w) logits -> the same shape.

        An image has the same random numbers on any rank and in a batch of any size.
        """
        relaxed = []
        for number, image_logits in enumerate(logits.split(1), start=first):
            generator = torch_generator("validation codes", number, device=logits.device)
            relaxed.append(self.model.relax(image_logits, self.config.last_temperature, generator))
        return torch.cat(relaxed)

    def preview(self, model: nn.Module) -> Image.Image:
        """Return a grid of held-out images, with their soft and hard reconstructions below."""
        assert isinstance(model, DiscreteVAE)
        images = self.data.held_out_pixels(8)
        generator = torch_generator("validation codes", device=self.data.device)
        likelihood_params, logits = model(images, self.config.last_temperature, generator)
        return preview_grid(
            {
                "held-out images": images,
                "soft reconstructions (relaxed codes)": mean_image(likelihood_params),
                "hard reconstructions (most probable codes)": model.decode(logits.argmax(dim=1)),
            }
        )

    def save(self, folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
        """Write a checkpoint; its meta has the likelihood and the final temperature, which evaluation needs."""
        assert isinstance(model, DiscreteVAE)
        objective = {"likelihood": asdict(self.config.likelihood), "temperature": self.config.last_temperature}
        model.save(folder, self.data.add_provenance(meta, folder) | objective)


def collapse_warning(metrics: dict[str, float], vocabulary: int) -> str | None:
    """Return a warning if the codebook has collapsed, else None.

    Few codes used evenly do not count as a collapse, nor do many codes used unevenly: a plain background, for which one
    code is enough, may cover most of every image.
    """
    used, perplexity = metrics["codes_used"], metrics["code_perplexity"]
    if perplexity >= min(4, vocabulary / 4) or used >= min(16, vocabulary / 4):
        return None
    return (
        f"codebook collapse: {used:.0f} of {vocabulary} codes are used, with a perplexity of {perplexity:.1f} (KL "
        f"{metrics['kl']:.2f} nats per position). If this lasts beyond the first few hundred steps, try a larger "
        "initial stage.kl_weight, a lower learning rate, or a slower decay of stage.temperature"
    )
