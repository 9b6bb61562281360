"""Data module of the stages: captioned images of a data set, as batches on the device."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dalle import checkpoint, distributed
from dalle.data import open_splits
from dalle.data.audit.provenance import Provenance, changed_splits, data_meta
from dalle.data.collate import ImageBatch, TokenBatch, to_tensor
from dalle.data.held_out_batches import HeldOutBatch, held_out_batches
from dalle.data.loader import first_batches, image_batches, none_readable, token_batches
from dalle.data.source import Source, UnreadableRecord
from dalle.data.token_cache import TokenCache
from dalle.data.transforms import inference_crop, transform_named
from dalle.device_transfer import to_device
from dalle.image_conversion import to_unit_range
from dalle.models.dvae.config import DVAEConfig
from dalle.seeds import numpy_generator
from dalle.stages.data_checks import check_enough_records, check_held_out, check_same_records, open_held_out
from dalle.stages.initial_weights import Init
from dalle.tokenizer import CaptionTokenizer, words_of
from dalle.training.flops import EncodingCost
from dalle.training.stage import StageConfig

log = logging.getLogger(__name__)
MAX_CAPTION_WORDS = 20_000  # a checkpoint lists the words of its captions, unless there are more


@dataclass(frozen=True)
class StageContext:
    """Settings of a stage that are in neither its own config nor the data's."""

    seed: int
    device: torch.device
    dvae: Path | None = None  # checkpoint of the dVAE that encodes images for the transformer or the decoder
    tokens: Path | None = None  # token cache, or a folder of such caches; None: no caching
    init: Init | None = None  # checkpoint that the run starts from; its tokenizer is kept
    resumed: Path | None = None  # folder of the run if it resumes: its tokenizer is kept too; None: a new run


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

        `model` has the sizes of `model_for`.
        """
        raise NotImplementedError

    def example_loss(self, model: nn.Module, batch: tuple[Any, ...], ranks: int) -> Tensor:
        """Compute the training loss of an `example_batch`, for plans: in the time and memory of the stage's own.

        ranks: with as large a micro-batch; CLIP compares the pairs of all.
        """
        raise NotImplementedError

    def encoding_cost(self, image_size: int, dvae: DVAEConfig) -> EncodingCost:
        """Return the cost of the frozen dVAE for an image of an update, for plans; only its weights if they are cached.

        Images are taken to be seen more than once. Only called for models that are trained on tokens.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CaptionedDataConfig(StageDataConfig):
    """Data settings common to the stages with captions."""

    tokenizer: str | None = None  # path of a tokenizer.json, from prepare.py or a checkpoint; null: train one
    tokenizer_records: int = 100_000  # approximate number of training records to train the BPE on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer_records < 1:
            raise ValueError(f"tokenizer_records={self.tokenizer_records} must be at least 1")


