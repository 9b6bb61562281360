"""The frozen dVAE whose tokens a stage trains on: loaded, checked, recorded in checkpoints, and its cost counted."""

import logging
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.models.decoder.model import condition_on
from dalle.models.dvae.config import DVAEConfig
from dalle.models.dvae.model import DiscreteVAE
from dalle.stages.image_tokens import token_choice_named
from dalle.training.flops import EncodingCost, flop_counter
from dalle.training.peak_memory import PeakMemory

log = logging.getLogger(__name__)


def require_dvae(folder: str | Path | None, model: str) -> Path:
    """Return `folder`, the dVAE's checkpoint. Raises `CheckpointError` if it is None; `model` is named in it."""
    if folder is None:
        raise CheckpointError(
            f"the {model} is trained on the tokens of a dVAE: set dvae=<checkpoint folder>, such as "
            "dvae=outputs/dvae/my-dvae, and train one first with stage=dvae"
        )
    return Path(folder)


def load_frozen_dvae(folder: Path, image_size: int, device: torch.device) -> DiscreteVAE:
    """Load a dVAE without gradients. Warns if it was trained on images of another size, which is seldom intended.

    Raises ValueError if images of `image_size` pixels do not divide into its codes.
    """
    _, meta = checkpoint.read_config(folder, "dvae")
    trained = meta.get("data", {}).get("image_size", image_size)
    if trained != image_size:
        log.warning(
            "the dVAE %s was trained on images of %d pixels, but data.image_size is %d", folder, trained, image_size
        )
    dvae = DiscreteVAE.load(folder).requires_grad_(False)
    token_grid_size(image_size, dvae.config, folder)
    return dvae.to(device)


def token_grid_size(image_size: int, dvae: DVAEConfig, name: str | Path = "the dVAE") -> int:
    """Return the number of tokens along each side of an image.

    Raises ValueError if `image_size` is not a multiple of the dVAE's pixels per code; `name` is that of the dVAE.
    """
    if image_size % dvae.downsample:
        raise ValueError(
            f"images of {image_size} pixels do not divide into the codes of {name}, which cover "
            f"{dvae.downsample} pixels each: set data.image_size to a multiple of {dvae.downsample}"
        )
    return image_size // dvae.downsample


@cache
@torch.no_grad()
def encoding_cost(
    dvae: DVAEConfig, image_size: int, image_targets: str = "argmax", reconstructs: bool = False
) -> EncodingCost:
    """Count the memory and FLOPs of encoding one image to tokens, on the meta device.

    image_targets: how tokens are chosen. reconstructs: they are decoded too, as the condition of the diffusion decoder.
    """
    with torch.device("meta"):
        model, image = DiscreteVAE(dvae).eval(), torch.empty(1, 3, image_size, image_size)
    with flop_counter() as counter, PeakMemory([*model.parameters(), image]) as memory:
        logits = model.logits(image)
        tokens = token_choice_named(image_targets)(logits, [np.random.default_rng(0)]).inputs
        if reconstructs:
            condition_on(model, tokens.view(1, *logits.shape[2:]))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return EncodingCost(weights, memory.peak, counter.get_total_flops())


def dvae_record(dvae: Path, folder: Path) -> dict[str, str]:
    """Return the entry `dvae` of the meta of a checkpoint in `folder`: the path relative to it, and the digest."""
    return {"path": os.path.relpath(dvae.resolve(), folder.resolve()), "digest": checkpoint.digest(dvae)}
