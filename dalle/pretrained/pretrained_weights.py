"""Pretrained weights: the common result of all importers, with the origin of the files."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.clip_tokenizer import CLIPTokenizer


@dataclass(frozen=True)
class PretrainedWeights:
    """State dict and config of a published model, for `from_pretrained_weights` of the model class of `kind`."""

    kind: str  # kind of checkpoint: "dvae" | "clip"
    sizes: Mapping[str, Any]  # fields of the model's config
    tensors: Mapping[str, Tensor]  # complete state dict of the model
    meta: Mapping[str, Any]  # origin, for the checkpoint's meta
    tokenizer: CLIPTokenizer | None = None  # for models that read text


def origin(name: str, **files: str | Path) -> dict[str, Any]:
    """Return the `meta` of a model imported under `name`: file name and SHA-256 of each file, by its role."""
    checksums = {role: {"file": Path(path).name, "sha256": _sha256(path)} for role, path in files.items()}
    return {"imported": name, "files": checksums}


def _sha256(path: str | Path) -> str:
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()
