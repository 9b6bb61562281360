"""Training of the classifier of drawings, once for each data set of drawings."""

import logging
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle import checkpoint
from dalle.data.drawings.config import DrawingsConfig
from dalle.evaluation.judges.augmentation import augment_content, augment_style
from dalle.evaluation.judges.drawings_classifier import UNLABELLED, ClassifierConfig, DrawingClassifier, Labels
from dalle.evaluation.judges.fit import fit
from dalle.evaluation.judges.small_resnet import resized
from dalle.evaluation.judges.training_pictures import judge_data_config, judge_folder, training_pictures
from dalle.precision import autocast
from dalle.seeds import torch_generator

log = logging.getLogger(__name__)


def load_classifier(data: DrawingsConfig) -> DrawingClassifier:
    """Load the classifier of a data set of drawings from its folder, and train it if it is not there yet."""
    folder = judge_folder(data, "judge")
    if not (folder / checkpoint.CONFIG).is_file():
        log.warning("training the judge of drawings once, about 20 minutes on two cores: %s", folder)
        train_classifier(judge_data_config(data)).save(folder, {"data": asdict(data)})
    return DrawingClassifier.load(folder)


def train_classifier(
    data: DrawingsConfig, epochs: int = 16, batch_size: int = 128, learning_rate: float = 2e-3, seed: int = 0
) -> DrawingClassifier:
    """Train a classifier on the training split of the drawings. Deterministic on a CPU with a fixed thread count."""
    pictures, concepts = training_pictures(data)
    torch.manual_seed(seed)
    model = DrawingClassifier(ClassifierConfig(concepts)).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    generator = torch_generator("drawings classifier", seed)
    content = [*model.content.parameters(), *model.embed.parameters()]
    content += [*model.concept.parameters(), *model.colour.parameters()]
    style = [*model.texture.parameters(), *model.style.parameters()]

    def loss_of_content(indices: Tensor) -> Tensor:
        return content_loss(model, *pictures.batch(indices), generator)

    def loss_of_style(indices: Tensor) -> Tensor:
        return style_loss(model, *pictures.batch(indices), generator)

    options: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate, "generator": generator}
    fit("concept", content, loss_of_content, len(pictures), epochs, **options)
    fit("style", style, loss_of_style, len(pictures), -(-epochs // 2), **options)
    return model.eval()


def content_loss(model: DrawingClassifier, images: Tensor, labels: Labels, generator: torch.Generator) -> Tensor:
    """Compute the cross-entropy of concepts, and half that of colours; gray pictures have no colour.

    images: (b, 3, s, s) in [0, 1], augmented here.
    """
    moved, gray = augment_content(resized(images, model.SIDE), generator)
    with autocast("bfloat16", torch.device("cpu")):
        features = model.features(moved)
        concept, colour = model.concept(features), model.colour(features)
    return F.cross_entropy(concept.float(), labels.concept, label_smoothing=0.1) + 0.5 * F.cross_entropy(
        colour.float(), labels.colour.masked_fill(gray, UNLABELLED)
    )


def style_loss(model: DrawingClassifier, images: Tensor, labels: Labels, generator: torch.Generator) -> Tensor:
    """Compute the cross-entropy of styles."""
    with autocast("bfloat16", torch.device("cpu")):
        logits = model.style_logits(augment_style(images, generator))
    return F.cross_entropy(logits.float(), labels.style, label_smoothing=0.05)
