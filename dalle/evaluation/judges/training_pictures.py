"""Training pictures of the judges of drawings, with their classes, and the settings that they depend on."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dalle.data.drawings import splits
from dalle.data.drawings.config import DrawingsConfig, MixConfig
from dalle.data.drawings.render import COLOURS, read_sources
from dalle.data.drawings.sets import STYLES
from dalle.data.drawings.source import DrawingsSource
from dalle.data.index import digest_of
from dalle.evaluation.judges.drawings_classifier import UNLABELLED, DrawingClassifier, Labels
from dalle.progress import with_progress


class LabelledPictures(NamedTuple):
    """n pictures in memory, with their classes."""

    images: Tensor  # (n, 3, s, s) uint8, s the classifier's STYLE_SIDE
    labels: Labels

    @classmethod
    def load(cls, source: DrawingsSource, concepts: list[str]) -> "LabelledPictures":
        """Load all drawings and recoloured drawings of a source."""
        numbers = {name: number for number, name in enumerate(concepts)}
        side = DrawingClassifier.STYLE_SIDE
        images, labels = [], []
        for index, record in enumerate(with_progress(source.records, len(source.records), "loading drawings")):
            if record.kind not in ("drawing", "colour"):
                continue
            images.append(np.asarray(source.image(index).resize((side, side), Image.Resampling.BOX)))
            labels.append(class_numbers(source, index, numbers))
        stacked = torch.from_numpy(np.stack(images))
        return cls(rearrange(stacked, "n h w c -> n c h w").contiguous(), Labels(*torch.tensor(labels).unbind(dim=1)))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Labels]:
        """Return the pictures with these numbers, (b, 3, s, s) floats in [0, 1], and their classes."""
        return self.images[indices].float() / 255, Labels(*(classes[indices] for classes in self.labels))


def training_pictures(data: DrawingsConfig) -> tuple[LabelledPictures, list[str]]:
    """Load the drawings of the training split, and the names of their concepts in the order of class numbers."""
    source = DrawingsSource(data, "train")
    concepts = sorted({source.drawings.pictures[record.first].subject.concept for record in source.records})
    return LabelledPictures.load(source, concepts), concepts


def class_numbers(source: DrawingsSource, index: int, concepts: Mapping[str, int]) -> tuple[int, int, int]:
    """Return the class numbers of a record's concept, style and colour; UNLABELLED for those that it has not.

    concepts: number of each concept that the classifier knows.
    """
    record = source.records[index]
    picture = source.drawings.pictures[record.first]
    colour = record.colour or ("black" if picture.drawing_set.recolour else "")
    return (
        concepts.get(picture.subject.concept, UNLABELLED),
        list(STYLES).index(picture.drawing_set.style),
        list(COLOURS).index(colour) if colour else UNLABELLED,
    )


def judge_data_config(data: DrawingsConfig) -> DrawingsConfig:
    """Return the settings of the judges' training pictures.

    They do not depend on mix, groups and captions, nor on the size of the model's images: one judge is kept for all.
    """
    side = DrawingClassifier.STYLE_SIDE
    return replace(data, image_size=side, mix=MixConfig(), languages=["en"], people="stated", groups=[])


def judge_folder(data: DrawingsConfig, prefix: str) -> Path:
    """Return the folder of a classifier, named after a digest of what its training pictures depend on."""
    folder = Path(data.path).expanduser()
    split_settings = {name: getattr(data, name) for name in ("validation_share", "skin_tones", "seed")}
    held_out = [sorted(splits.ALWAYS_TRAINED), splits.NOVEL_STYLES, splits.NOVEL_COLOURS, splits.MIN_STYLES]
    dependencies = [read_sources(folder)["sets"], split_settings, held_out]
    if data.opt_out:
        dependencies.append(digest_of(Path(data.opt_out).expanduser().read_bytes()))
    digest = digest_of(json.dumps(dependencies, sort_keys=True).encode())[:12]
    return folder / f"{prefix}-{digest}"