class DataModule:
    """Data module of one stage: batches of the splits of a data set, and the tokenizer.

    Every rank opens the data set itself, and all ranks must do it. Raises ValueError if they find different records, or
    fewer training records than ranks.

    `config.transform` augments training images; held-out images are cropped deterministically.
    """

    def __init__(self, data: Any, config: StageDataConfig, context: StageContext):
        self.data_config = data
        splits = open_splits(data, ("train", "val"))
        self.train, self.val = splits["train"], splits["val"]
        check_held_out(data, "val", self.val)
        if distributed.get_world_size() > 1:
            check_same_records({"train": self.train, "val": self.val})
        check_enough_records(self.train, distributed.get_world_size())
        self.held_out_splits: dict[str, Source] = {"val": self.val}
        self.image_size = self.train.image_size
        self.transform = transform_named(config.transform)
        self.batch_size = config.micro_batch_size(distributed.get_world_size())
        self.workers = config.workers
        self.seed = context.seed
        self.device = context.device
        self.init, self.resumed = context.init, context.resumed
        self.words: set[str] = set()  # words of the captions that the tokenizer was trained on

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Iterate endlessly over this rank's micro-batches of the training split, from number `start` on."""
        return image_batches(
            self.train,
            self.transform,
            batch_size=self.batch_size,
            seed=self.seed,
            start=start,
            rank=distributed.get_rank(),
            world_size=distributed.get_world_size(),
            workers=self.workers,
        )

    def token_batches(self, cache: TokenCache, start: int) -> Iterator[TokenBatch]:
        """Iterate as `batches` does, with cached tokens instead of images."""
        return token_batches(
            self.train,
            cache,
            batch_size=self.batch_size,
            seed=self.seed,
            start=start,
            rank=distributed.get_rank(),
            world_size=distributed.get_world_size(),
        )

    def held_out_split(self, split: str) -> Source:
        """Open a held-out split, the first time it is needed; all ranks must do it then.

        Raises ValueError for an unknown split, for one without images, and if ranks find different records.
        """
        if split not in self.held_out_splits:
            source = open_held_out(self.data_config, split)
            if distributed.get_world_size() > 1:
                check_same_records({split: source})
            self.held_out_splits[split] = source
        return self.held_out_splits[split]

    def held_out(self, count: int, split: str = "val") -> Iterator[ImageBatch]:
        """Iterate in order over the first `count` images of a held-out split, or all if there are fewer."""
        return first_batches(self.held_out_split(split), count, self.batch_size)

    def held_out_share(self, count: int, split: str = "val") -> Iterator[HeldOutBatch]:
        """Iterate over this rank's share of the images of `held_out`. All ranks must do it, to the end."""
        return held_out_batches(self.held_out_split(split), count, self.batch_size)

    def held_out_pixels(self, count: int) -> Tensor:
        """Return the first `count` validation images on the device, as `pixels` does: (count, 3, s, s)."""
        return torch.cat([self.pixels(batch) for batch in self.held_out(count)])

    def sample_of_training(self, count: int, number: int) -> Tensor:
        """Return `count` training images, drawn with `number` as a seed: (count, 3, s, s) floats in [0, 1].

        Other images replace unreadable ones; there are fewer than `count` if not as many can be read. Raises
        `LoadingError` if none can be read.
        """
        pixels: list[np.ndarray] = []
        unreadable: dict[str, str] = {}
        for record in self._random_records(min(count, len(self.train)), number):
            try:
                pixels.append(inference_crop(self.train[record].image, self.image_size))
            except UnreadableRecord as problem:
                unreadable[problem.key] = problem.reason
            if len(pixels) == count:
                break
        if not pixels:
            raise none_readable(unreadable)
        return pixels_of(to_tensor(np.stack(pixels)), self.device)

    def _random_records(self, count: int, number: int) -> Iterator[int]:
        """Yield `count` records of the training split in random order, and then all others."""
        generator = numpy_generator("sample of training images", self.seed, number)
        first = generator.choice(len(self.train), count, replace=False)
        yield from map(int, first)
        # only reached if some are unreadable: a large data set has many others
        yield from map(int, generator.permutation(np.setdiff1d(np.arange(len(self.train)), first)))

    def add_provenance(self, meta: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return `meta` extended with a description of the training data, for a checkpoint in `folder`."""
        words = {"caption_words": sorted(self.words)} if 0 < len(self.words) <= MAX_CAPTION_WORDS else {}
        init = {} if self.init is None else {"init": self.init.meta(folder)}
        return {**meta, **init, **words, **self.data_meta}

    @cached_property
    def data_meta(self) -> dict[str, Any]:
        """Description of the data set, its splits and its authors. Computed once: it goes over all records."""
        return data_meta(self.data_config, {"train": self.train, "val": self.val})

    def warn_if_changed(self, folder: Path) -> None:
        """Log a warning if the data are not those that the checkpoint in `folder` records; only on the first rank.

        It costs no further pass over the data: the next checkpoint needs `data_meta` too.
        """
        recorded = Provenance.read(folder).meta.get("records") if (folder / checkpoint.CONFIG).is_file() else None
        if recorded and (changes := changed_splits(recorded, self.data_meta["records"])):
            log.warning(
                "%s: the data have changed since its last checkpoint (%s), and the run goes on with the present data: "
                "restore them if that was not intended, or start a new run with run=<name>",
                folder,
                "; ".join(changes),
            )

    def pixels(self, batch: ImageBatch) -> Tensor:
        """Return the batch's images on the device: (b, 3, s, s) floats in [0, 1], channels last."""
        return pixels_of(batch.images, self.device)

    def generators(self, number: int) -> list[np.random.Generator]:
        """Return a random generator for each image of this rank's micro-batch `number`.

        An image has the same generator for any number of ranks and micro-batches.
        """
        first = (number * distributed.get_world_size() + distributed.get_rank()) * self.batch_size
        return [numpy_generator("stage", self.seed, first + index) for index in range(self.batch_size)]

    def tokenizer(self, config: CaptionedDataConfig, vocabulary: int) -> CaptionTokenizer:
        """Load the tokenizer of `config`, or train a BPE of at most `vocabulary` entries on the training captions.

        A run that resumes keeps its own tokenizer, even if the file of `config` has changed, and one that starts from
        another checkpoint keeps that one's, instead of training one: the weights know its ids, and captions may have
        been added since. Raises `ValueError` if the file cannot be read or has more entries.
        """
        if config.tokenizer is None and self.init is None and self.resumed is None:
            return CaptionTokenizer.train(self._captions(config.tokenizer_records), vocabulary)
        self.collect_words(config)
        if self.resumed is not None:
            own = self.resumed / checkpoint.TOKENIZER
            if config.tokenizer is not None:
                warn_if_other_tokenizer(Path(config.tokenizer).expanduser(), own)
            return CaptionTokenizer.load(own)
        if config.tokenizer is None:
            assert self.init is not None
            return CaptionTokenizer.load(self.init.tokenizer)
        tokenizer = CaptionTokenizer.load(Path(config.tokenizer).expanduser())
        if tokenizer.vocabulary > vocabulary:
            raise ValueError(
                f"{config.tokenizer} has {tokenizer.vocabulary} entries, more than stage.model.text_vocabulary allows "
                f"({vocabulary}): raise it, or set stage.tokenizer=null to train a smaller tokenizer"
            )
        return tokenizer

    def collect_words(self, config: CaptionedDataConfig) -> None:
        """Collect the words of the training captions, and of those of the checkpoint that the run starts from."""
        for _ in self._captions(config.tokenizer_records):
            pass
        if self.init is not None:
            known = self.init.read_config()[1].get("caption_words")
            self.words = set() if known is None else self.words | set(known)

    def _captions(self, records: int) -> Iterator[str]:
        """Iterate over the captions of about `records` training records, and collect their words in `self.words`."""
        for index in range(0, len(self.train), max(1, len(self.train) // records)):
            for caption in self.train.captions(index):
                if len(self.words) <= MAX_CAPTION_WORDS:
                    self.words |= words_of(caption)
                yield caption


def warn_if_other_tokenizer(named: Path, own: Path) -> None:
    """Log a warning on the first rank if the tokenizer file `named` is not that of the run, `own`."""
    try:
        same = checkpoint.read_json(named) == checkpoint.read_json(own)
    except (OSError, ValueError):
        same = False
    if not same and distributed.is_main_process():
        log.warning("stage.tokenizer=%s has changed since the run began, or is gone: the run keeps %s", named, own)


def pixels_of(images: Tensor, device: torch.device) -> Tensor:
    """Move images to `device` and scale them: (b, 3, s, s) uint8 -> floats in [0, 1], channels last."""
    return to_unit_range(to_device(images, device, memory_format=torch.channels_last))
