"""Export of a pipeline for publication: smaller weights in files of limited size, without the training state."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle import checkpoint
from dalle.data import DATA_SETS
from dalle.sampling.components import find_components
from dalle.weights_files import read_weights, write_json, write_weights

MEGABYTE = 1_000_000


def export_pipeline(
    folder: Path,
    out: Path,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = 15 * MEGABYTE,
    dvae: str | None = None,
    clip: str | None = None,
) -> dict[str, Path]:
    """Write the models of a pipeline to the sub-folders dvae, transformer and clip of `out`. Returns their folders.

    The dVAE stays in float32, since the transformer knows its exact codes. Paths of this machine in the record of the
    training data are replaced by the data set's default.

    folder, dvae, clip: as in `find_components`.
    dtype: of the other weights; they are loaded as float32.
    max_shard_bytes: maximum size of a weights file.

    Raises CheckpointError if a model is missing or invalid.
    """
    components = find_components(folder, dvae, clip)
    written = {}
    for kind in ("dvae", "clip", "transformer"):  # the transformer's meta has the digest of the dVAE
        if kind not in components:
            continue
        source, written[kind] = components[kind], out / kind
        written[kind].mkdir(parents=True)
        tensors = read_weights(source)
        write_weights(written[kind], tensors if kind == "dvae" else cast(tensors, dtype), max_shard_bytes)
        if (source / checkpoint.TOKENIZER).exists():
            shutil.copyfile(source / checkpoint.TOKENIZER, written[kind] / checkpoint.TOKENIZER)
        content = checkpoint.read_json(source / checkpoint.CONFIG)
        content["meta"] = without_local_paths(content.get("meta") or {})
        if kind == "transformer":
            content["meta"]["dvae"] = {"path": "../dvae", "digest": checkpoint.digest(written["dvae"])}
        write_json(written[kind] / checkpoint.CONFIG, content)
    return written


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert floating-point tensors to `dtype`."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def without_local_paths(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's meta without absolute paths: that of the data becomes the data set's default."""
    meta = dict(meta)
    data = dict(meta.get("data", {}))
    if Path(str(data.get("path", ""))).is_absolute():
        entry = DATA_SETS.get(data.get("name", ""))
        data["path"] = getattr(entry.config, "path", "") if entry and entry.config else ""
    if data:
        meta["data"] = data
    if "init" in meta:
        meta["init"] = meta["init"] | {"path": Path(meta["init"]["path"]).name}
    return meta
