"""Classifier of drawings: concept, style and colour of a picture, learned from pixels of the training split.

It judges pictures of a model trained on `drawings`. It shares nothing with that model but the training pictures: no
weights, no features, no tokens. Its own accuracy on real pictures that it never saw limits what a model can reach.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from dalle import checkpoint
from dalle.data.drawings.render import COLOURS, read_sources
from dalle.data.drawings.sets import STYLES
from dalle.data.drawings.source import DrawingsConfig, DrawingsSource, MixConfig
from dalle.data.drawings.splits import ALWAYS_TRAINED
from dalle.data.index import digest_of
from dalle.precision import autocast
from dalle.seeds import torch_generator

log = logging.getLogger(__name__)

SIDE = 64  # pixels of the pictures that it looks at
UNLABELLED = -100  # class that cross_entropy ignores


@dataclass(frozen=True)
class ClassifierConfig:
    """Classes of a `DrawingClassifier` and sizes of its layers."""

    concepts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=lambda: list(STYLES))
    colours: list[str] = field(default_factory=lambda: list(COLOURS))
    widths: list[int] = field(default_factory=lambda: [32, 64, 128, 256])
    features: int = 256

    @staticmethod
    def infer_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Infer the config's sizes from tensor shapes. Raises KeyError if they are not those of a classifier."""
        return {"features": shapes["concept.weight"][1]}


class Labels(NamedTuple):
    """Concept, style and colour of b pictures: class numbers, each (b,) int64, or logits, each (b, classes)."""

    concept: Tensor
    style: Tensor
    colour: Tensor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.first(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.second(h)))


class DrawingClassifier(nn.Module):
    """ResNet that maps pictures to logits of their concept, style and colour."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.input = nn.Conv2d(3, widths[0], 3, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        pairs = zip([widths[0], *widths[:-1]], widths, strict=True)
        self.blocks = nn.Sequential(
            *(BasicBlock(a, b, 1 if number == 0 else 2) for number, (a, b) in enumerate(pairs)),
            BasicBlock(widths[-1], widths[-1], 1),
        )
        self.embed = nn.Linear(2 * widths[-1], config.features)
        self.concept = nn.Linear(config.features, len(config.concepts))
        self.style = nn.Linear(config.features, len(config.styles))
        self.colour = nn.Linear(config.features, len(config.colours))

    def features(self, images: Tensor) -> Tensor:
        """Compute features: (b, 3, s, s) in [0, 1], any s -> (b, config.features)."""
        if images.shape[-1] != SIDE:
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        x = self.blocks(F.relu(self.norm(self.input(2 * images - 1))))
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return F.relu(self.embed(pooled))

    def forward(self, images: Tensor) -> Labels:
        """Compute the logits of concept, style and colour: (b, 3, s, s) in [0, 1], any s -> (b, classes) each."""
        features = self.features(images)
        return Labels(self.concept(features), self.style(features), self.colour(features))

    def save(self, folder: Path, meta: dict) -> None:
        checkpoint.save_model(folder, "drawings_classifier", self, self.config, meta)

    @classmethod
    def load(cls, folder: Path) -> "DrawingClassifier":
        """Load the classifier in `folder` in eval mode. Raises CheckpointError if it is missing or damaged."""
        return checkpoint.load_model(folder, "drawings_classifier", ClassifierConfig, cls)


class LabelledPictures(NamedTuple):
    """n pictures in memory, with their classes."""

    images: Tensor  # (n, 3, SIDE, SIDE) uint8
    labels: Labels

    @classmethod
    def of(cls, source: DrawingsSource, concepts: list[str], records: list[int] | None = None) -> "LabelledPictures":
        """Load all drawings and recoloured drawings of a source, or those with indices in `records`."""
        numbers = {name: number for number, name in enumerate(concepts)}
        images, labels = [], []
        for index in range(len(source)) if records is None else records:
            record = source.records[index]
            if record.kind not in ("drawing", "colour"):
                continue
            images.append(np.asarray(source.image(index).resize((SIDE, SIDE), Image.Resampling.BOX)))
            labels.append(class_numbers(source, index, numbers))
        stacked = torch.from_numpy(np.stack(images))
        return cls(rearrange(stacked, "n h w c -> n c h w").contiguous(), Labels(*torch.tensor(labels).unbind(dim=1)))

    def __len__(self) -> int:
        return len(self.images)


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


def train_classifier(
    data: DrawingsConfig, epochs: int = 14, batch_size: int = 128, learning_rate: float = 2e-3, seed: int = 0
) -> DrawingClassifier:
    """Train a classifier on the training split of the drawings. Deterministic on a CPU with a fixed thread count."""
    pictures, concepts = training_pictures(data)
    torch.manual_seed(seed)
    model = DrawingClassifier(ClassifierConfig(concepts)).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.05)
    per_epoch = len(pictures) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * per_epoch, pct_start=0.2)
    generator = torch_generator("drawings classifier", seed)
    for epoch in range(epochs):
        order = torch.randperm(len(pictures), generator=generator)
        total = 0.0
        for chosen in order[: per_epoch * batch_size].split(batch_size):
            images, gray = augmented(pictures.images[chosen].float() / 255, generator)
            labels = Labels(*(each[chosen] for each in pictures.labels))
            with autocast("bfloat16", torch.device("cpu")):
                logits = model(images)
            loss = (
                F.cross_entropy(logits.concept.float(), labels.concept, label_smoothing=0.1)
                + 0.5 * F.cross_entropy(logits.style.float(), labels.style, label_smoothing=0.05)
                + 0.5 * F.cross_entropy(logits.colour.float(), labels.colour.masked_fill(gray, UNLABELLED))
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        log.info("epoch %d of %d: loss %.3f", epoch + 1, epochs, total / per_epoch)
    return model.eval()


def training_pictures(data: DrawingsConfig) -> tuple[LabelledPictures, list[str]]:
    """Load the drawings of the training split, and the names of their concepts in the order of class numbers."""
    source = DrawingsSource(data, "train")
    concepts = sorted({source.drawings.pictures[record.first].subject.concept for record in source.records})
    return LabelledPictures.of(source, concepts), concepts


def augmented(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift, scale and turn pictures a little, and make a third of them gray.

    (b, 3, s, s) in [0, 1] -> the same, and a mask (b,) of those that are gray.
    """
    count = len(images)
    draw = torch.rand(5, count, generator=generator)
    scale, angle = 0.85 + 0.5 * draw[0], (draw[1] - 0.5) * math.pi / 9
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    shift = (draw[2:4] - 0.5) * 0.25
    theta = torch.stack([torch.stack([cosine, -sine, shift[0]], -1), torch.stack([sine, cosine, shift[1]], -1)], dim=1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - images, grid, align_corners=False)  # white outside
    gray = draw[4] < 1 / 3
    return torch.where(gray[:, None, None, None], moved.mean(dim=1, keepdim=True), moved), gray


