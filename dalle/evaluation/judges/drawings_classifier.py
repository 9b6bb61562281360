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
from dalle.data.drawings.config import DrawingsConfig, MixConfig
from dalle.data.drawings.render import COLOURS, read_sources
from dalle.data.drawings.sets import STYLES
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.splits import ALWAYS_TRAINED
from dalle.data.index import digest_of
from dalle.precision import autocast
from dalle.progress import progress_bar, with_progress
from dalle.seeds import torch_generator

log = logging.getLogger(__name__)

SIDE, STYLE_SIDE = 64, 128  # pixels of the pictures for concept and colour, and for style
UNLABELLED = -100  # class that cross_entropy ignores


@dataclass(frozen=True)
class ClassifierConfig:
    """Classes of a `DrawingClassifier` and sizes of its layers."""

    concepts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=lambda: list(STYLES))
    colours: list[str] = field(default_factory=lambda: list(COLOURS))
    widths: list[int] = field(default_factory=lambda: [32, 64, 128, 256])
    style_widths: list[int] = field(default_factory=lambda: [24, 48, 96, 128])
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


class ResNet(nn.Module):
    """ResNet with half the resolution at its input and at every block but the first (He et al. 2016)."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.input = nn.Conv2d(3, widths[0], 3, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        pairs = zip([widths[0], *widths[:-1]], widths, strict=True)
        self.blocks = nn.Sequential(
            *(BasicBlock(a, b, 1 if number == 0 else 2) for number, (a, b) in enumerate(pairs)),
            BasicBlock(widths[-1], widths[-1], 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute mean and maximum of the last feature maps: (b, 3, s, s) in [0, 1] -> (b, 2 * widths[-1])."""
        x = self.blocks(F.relu(self.norm(self.input(2 * images - 1))))
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)


class DrawingClassifier(nn.Module):
    """Two ResNets: one maps small pictures to logits of concept and colour, the other large ones to logits of style.

    They are separate since concepts need augmentation that would hide styles: other sizes, angles and grays.
    """

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.content, self.texture = ResNet(config.widths), ResNet(config.style_widths)
        self.embed = nn.Linear(2 * config.widths[-1], config.features)
        self.concept = nn.Linear(config.features, len(config.concepts))
        self.colour = nn.Linear(config.features, len(config.colours))
        self.style = nn.Linear(2 * config.style_widths[-1], len(config.styles))

    def features(self, images: Tensor) -> Tensor:
        """Compute features of what is shown: (b, 3, s, s) in [0, 1], any s -> (b, config.features)."""
        return F.relu(self.embed(self.content(resized(images, SIDE))))

    def style_logits(self, images: Tensor) -> Tensor:
        """Compute the logits of the style: (b, 3, s, s) in [0, 1], any s -> (b, styles)."""
        return self.style(self.texture(resized(images, STYLE_SIDE)))

    def forward(self, images: Tensor) -> Labels:
        """Compute the logits of concept, style and colour: (b, 3, s, s) in [0, 1], any s -> (b, classes) each."""
        features = self.features(images)
        return Labels(self.concept(features), self.style_logits(images), self.colour(features))

    def save(self, folder: Path, meta: dict) -> None:
        checkpoint.save_model(folder, "drawings_classifier", self, self.config, meta)

    @classmethod
    def load(cls, folder: Path) -> "DrawingClassifier":
        """Load the classifier in `folder` in eval mode. Raises CheckpointError if it is missing or damaged."""
        return checkpoint.load_model(folder, "drawings_classifier", ClassifierConfig, cls)


