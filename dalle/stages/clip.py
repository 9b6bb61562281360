"""CLIP stage: contrastive training of the reranker on pairs of image and caption (CLIP paper, Sections 2.3 to 2.5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dalle import distributed, losses
from dalle.clip_tokenizer import CLIPTokenizer
from dalle.data import captioned_only
from dalle.data.held_out_batches import gather_rows
from dalle.data.loader import ImageBatch
from dalle.device_transfer import to_device
from dalle.models.clip.model import CLIP, TOKENIZERS, CLIPConfig
from dalle.models.dvae.config import DVAEConfig
from dalle.precision import in_float32
from dalle.stages.data_config import CaptionedDataConfig
from dalle.stages.data_module import DataModule, StageContext, captions_of
from dalle.tokenizer import CaptionTokenizer
from dalle.training.ema import EMAConfig
from dalle.training.flops import ImageCost, forward_flops
from dalle.training.optimizer import OptimizerConfig
from dalle.training.schedules import Schedule


@dataclass(frozen=True)
class CLIPStageConfig(CaptionedDataConfig):
    """CLIP, the reranker: OpenAI's recipe for the ViT-B/32; 32 epochs of 400M pairs are 390,625 steps."""

    model_class: ClassVar[type[nn.Module]] = CLIP
    validates_sharded: ClassVar[bool] = True
    accumulation_is_exact: ClassVar[bool] = False  # the negatives of a pair come from its micro-batch

    name: str = "clip"
    # image_size is overwritten by the setting below; text_vocabulary is a maximum, overwritten by the tokenizer's size
    model: CLIPConfig = field(default_factory=CLIPConfig)
    image_size: int | None = None  # side of the images in pixels; None: that of the data
    transform: str = "transformer"
    steps: int = 390_625
    batch_size: int = 32_768
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=Schedule("cosine", 5e-4, 0.0),
            warmup_steps=2_000,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.2,
            decay="matrices",
        )
    )
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.0))  # CLIP's paper uses no EMA

    def model_for(self, image_size: int, dvae: DVAEConfig | None = None) -> CLIPConfig:
        return replace(self.model, image_size=image_size if self.image_size is None else self.image_size)

    def example_batch(self, images: int, image_size: int) -> tuple[Any, ...]:
        captions = torch.zeros(images, self.model.text_positions, dtype=torch.int64)
        return torch.zeros(images, 3, self.model.image_size, self.model.image_size), captions

    def example_loss(self, model: nn.Module, batch: tuple[Any, ...], ranks: int) -> Tensor:
        images, captions, scale = model(*batch)
        gathered = (images, captions) if ranks == 1 else (images.repeat(ranks, 1), captions.repeat(ranks, 1))
        return losses.contrastive(images, captions, scale, *gathered)


class CLIPStage:
    """Training stage of CLIP, see `dalle.training.stage.Stage`."""

    name = "clip"
    validation_loss = "loss"

    def __init__(self, config: CLIPStageConfig, data: Any, context: StageContext):
        self.config = config
        if config.image_size is not None:
            data = replace(data, image_size=config.image_size)
        self.data = DataModule(captioned_only(data), config, context)
        model, tokenizer = self._load_or_train_tokenizer(config)
        self.model = CLIP(model, tokenizer).to(context.device)

    def batches(self, start: int) -> Iterator[ImageBatch]:
        return self.data.batches(start)

    def before_update(self, step: int, batches: Sequence[Any]) -> None:
        """Do nothing: weights are changed by the optimizer alone."""

    def loss(
        self, model: nn.Module, batch: ImageBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute the contrastive loss of this rank's pairs; images and captions of all ranks are negatives.

        Its mean over ranks is the loss of all pairs, and so are the mean gradients: the backward pass of `all_gather`
        sums those of all ranks' losses.
        """
        images, captions, scale = model(*self._inputs(batch))
        all_images, all_captions = distributed.all_gather(images), distributed.all_gather(captions)
        first = distributed.get_rank() * len(images)
        loss = losses.contrastive(images, captions, scale, all_images, all_captions, first)
        return loss, {"accuracy": _recall_at_1(images, all_captions, first), "scale": scale}

    def image_cost(self) -> ImageCost:
        """Return the cost of both encoders, without the similarity matrix of the loss.

        Captions are as long as a batch of the first ones of the training split.
        """
        side, train = self.model.config.image_size, self.data.train
        first = [train.captions(index)[0] for index in range(min(len(train), self.data.batch_size))]
        image = forward_flops(self.model.image, (3, side, side))
        return ImageCost(image + forward_flops(self.model.text, tuple(self._tokenize(first).shape[1:]), integers=True))

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compute loss and accuracy (image-to-text recall@1) in groups as large as a training batch.

        The number of pairs in a group does not depend on the number of ranks and micro-batches. Each rank encodes its
        share of the pairs, and has the embeddings of all.
        """
        batches, pairs = [], []
        for batch in self.data.held_out_share(self.config.validation_images):
            pairs.append(model(*self._inputs(batch)))  # on padding too: ranks call a sharded model equally often
            batches.append(batch)
        scale = pairs[0][2]
        sides = [gather_rows([pair[side] for pair in pairs], batches) for side in (0, 1)]
        groups = [side.split(self.config.batch_size) for side in sides]
        totals = torch.zeros(2)
        for images, captions in zip(*groups, strict=True):
            values = losses.contrastive(images, captions, scale), _recall_at_1(images, captions)
            totals += torch.stack(values).cpu() * len(images)
        loss, accuracy = (totals / sum(map(len, groups[0]))).tolist()
        return {"loss": loss, "accuracy": accuracy}

    def preview(self, model: nn.Module) -> None:
        return None

    def save(self, folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
        assert isinstance(model, CLIP)
        model.save(folder, self.data.add_provenance(meta, folder))

    def _load_or_train_tokenizer(self, config: CLIPStageConfig) -> tuple[CLIPConfig, CaptionTokenizer | CLIPTokenizer]:
        """Load or train the tokenizer. Returns the model config with its vocabulary, and the tokenizer."""
        init, model = self.data.init, config.model_for(self.data.image_size)
        if init is None or config.tokenizer is not None:
            # two ids are reserved for the start and end tokens
            tokenizer = self.data.load_or_train_tokenizer(config, model.text_vocabulary - 2)
            return replace(model, text_vocabulary=tokenizer.vocabulary + 2), tokenizer
        self.data.words = self.data.caption_words(captions_of(self.data.train, config.tokenizer_records))
        checkpoint_config, _ = init.read_config()
        names = ("text_vocabulary", "tokenizer", "start_id", "end_id")
        model = replace(model, **{name: checkpoint_config[name] for name in names if name in checkpoint_config})
        return model, TOKENIZERS[model.tokenizer](init.tokenizer)

    def _inputs(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        return self.data.pixels(batch), to_device(self._tokenize(batch.captions), self.data.device)

    def _tokenize(self, captions: list[str]) -> Tensor:
        """Tokenize the captions of a batch: (b, n) ids, n as large as the longest caption needs.

        With `compile` it is always `text_positions`: each other n would be compiled too.
        """
        ids = self.model.tokenize(captions, truncate=True)
        return ids if self.config.compile else self.model.trim_padding(ids)


@in_float32
def _recall_at_1(images: Tensor, captions: Tensor, first: int = 0) -> Tensor:
    """Compute image-to-text recall@1: the share of images (b, d) with their own caption as the nearest of (n, d).

    The captions of the images begin at row `first`.
    """
    target = torch.arange(first, first + len(images), device=images.device)
    return ((images @ captions.T).argmax(dim=1) == target).float().mean()
