"""Training of the classifier of drawings, once for each data set of drawings."""

import logging
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle import checkpoint
from dalle.data.drawings.config import DrawingsConfig
from dalle.evaluation.judges.augmentation import augment_content, augment_style
from dalle.evaluation.judges.drawings_classifier import UNLABELLED, ClassifierConfig, DrawingClassifier, Labels
from dalle.evaluation.judges.small_resnet import resized
from dalle.evaluation.judges.training_pictures import (
    LabelledPictures,
    judge_data_config,
    judge_folder,
    training_pictures,
)
from dalle.precision import autocast
from dalle.progress import progress_bar
from dalle.seeds import torch_generator

log = logging.getLogger(__name__)

Loss = Callable[[DrawingClassifier, Tensor, Labels, torch.Generator], Tensor]
"""Loss of b pictures, (b, 3, s, s) in [0, 1], after a random augmentation."""


def load_classifier(data: DrawingsConfig) -> DrawingClassifier:
    """Load the classifier of a data set of drawings from its folder, and train it if it is not there yet."""
    place = judge_folder(data, "judge")
    if not (place / checkpoint.CONFIG).is_file():
        log.warning("training the judge of drawings once, about 20 minutes on two cores: %s", place)
        train_classifier(judge_data_config(data)).save(place, {"data": asdict(data)})
    return DrawingClassifier.load(place)


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
    for name, parameters, loss, passes in (
        ("concept", content, content_loss, epochs),
        ("style", style, style_loss, -(-epochs // 2)),
    ):
        train_parameters(name, model, parameters, loss, pictures, passes, batch_size, learning_rate, generator)
    return model.eval()


def content_loss(model: DrawingClassifier, images: Tensor, labels: Labels, generator: torch.Generator) -> Tensor:
    """Compute the cross-entropy of concepts, and half that of colours; gray pictures have no colour."""
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


def train_parameters(
    name: str,
    model: DrawingClassifier,
    parameters: list[nn.Parameter],
    loss_of: Loss,
    pictures: LabelledPictures,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> None:
    """Minimise a loss over some parameters of `model` by AdamW. Each epoch leaves the last incomplete batch out."""
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.05)
    per_epoch = len(pictures) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * per_epoch, pct_start=0.2)
    bar = progress_bar(epochs * per_epoch, f"judge of {name}", "updates")
    for epoch in range(epochs):
        order = torch.randperm(len(pictures), generator=generator)
        total = 0.0
        for chosen in order[: per_epoch * batch_size].split(batch_size):
            images, labels = pictures.images[chosen].float() / 255, Labels(*(each[chosen] for each in pictures.labels))
            loss = loss_of(model, images, labels, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            bar.update()
        log.info("%s: epoch %d of %d, loss %.3f", name, epoch + 1, epochs, total / per_epoch)
    bar.close()
