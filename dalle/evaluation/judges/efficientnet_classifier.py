"""Classifier of drawings on features of efficientnet-lite0, for comparison with `drawings_classifier`.

Only linear heads are trained, on pictures of the training split; the features were learned on photographs.
"""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle import checkpoint
from dalle.data.drawings.config import DrawingsConfig
from dalle.evaluation.features import EfficientNetLite, load_feature_network
from dalle.evaluation.judges.drawings_classifier import UNLABELLED, ClassifierConfig, Labels
from dalle.evaluation.judges.fit import fit
from dalle.evaluation.judges.training_pictures import (
    LabelledPictures,
    judge_data_config,
    judge_folder,
    training_pictures,
)
from dalle.progress import with_progress
from dalle.seeds import torch_generator

log = logging.getLogger(__name__)

KIND = "drawings_efficientnet_heads"
FEATURE_BATCH = 64  # pictures whose features are computed at a time


class FeatureHeads(nn.Module):
    """Linear classifiers of concept, style and colour on standardised features, (b, 1280)."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(EfficientNetLite.WIDTH))
        self.register_buffer("std", torch.ones(EfficientNetLite.WIDTH))
        self.concept = nn.Linear(EfficientNetLite.WIDTH, len(config.concepts))
        self.style = nn.Linear(EfficientNetLite.WIDTH, len(config.styles))
        self.colour = nn.Linear(EfficientNetLite.WIDTH, len(config.colours))

    def forward(self, features: Tensor) -> Labels:
        """Compute the logits of concept, style and colour: (b, 1280) -> (b, classes) each."""
        x = (features - self.mean) / self.std
        return Labels(self.concept(x), self.style(x), self.colour(x))


class EfficientNetClassifier:
    """Classifier of drawings: efficientnet-lite0 and linear heads on its features."""

    def __init__(self, heads: FeatureHeads):
        self.network = load_feature_network("efficientnet-lite0")
        self.heads = heads.eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Labels:
        """Compute the logits of concept, style and colour: (b, 3, s, s) in [0, 1], any s -> (b, classes) each."""
        return self.heads(self.network((images * 255).round().to(torch.uint8)).features)


def load_efficientnet_classifier(data: DrawingsConfig) -> EfficientNetClassifier:
    """Load the heads from the folder of the drawings, and train them if they are not there yet."""
    folder = judge_folder(data, "efficientnet")
    if not (folder / checkpoint.CONFIG).is_file():
        log.warning("training the second judge of drawings once, about 10 minutes on two cores: %s", folder)
        train_heads(judge_data_config(data), folder)
    heads = checkpoint.load_model(folder, KIND, ClassifierConfig, FeatureHeads)
    return EfficientNetClassifier(heads)


def train_heads(
    data: DrawingsConfig, folder: Path, epochs: int = 18, batch_size: int = 256, learning_rate: float = 1e-3
) -> FeatureHeads:
    """Train the heads on features of the training split, and save them in `folder`."""
    pictures, concepts = training_pictures(data)
    features = extract_features(pictures)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = FeatureHeads(ClassifierConfig(concepts, features=EfficientNetLite.WIDTH))
    heads.mean.copy_(features.mean(dim=0))
    heads.std.copy_(features.std(dim=0) + 1e-3)

    def loss_of(indices: Tensor) -> Tensor:
        loss = torch.zeros(())
        for logits, labels in zip(heads(features[indices]), pictures.labels, strict=True):
            if (labels[indices] != UNLABELLED).any():  # a batch may have no labelled colour
                loss = loss + F.cross_entropy(logits, labels[indices], ignore_index=UNLABELLED, label_smoothing=0.1)
        return loss

    generator = torch_generator("efficientnet heads", data.seed)
    parameters = list(heads.parameters())
    fit("features", parameters, loss_of, len(features), epochs, batch_size, learning_rate, generator, weight_decay=0.1)
    checkpoint.save_model(folder, KIND, heads, heads.config)
    return heads


def extract_features(pictures: LabelledPictures) -> Tensor:
    """Compute efficientnet-lite0 features of all pictures: (n, 1280)."""
    network = load_feature_network("efficientnet-lite0")
    batches = pictures.images.split(FEATURE_BATCH)
    return torch.cat([network(batch).features for batch in with_progress(batches, len(batches), "features", "batches")])
