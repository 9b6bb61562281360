"""Command lines of tiny runs that start from other checkpoints with init=, and comparisons of their weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from dalle.weights_files import WEIGHTS

COMMON = ["data.image_size=16", "data.train=32", "data.val=8", "device=cpu", "wandb.mode=disabled"]
MODELS = {
    "dvae": "vocabulary=8 width=8 groups=3 decoder_input=8 blocks_per_group=1 gain=0.5",
    "clip": "patch=8 image_width=16 image_depth=1 image_heads=2 text_vocabulary=300 text_positions=40 text_width=16 "
    "text_depth=1 text_heads=2 embedding=16",
    "transformer": "text_positions=40 text_vocabulary=300 width=16 depth=2 heads=2 kernel=3 initial_scale=0.5",
}
# weights stay as they began
FROZEN = ("stage.optimizer.learning_rate.start=0", "stage.optimizer.learning_rate.end=0")


def tiny(stage: str, prefix: str = "stage") -> list[str]:
    """Return the settings of a stage of two updates with 4 images each."""
    settings = {"steps": 2, "batch_size": 4, "workers": 0, "validation_images": 4, "precision": "float32"}
    settings |= {} if stage == "dvae" else {"tokenizer_records": 20}
    return [
        *(f"{prefix}.{name}={value}" for name, value in settings.items()),
        *(f"{prefix}.model.{setting}" for setting in MODELS[stage].split()),
    ]


def of(stage: str, *more: str) -> list[str]:
    """Return the command line that trains a stage."""
    return [*COMMON, f"stage={stage}", *tiny(stage), *more]


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / WEIGHTS)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the tensors that are equal in both."""
    return {
        name
        for name in one.keys() & other.keys()
        if one[name].shape == other[name].shape and one[name].equal(other[name])
    }


def everything(run: str, *more: str) -> list[str]:
    """Return the command line that trains all stages."""
    return [
        *COMMON,
        "stage=all",
        f"run={run}",
        *(setting for stage in MODELS for setting in tiny(stage, f"stage.{stage}")),
        *more,
    ]
