"""Classifier of drawings: concept, style and colour of a picture.

It judges pictures of a model trained on `drawings`. It shares nothing with that model but the training pictures: no
weights, no features, no tokens. Its own accuracy on real pictures that it never saw limits what a model can reach.
`drawings_classifier_training` trains it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dalle import checkpoint
from dalle.data.drawings.render import COLOURS
from dalle.data.drawings.sets import STYLES
from dalle.evaluation.judges.small_resnet import ResNet, resized
from dalle.image_conversion import to_tensor

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


class DrawingClassifier(nn.Module):
    """Two ResNets: one maps small pictures to logits of concept and colour, the other large ones to logits of style.

    They are separate since concepts need augmentation that would hide styles: other sizes, angles and grays.
    """

    SIDE, STYLE_SIDE = 64, 128  # pixels of the pictures for concept and colour, and for style

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
        return F.relu(self.embed(self.content(resized(images, self.SIDE))))

    def style_logits(self, images: Tensor) -> Tensor:
        """Compute the logits of the style: (b, 3, s, s) in [0, 1], any s -> (b, styles)."""
        return self.style(self.texture(resized(images, self.STYLE_SIDE)))

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


Judge = Callable[[Tensor], Labels]
"""Logits of b pictures, (b, 3, s, s) in [0, 1], such as a `DrawingClassifier` or an `EfficientNetClassifier`."""


@torch.inference_mode()
def classify(judge: Judge, images: list[Image.Image]) -> Labels:
    """Return the judge's logits for n images of any one size: concept, style and colour, each (n, classes)."""
    batches = [judge(to_tensor(images[start : start + 64])) for start in range(0, len(images), 64)]
    return Labels(*(torch.cat(logits) for logits in zip(*batches, strict=True)))


def accuracy(logits: Labels, labels: Labels) -> dict[str, float]:
    """Return, by "concept", "style" and "colour", the share of pictures whose most probable class is that in `labels`.

    A picture that has no label counts as wrong.
    """
    hits = {name: getattr(logits, name).argmax(dim=1) == classes for name, classes in labels._asdict().items()}
    return {name: correct.float().mean().item() for name, correct in hits.items()}


@torch.inference_mode()
def style_agreement(judge: Judge, images: list[Image.Image], styles: Tensor) -> float:
    """Return the share of images of one size whose most probable style is that in `styles`, (n,) class numbers."""
    return (judge(to_tensor(images)).style.argmax(dim=1) == styles).float().mean().item()
