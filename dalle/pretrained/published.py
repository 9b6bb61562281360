"""What is read of somebody else's model: all that one of ours is built from, and where it came from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.clip_tokenizer import CLIPTokenizer


@dataclass(frozen=True)
class Published:
    """A published model in our names. `from_published` of the model that `kind` names builds it."""

    kind: str  # as in a checkpoint: "dvae" | "clip"
    sizes: Mapping[str, Any]  # fields of the model's config
    tensors: Mapping[str, Tensor]  # all of the model's state dict
    meta: Mapping[str, Any]  # what the checkpoint will say about its origin
    tokenizer: CLIPTokenizer | None = None  # where the model reads text


def origin(name: str, **files: str | Path) -> dict[str, Any]:
    """The `meta` of a model that was imported under `name`: the files it was made from, by what they hold."""
    described = {part: {"file": Path(path).name, "sha256": _sha256(path)} for part, path in files.items()}
    return {"imported": name, "files": described}


def _sha256(path: str | Path) -> str:
    known = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            known.update(block)
    return known.hexdigest()