def resized(images: Tensor, side: int) -> Tensor:
    """Scale square images to `side` pixels: (b, 3, s, s) -> (b, 3, side, side)."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


class LabelledPictures(NamedTuple):
    """n pictures in memory, with their classes."""

    images: Tensor  # (n, 3, STYLE_SIDE, STYLE_SIDE) uint8
    labels: Labels

    @classmethod
    def of(cls, source: DrawingsSource, concepts: list[str]) -> "LabelledPictures":
        """Load all drawings and recoloured drawings of a source."""
        numbers = {name: number for number, name in enumerate(concepts)}
        images, labels = [], []
        for index, record in enumerate(with_progress(source.records, len(source.records), "loading drawings")):
            if record.kind not in ("drawing", "colour"):
                continue
            images.append(np.asarray(source.image(index).resize((STYLE_SIDE, STYLE_SIDE), Image.Resampling.BOX)))
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
    data: DrawingsConfig, epochs: int = 16, batch_size: int = 128, learning_rate: float = 2e-3, seed: int = 0
) -> DrawingClassifier:
    """Train a classifier on the training split of the drawings. Deterministic on a CPU with a fixed thread count."""
    pictures, concepts = training_pictures(data)
    torch.manual_seed(seed)
    model = DrawingClassifier(ClassifierConfig(concepts)).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    generator = torch_generator("drawings classifier", seed)

    def content_loss(images: Tensor, labels: Labels) -> Tensor:
        moved, gray = augment_content(resized(images, SIDE), generator)
        with autocast("bfloat16", torch.device("cpu")):
            features = model.features(moved)
            concept, colour = model.concept(features), model.colour(features)
        return F.cross_entropy(concept.float(), labels.concept, label_smoothing=0.1) + 0.5 * F.cross_entropy(
            colour.float(), labels.colour.masked_fill(gray, UNLABELLED)
        )

    def style_loss(images: Tensor, labels: Labels) -> Tensor:
        with autocast("bfloat16", torch.device("cpu")):
            logits = model.style_logits(augment_style(images, generator))
        return F.cross_entropy(logits.float(), labels.style, label_smoothing=0.05)

    content = [*model.content.parameters(), *model.embed.parameters()]
    content += [*model.concept.parameters(), *model.colour.parameters()]
    style = [*model.texture.parameters(), *model.style.parameters()]
    for name, parameters, loss_of, passes in (
        ("concept", content, content_loss, epochs),
        ("style", style, style_loss, -(-epochs // 2)),
    ):
        optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.05)
        per_epoch = len(pictures) // batch_size
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, passes * per_epoch, pct_start=0.2)
        bar = progress_bar(passes * per_epoch, f"judge of {name}", "updates")
        for epoch in range(passes):
            order = torch.randperm(len(pictures), generator=generator)
            total = 0.0
            for chosen in order[: per_epoch * batch_size].split(batch_size):
                loss = loss_of(
                    pictures.images[chosen].float() / 255, Labels(*(each[chosen] for each in pictures.labels))
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item()
                bar.update()
            log.info("%s: epoch %d of %d, loss %.3f", name, epoch + 1, passes, total / per_epoch)
        bar.close()
    return model.eval()


def augment_style(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of a batch of images, crop all of it a little, and blur it half of the time.

    (b, 3, s, s) in [0, 1] -> the same shape. Samples of a model are less sharp than real drawings.
    """
    side = images.shape[-1]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    crop = int(torch.randint(side * 3 // 4, side + 1, (), generator=generator))
    top, left = torch.randint(0, side - crop + 1, (2,), generator=generator).tolist()
    images = images[:, :, top : top + crop, left : left + crop]
    if torch.rand((), generator=generator) < 0.5:
        images = resized(images, int(torch.randint(side * 3 // 8, side, (), generator=generator)))
    return resized(images, side)


def training_pictures(data: DrawingsConfig) -> tuple[LabelledPictures, list[str]]:
    """Load the drawings of the training split, and the names of their concepts in the order of class numbers."""
    source = DrawingsSource(data, "train")
    concepts = sorted({source.drawings.pictures[record.first].subject.concept for record in source.records})
    return LabelledPictures.of(source, concepts), concepts


def augment_content(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
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
        train_classifier(judge_data_config(data)).save(place, {"data": asdict(data)})
    return DrawingClassifier.load(place)


def judge_data_config(data: DrawingsConfig) -> DrawingsConfig:
    """Return the settings of the judges' training pictures.

    They do not depend on mix, groups and captions, nor on the size of the model's images: one judge is kept for all.
    """
    return replace(data, image_size=STYLE_SIDE, mix=MixConfig(), languages=["en"], people="stated", groups=[])


def judge_folder(data: DrawingsConfig, prefix: str) -> Path:
    """Return the folder of a classifier, named after a digest of what its training pictures depend on."""
    folder = Path(data.path).expanduser()
    kept = {name: getattr(data, name) for name in ("validation_share", "skin_tones", "seed")}
    described = [read_sources(folder)["sets"], kept, sorted(ALWAYS_TRAINED)]
    if data.opt_out:
        described.append(digest_of(Path(data.opt_out).expanduser().read_bytes()))
    digest = digest_of(json.dumps(described, sort_keys=True).encode())[:12]
    return folder / f"{prefix}-{digest}"
