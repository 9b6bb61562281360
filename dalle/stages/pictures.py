"""What every stage is fed: captioned pictures of a data set, as batches on the device."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle import distributed
from dalle.data import open_source
from dalle.data.audit.provenance import described
from dalle.data.contents import Batch, TokenBatch
from dalle.data.loader import batches, ordered, token_batches
from dalle.data.token_cache import TokenCache
from dalle.data.transforms import transform_named
from dalle.seeds import numpy_generator
from dalle.tokenizer import CaptionTokenizer, words_of
from dalle.training.stage import TrainingConfig
from dalle.transfer import to_device

MOST_WORDS = 20_000  # that a checkpoint lists: of larger vocabularies a hint about unknown ones helps nobody


@dataclass(frozen=True)
class StageContext:
    """What a stage is told beside its own settings and the data's."""

    seed: int
    device: torch.device
    dvae: Path | None = None  # checkpoint of the dVAE whose tokens the transformer learns
    tokens: Path | None = None  # pictures encoded before, or a folder where such are kept; None: nothing is kept


@dataclass(frozen=True)
class PicturesConfig(TrainingConfig):
    """What the settings of every stage say of its pictures."""

    transform: str = "none"  # of training pictures: dvae (Listing 1) | transformer (Listing 2) | channel_shuffle | none
    validation_pictures: int = 1_000  # held-out pictures that validation looks at, the first ones
    workers: int = 2  # processes that prepare batches; 0: the training process itself

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_pictures < 1:
            raise ValueError(f"validation_pictures={self.validation_pictures} must be at least 1")


@dataclass(frozen=True)
class CaptionedConfig(PicturesConfig):
    """What the settings of the stages that read captions say of them."""

    tokenizer: str | None = None  # a tokenizer.json, of prepare.py or of a checkpoint; null: learned here
    tokenizer_records: int = 100_000  # training records whose captions the BPE is learned on, about so many

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer_records < 1:
            raise ValueError(f"tokenizer_records={self.tokenizer_records} must be at least 1")


class Pictures:
    """The splits of a data set, loaded for one stage.

    `transform` augments training pictures; held-out pictures are cropped without chance.
    """

    def __init__(self, data: Any, config: PicturesConfig, context: StageContext):
        self.data = data
        self.train, self.val = open_source(data, "train"), open_source(data, "val")
        self.image_size = self.train.image_size
        self.transform = transform_named(config.transform)
        self.batch_size = config.micro_batch_size(distributed.world())
        self.workers = config.workers
        self.seed = context.seed
        self.device = context.device
        self.words: set[str] = set()  # of the captions that the tokenizer has read

    def batches(self, start: int) -> Iterator[Batch]:
        """This rank's micro-batches of the training split without end, from number `start` on."""
        return batches(
            self.train,
            self.transform,
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=start,
            rank=distributed.rank(),
            world=distributed.world(),
            workers=self.workers,
        )

    def token_batches(self, cache: TokenCache, start: int) -> Iterator[TokenBatch]:
        """`batches`, the pictures as their tokens."""
        return token_batches(
            self.train,
            cache,
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=start,
            rank=distributed.rank(),
            world=distributed.world(),
        )

    def held_out(self, count: int, split: str = "val") -> Iterator[Batch]:
        """The first `count` pictures of a held-out split, in order (all, if there are fewer)."""
        source = self.val if split == "val" else open_source(self.data, split)
        size = min(self.batch_size, count)
        remaining = count
        for batch in itertools.islice(ordered(source, transform_named("none"), size), -(-count // size)):
            yield Batch(batch.images[:remaining], batch.captions[:remaining], batch.keys[:remaining])
            remaining -= len(batch.captions)

    def described(self, meta: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint says about itself, and about the data that it was trained on."""
        words = {"caption_words": sorted(self.words)} if 0 < len(self.words) <= MOST_WORDS else {}
        return {**meta, **words, **described(self.data, {"train": self.train, "val": self.val})}

    def pixels(self, batch: Batch) -> Tensor:
        """The batch's pictures on the device: (b, 3, s, s) floats in [0, 1], channels last."""
        return pixels_of(batch.images, self.device)

    def generators(self, number: int) -> list[np.random.Generator]:
        """One source of chance for each picture of this rank's micro-batch `number`, however batches are split."""
        first = (number * distributed.world() + distributed.rank()) * self.batch_size
        return [numpy_generator("stage", self.seed, first + place) for place in range(self.batch_size)]

    def tokenizer(self, config: CaptionedConfig, vocabulary: int) -> CaptionTokenizer:
        """A BPE of at most `vocabulary` entries: the one that is named, or one learned on the training captions.

        Raises `ValueError` when the file that is named cannot be read, or has more entries.
        """
        if config.tokenizer is None:
            return CaptionTokenizer.train(self._captions(config.tokenizer_records), vocabulary)
        for _ in self._captions(config.tokenizer_records):
            pass  # for their words
        named = CaptionTokenizer.load(config.tokenizer)
        if named.vocabulary > vocabulary:
            raise ValueError(
                f"{config.tokenizer} has {named.vocabulary} entries, and the model takes {vocabulary} at most: "
                f"raise stage.model.text_vocabulary, or let stage.tokenizer=null learn a smaller one"
            )
        return named

    def _captions(self, records: int) -> Iterator[str]:
        """The captions of about so many training records; their words are kept for `described`."""
        for index in range(0, len(self.train), max(1, len(self.train) // records)):
            for caption in self.train.captions(index):
                if len(self.words) <= MOST_WORDS:
                    self.words |= words_of(caption)
                yield caption


def pixels_of(images: Tensor, device: torch.device) -> Tensor:
    """Pictures on the device: (b, 3, s, s) uint8 -> floats in [0, 1], channels last."""
    return to_device(images, device, memory_format=torch.channels_last).float() / 255
