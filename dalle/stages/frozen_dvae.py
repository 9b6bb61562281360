"""The frozen dVAE whose tokens a stage trains on: loaded, checked against the data, and recorded in checkpoints."""

import logging
import os
from pathlib import Path

import torch

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.models.dvae.model import DiscreteVAE

log = logging.getLogger(__name__)


def require_dvae(folder: Path | None, model: str) -> Path:
    """Return `folder`, the dVAE's checkpoint. Raises `CheckpointError` if it is None; `model` is named in it."""
    if folder is None:
        raise CheckpointError(
            f"the {model} is trained on the tokens of a dVAE: set dvae=<checkpoint folder>, such as "
            "dvae=outputs/dvae/my-dvae, and train one first with stage=dvae"
        )
    return folder


def load_frozen_dvae(folder: Path, image_size: int, device: torch.device) -> DiscreteVAE:
    """Load a dVAE without gradients. Warns if it was trained on images of another size, which is seldom intended."""
    _, meta = checkpoint.read_config(folder, "dvae")
    trained = meta.get("data", {}).get("image_size", image_size)
    if trained != image_size:
        log.warning(
            "the dVAE %s was trained on images of %d pixels, but data.image_size is %d", folder, trained, image_size
        )
    return DiscreteVAE.load(folder).requires_grad_(False).to(device)


def dvae_record(dvae: Path, folder: Path) -> dict[str, str]:
    """Return the entry `dvae` of the meta of a checkpoint in `folder`: the path relative to it, and the digest."""
    return {"path": os.path.relpath(dvae.resolve(), folder.resolve()), "digest": checkpoint.digest(dvae)}
