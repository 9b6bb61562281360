"""Data module of the stages: captioned images of a data set, as batches on the device."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle import checkpoint, distributed
from dalle.data import open_splits
from dalle.data.audit.provenance import Provenance, changed_splits, data_meta
from dalle.data.collate import ImageBatch, TokenBatch, to_tensor
from dalle.data.held_out_batches import HeldOutBatch, held_out_batches
from dalle.data.loader import first_batches, image_batches, none_readable, token_batches
from dalle.data.source import Source, UnreadableRecord
from dalle.data.token_cache import TokenCache
from dalle.data.transforms import get_transform, inference_crop
from dalle.device_transfer import to_device
from dalle.image_conversion import to_unit_range
from dalle.seeds import numpy_generator
from dalle.stages.data_checks import check_enough_records, check_held_out, check_same_records, open_held_out
from dalle.stages.data_config import CaptionedDataConfig, StageDataConfig
from dalle.stages.initial_weights import Init
from dalle.tokenizer import CaptionTokenizer, words_of

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
    resume_folder: Path | None = None  # folder of the run if it resumes: its tokenizer is kept too; None: a new run


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
        self.transform = get_transform(config.transform)
        self.batch_size = config.micro_batch_size(distributed.get_world_size())
        self.workers = config.workers
        self.seed = context.seed
        self.device = context.device
        self.init, self.resume_folder = context.init, context.resume_folder
        # words that a checkpoint lists as those of its training captions, set by `load_or_train_tokenizer`; empty: none
        self.words: set[str] = set()

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

    def load_or_train_tokenizer(self, config: CaptionedDataConfig, vocabulary: int) -> CaptionTokenizer:
        """Load the tokenizer of `config`, or train a BPE of at most `vocabulary` entries on the training captions.

        A run that resumes keeps its own tokenizer, even if the file of `config` has changed, and one that starts from
        another checkpoint keeps that one's, instead of training one: the weights know its ids, and captions may have
        been added since. Sets `words` to the `caption_words`. Raises `ValueError` if the file cannot be read or has
        more entries.
        """
        captions = captions_of(self.train, config.tokenizer_records)
        if config.tokenizer is None and self.init is None and self.resume_folder is None:
            captions = list(captions)  # read once: generated captions take long
            self.words = self.caption_words(captions)
            return CaptionTokenizer.train(captions, vocabulary)
        self.words = self.caption_words(captions)
        if self.resume_folder is not None:
            run_tokenizer = self.resume_folder / checkpoint.TOKENIZER
            if config.tokenizer is not None:
                warn_if_other_tokenizer(Path(config.tokenizer).expanduser(), run_tokenizer)
            return CaptionTokenizer.load(run_tokenizer)
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

    def caption_words(self, captions: Iterable[str]) -> set[str]:
        """Return the words of `captions`, and of those that the checkpoint the run starts from was trained on.

        Returns no words if that checkpoint lists none: the words that it was trained on are not known, and a list of
        those of `captions` alone would have them reported as unknown to the model.
        """
        words = words_in(captions)
        if self.init is None:
            return words
        checkpoint_words = self.init.read_config()[1].get("caption_words")
        return set() if checkpoint_words is None else words | set(checkpoint_words)


def captions_of(source: Source, records: int) -> Iterator[str]:
    """Iterate over all captions of about `records` records, evenly spaced in `source`."""
    for index in range(0, len(source), max(1, len(source) // records)):
        yield from source.captions(index)


def words_in(captions: Iterable[str]) -> set[str]:
    """Return the words of captions. Stops as soon as there are more than `MAX_CAPTION_WORDS`."""
    words: set[str] = set()
    for caption in captions:
        words |= words_of(caption)
        if len(words) > MAX_CAPTION_WORDS:
            break
    return words


def warn_if_other_tokenizer(path: Path, run_tokenizer: Path) -> None:
    """Log a warning on the first rank if the tokenizer file `path` is not that of the run, `run_tokenizer`."""
    try:
        unchanged = checkpoint.read_json(path) == checkpoint.read_json(run_tokenizer)
    except (OSError, ValueError):
        unchanged = False
    if not unchanged and distributed.is_main_process():
        log.warning(
            "stage.tokenizer=%s has changed since the run began, or is gone: the run keeps %s", path, run_tokenizer
        )


def pixels_of(images: Tensor, device: torch.device) -> Tensor:
    """Move images to `device` and scale them: (b, 3, s, s) uint8 -> floats in [0, 1], channels last."""
    return to_unit_range(to_device(images, device, memory_format=torch.channels_last))
