"""Settings common to several stages: batches, augmentation and validation of their data, and the tokenizer."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dalle.models.dvae.config import DVAEConfig
from dalle.training.flops import EncodingCost
from dalle.training.stage import StageConfig


@dataclass(frozen=True)
class StageDataConfig(StageConfig):
    """Model and data settings common to all stages. Each stage's config has a field `model`, the model's config."""

    model_class: ClassVar[type[nn.Module]]  # the model that is trained, built as model_class(model)
    trained_on_tokens: ClassVar[bool] = False  # True: needs dvae=, the dVAE on whose tokens the model is trained

    # augmentation of training images: dvae (Listing 1) | transformer (Listing 2) | affine | placement |
    # channel_shuffle | none
    transform: str = "none"
    validation_images: int = 1_000  # held-out images used for validation, the first of the split
    workers: int = 2  # processes that load batches; 0: load in the training process

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_images < 1:
            raise ValueError(f"validation_images={self.validation_images} must be at least 1")

    def model_for(self, image_size: int, dvae: DVAEConfig | None = None) -> Any:
        """Return the config of the model that is trained on data of this image size and on the codes of `dvae`.

        It is `model` with the sizes that follow from these two. The size of a tokenizer is not known here: the maximum,
        `text_vocabulary`, remains. `dvae` is needed by models that are trained on tokens only.

        Raises ValueError if the images do not divide into codes.
        """
        raise NotImplementedError

    def example_batch(self, images: int, image_size: int) -> tuple[Any, ...]:
        """Return a micro-batch for `example_loss`: zeros, for `images` images of `image_size` pixels.

        Call it on a config whose `model` was replaced by `model_for(...)`.
        """
        raise NotImplementedError

    def example_loss(self, model: nn.Module, batch: tuple[Any, ...], ranks: int) -> Tensor:
        """Compute the training loss of an `example_batch`, for plans: in the time and memory of the stage's own.

        ranks: number of ranks; CLIP's loss also compares with their pairs.
        """
        raise NotImplementedError

    def encoding_cost(self, image_size: int, dvae: DVAEConfig) -> EncodingCost:
        """Return the cost of the frozen dVAE for an image of an update, for plans: 0 FLOPs if its tokens are cached.

        Assumes more than one epoch, so that tokens may be cached. Held-out images are encoded in any case. Only called
        for models that are trained on tokens.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CaptionedDataConfig(StageDataConfig):
    """Data settings common to the stages with captions."""

    tokenizer: str | None = None  # path of a tokenizer.json, from prepare.py or a checkpoint; null: train one
    tokenizer_records: int = 100_000  # approximate number of training records to train the BPE on, held in memory

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer_records < 1:
            raise ValueError(f"tokenizer_records={self.tokenizer_records} must be at least 1")