@torch.inference_mode()
def accuracy(model: DrawingClassifier, pictures: LabelledPictures) -> dict[str, float]:
    """Compute, by "concept", "style" and "colour", the share of pictures whose most probable class is right."""
    hits: dict[str, list[Tensor]] = {name: [] for name in Labels._fields}
    for start in range(0, len(pictures), 256):
        logits = model(pictures.images[start : start + 256].float() / 255)
        for name, found, labels in zip(Labels._fields, logits, pictures.labels, strict=True):
            expected = labels[start : start + 256]
            labelled = expected != UNLABELLED
            hits[name].append((found.argmax(dim=1) == expected)[labelled].float())
    return {name: torch.cat(each).mean().item() for name, each in hits.items() if len(torch.cat(each))}


def load_classifier(data: DrawingsConfig) -> DrawingClassifier:
    """Load the classifier of a data set of drawings from its folder, and train it if it is not there yet."""
    place = judge_folder(data, "judge")
    if not (place / checkpoint.CONFIG).is_file():
        log.warning("training the judge of drawings once, about 20 minutes on two cores: %s", place)
        train_classifier(for_judges(data)).save(place, {"data": asdict(data)})
    return DrawingClassifier.load(place)


def for_judges(data: DrawingsConfig) -> DrawingsConfig:
    """Return the settings of the judges' training pictures: they do not depend on the mix and the captions."""
    return replace(data, mix=MixConfig(), languages=["en"], people="stated")


def judge_folder(data: DrawingsConfig, prefix: str) -> Path:
    """Return the folder of a classifier, named after a digest of what its training pictures depend on."""
    folder = Path(data.path).expanduser()
    kept = {name: getattr(data, name) for name in ("validation_share", "skin_tones", "seed")}
    described = [read_sources(folder)["sets"], kept, sorted(ALWAYS_TRAINED)]
    digest = digest_of(json.dumps(described, sort_keys=True).encode())[:12]
    return folder / f"{prefix}-{digest}"
