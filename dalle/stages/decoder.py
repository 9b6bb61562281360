"""Decoder stage: the diffusion decoder, trained to restore what the dVAE's reconstructions lack. Optional.

It is trained by flow matching, or by a perceptual loss to decode in one step (stage.model.one_step=true).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import reduce
from PIL import Image
from torch import Tensor, nn

from dalle import distributed
from dalle.data.loader import ImageBatch
from dalle.models.decoder.flow import interpolate, stratified_times, velocity
from dalle.models.decoder.model import Condition, DecoderConfig, DiffusionDecoder, condition_on
from dalle.models.decoder.perceptual_loss import LARGEST_VIEW, PerceptualConfig, PerceptualLoss, draw_view
from dalle.models.dvae.config import DVAEConfig
from dalle.precision import in_float32, without_autocast
from dalle.seeds import torch_generator
from dalle.stages.data_config import StageDataConfig
from dalle.stages.data_module import DataModule, StageContext
from dalle.stages.frozen_dvae import dvae_record, encoding_cost, load_frozen_dvae, require_dvae, token_grid_size
from dalle.stages.preview_grid import preview_grid
from dalle.training.ema import EMAConfig
from dalle.training.flops import EncodingCost, ImageCost, forward_flops
from dalle.training.optimizer import OptimizerConfig
from dalle.training.schedules import Schedule

PREVIEW_IMAGES = 8
VALIDATION_VIEW = LARGEST_VIEW._replace(enlargement=1.0)


@dataclass(frozen=True)
class DecoderStageConfig(StageDataConfig):
    """The diffusion decoder, not in the paper: needs dvae=<checkpoint folder>. stage=all leaves it out."""

    model_class: ClassVar[type[nn.Module]] = DiffusionDecoder
    trained_on_tokens: ClassVar[bool] = True

    name: str = "decoder"
    # code_channels, code_side and image_vocabulary come from the dVAE, grid from the image size
    model: DecoderConfig = field(default_factory=DecoderConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)  # loss with model.one_step
    transform: str = "transformer"
    validation_images: int = 256
    steps: int = 200_000
    batch_size: int = 256
    clip_norm: float | None = 1.0
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=Schedule("cosine", 2e-4, 0.0), warmup_steps=1_000, betas=(0.9, 0.99)
        )
    )
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.999))

    def model_for(self, image_size: int, dvae: DVAEConfig | None = None) -> DecoderConfig:
        assert dvae is not None
        return replace(
            self.model,
            image_vocabulary=dvae.vocabulary,
            code_channels=dvae.decoder_input,
            code_side=dvae.downsample,
            grid=token_grid_size(image_size, dvae),
        )

    def example_batch(self, images: int, image_size: int) -> tuple[Any, ...]:
        pixels, noise, reconstruction = (torch.zeros(images, 3, image_size, image_size) for _ in range(3))
        codes = torch.zeros(images, self.model.code_channels, self.model.grid, self.model.grid)
        return pixels, torch.zeros(images), noise, reconstruction, codes

    def example_loss(self, model: nn.Module, batch: tuple[Any, ...], ranks: int) -> Tensor:
        assert isinstance(model, DiffusionDecoder)
        images, time, noise, *condition = batch
        if model.config.one_step:
            perceptual_loss = PerceptualLoss(self.perceptual, pretrained=False)
            return perceptual_loss(model.refine(model, Condition(*condition)), images, LARGEST_VIEW).mean()
        return velocity_errors(model, model, images, Condition(*condition), time, noise).mean()

    def encoding_cost(self, image_size: int, dvae: DVAEConfig) -> EncodingCost:
        return encoding_cost(dvae, image_size, reconstructs=True)


@dataclass(frozen=True)
class EncodedBatch:
    """Images of one micro-batch, their tokens, and the condition of the decoder."""

    images: Tensor  # (b, 3, s, s) floats in [0, 1]
    tokens: Tensor  # (b, h, w) int64
    condition: Condition
    keys: list[str]  # b, keys of the records


class DecoderStage:
    """Training stage of the diffusion decoder, see `dalle.training.stage.Stage`."""

    name = "decoder"
    validation_loss = "loss"

    def __init__(self, config: DecoderStageConfig, data: Any, context: StageContext):
        self.config = config
        self.data = DataModule(data, config, context)
        self.dvae_folder = require_dvae(context.dvae, self.name)
        self.dvae = load_frozen_dvae(self.dvae_folder, self.data.image_size, context.device)
        model = config.model_for(self.data.image_size, self.dvae.config)
        self.model = DiffusionDecoder(model).to(context.device)
        self.perceptual_loss = PerceptualLoss(config.perceptual).to(context.device) if model.one_step else None

    def batches(self, start: int) -> Iterator[EncodedBatch]:
        for batch in self.data.batches(start):
            yield self._encode(batch)

    def before_update(self, step: int, batches: Sequence[Any]) -> None:
        """Do nothing: weights are changed by the optimizer alone."""

    def loss(
        self, model: nn.Module, batch: EncodedBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute the perceptual loss, or the mean squared error of the velocity at random times."""
        if self.perceptual_loss is not None:
            decoded = self.model.refine(model, batch.condition)
            return self.perceptual_loss(decoded, batch.images, draw_view(step)).mean(), {}
        time, noise = draw_noise(batch.images, generator)
        return velocity_errors(model, self.model, batch.images, batch.condition, time, noise).mean(), {}

    def image_cost(self) -> ImageCost:
        """Return the cost of the U-Net. The dVAE and the networks of the loss, which are not trained, are left out."""
        size, config = self.data.image_size, self.model.config
        image, codes = (3, size, size), (config.code_channels, config.grid, config.grid)
        return ImageCost(forward_flops(self.model, image, (), image, codes))

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compute the loss, and root mean square errors of decoded held-out images, for pixels in [0, 1].

        `rmse` is the diffusion decoder's, of one sample of each image, and `dvae_rmse` that of the dVAE's decoder.
        """
        assert isinstance(model, DiffusionDecoder)
        sums: dict[str, float] = dict.fromkeys(("loss", "rmse", "dvae_rmse", "images"), 0.0)
        for held_out in self.data.held_out_share(self.config.validation_images):
            if held_out.is_padding:
                continue
            batch = self._encode(held_out)
            time, noise = self._validation_noise(held_out.first, batch.images)
            decoded = model.sample(batch.condition, noise)
            if self.perceptual_loss is not None:
                errors = self.perceptual_loss(decoded, batch.images, VALIDATION_VIEW)
            else:
                errors = velocity_errors(model, self.model, batch.images, batch.condition, time, noise)
            sums["loss"] += errors.sum().item()
            sums["rmse"] += squared_errors(decoded, batch.images).sum().item()
            sums["dvae_rmse"] += squared_errors(batch.condition.reconstruction, batch.images).sum().item()
            sums["images"] += len(batch.images)
        sums = distributed.all_reduce_sums(sums)
        count = sums.pop("images")
        means = {name: value / count for name, value in sums.items()}
        return {name: value if name == "loss" else math.sqrt(value) for name, value in means.items()}

    def preview(self, model: nn.Module) -> Image.Image:
        """Return a grid of held-out images, with their reconstructions by both decoders below."""
        assert isinstance(model, DiffusionDecoder)
        images = self.data.held_out_pixels(PREVIEW_IMAGES)
        tokens = self.dvae.encode(images)
        _, noise = self._validation_noise(0, images)
        return preview_grid(
            {
                "held-out images": images,
                "by the dVAE's decoder": self.dvae.decode(tokens),
                f"by the diffusion decoder, steps: {model.num_steps(None)}": model.decode(self.dvae, tokens, noise),
            }
        )

    def save(self, folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
        """Write a checkpoint; its meta has the dVAE's path and digest."""
        assert isinstance(model, DiffusionDecoder)
        model.save(folder, self.data.add_provenance(meta, folder) | {"dvae": dvae_record(self.dvae_folder, folder)})

    @torch.no_grad()
    def _encode(self, batch: ImageBatch) -> EncodedBatch:
        images = self.data.pixels(batch)
        with without_autocast(images.device.type):  # the loop enables it for validation
            tokens = self.dvae.encode(images)
            return EncodedBatch(images, tokens, condition_on(self.dvae, tokens), batch.keys)

    def _validation_noise(self, first: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return a time, (b,), and noise, (b, 3, s, s), for the held-out images from number `first` on."""
        generators = [torch_generator("validation noise", first + index) for index in range(len(images))]
        time = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for generator in generators])
        return time.to(images.device), noise.to(images.device)


def velocity_errors(
    model: nn.Module, decoder: DiffusionDecoder, images: Tensor, condition: Condition, time: Tensor, noise: Tensor
) -> Tensor:
    """Compute the mean squared error of the velocity of each image at its time: (b,).

    It is an error of pixels, in units of `residual_scale`: flat areas, whose local scale is small, weigh little.

    model: `decoder`, wrapped or not. images: (b, 3, h, w) in [0, 1]. time, noise: see `draw_noise`.
    """
    scale = decoder.local_scale(condition.reconstruction)
    residual = (images - condition.reconstruction) / scale
    noisy = interpolate(residual, noise, time)
    predicted = model(noisy, time, *condition)
    weight = scale / decoder.config.residual_scale
    return squared_errors(weight * velocity(noisy, predicted, time), weight * velocity(noisy, residual, time))


def draw_noise(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw times, (b,), and noise, (b, 3, h, w), for images."""
    time = stratified_times(len(images), generator, images.device)
    return time, torch.randn(images.shape, generator=generator, device=images.device)


@in_float32
def squared_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error of each image: (b, 3, h, w) twice -> (b,)."""
    return reduce((predicted - target).square(), "b c h w -> b", "mean")
