"""Export of checkpoints for publication: smaller weights in files of limited size, without the training state."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dalle import checkpoint
from dalle.bundled import checkpoint_folder
from dalle.data import DATA_SETS
from dalle.hub import upload
from dalle.sampling.components import find_components
from dalle.sampling.model_card import read_recipe, write_model_card
from dalle.weights_files import read_weights, write_json, write_weights

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class ExportOptions:
    """Dtype and file size of exported weights. A dVAE stays in float32, since transformers know its exact codes."""

    dtype: torch.dtype = torch.bfloat16  # of other models than the dVAE; they are loaded as float32
    max_shard_bytes: int = 15 * MEGABYTE  # maximum size of a weights file, unless one tensor is larger


DEFAULTS = ExportOptions()


def export_checkpoint(
    folder: str | Path,
    out: Path,
    options: ExportOptions = DEFAULTS,
    *,
    dvae: str | None = None,
    clip: str | None = None,
    metrics: Mapping[str, float] | None = None,
    notes: str = "",
) -> None:
    """Write the models of a checkpoint and a model card to `out`.

    A pipeline is written to the sub-folders dvae, transformer and clip; a dVAE, a CLIP or a decoder to `out` itself.

    folder, dvae, clip: as in `find_components`, or `folder` is that of a dVAE, a CLIP or a decoder.
    metrics, notes: as in `write_model_card`.

    Raises CheckpointError if a model is missing or invalid.
    """
    folder = checkpoint_folder(folder)
    kind = checkpoint.read_json(folder / checkpoint.CONFIG).get("kind") if (folder / checkpoint.CONFIG).exists() else ""
    if kind in ("dvae", "clip", "decoder"):
        export_model(folder, out, options)
        sources, written = {kind: folder}, {kind: out}
    else:
        sources = find_components(folder, dvae, clip)
        written = export_pipeline(folder, out, options, dvae, clip)
    recipes = {kind: read_recipe(sources[kind]) for kind in written}
    write_model_card(out, written, metrics or {}, notes, recipes)


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    options: ExportOptions = DEFAULTS,
    **contents: Any,
) -> str:
    """Export a checkpoint and upload it to the repository user/name of the Hugging Face Hub. Returns its address.

    private, revision: as in `hub.upload`. contents: further arguments of `export_checkpoint`.

    Raises CheckpointError as both do.
    """
    with TemporaryDirectory() as temporary:
        export_checkpoint(folder, Path(temporary), options, **contents)
        return upload(Path(temporary), repository, private, revision)


def export_pipeline(
    folder: Path, out: Path, options: ExportOptions = DEFAULTS, dvae: str | None = None, clip: str | None = None
) -> dict[str, Path]:
    """Write the models of a pipeline to the sub-folders dvae, transformer and clip of `out`. Returns their folders."""
    components = find_components(folder, dvae, clip)
    written: dict[str, Path] = {}
    for kind in ("dvae", "clip", "transformer"):
        if kind in components:
            written[kind] = out / kind
            export_model(components[kind], written[kind], options)
    config = written["transformer"] / checkpoint.CONFIG
    content = checkpoint.read_json(config)
    content["meta"]["dvae"] = {"path": "../dvae", "digest": checkpoint.digest(written["dvae"])}
    write_json(config, content)
    return written


def export_model(source: Path, out: Path, options: ExportOptions = DEFAULTS) -> None:
    """Write one model, with its tokenizer and config.

    Paths of this machine in the record of the training data are replaced by the data set's default.
    """
    out.mkdir(parents=True, exist_ok=True)
    content, tensors = checkpoint.read_json(source / checkpoint.CONFIG), read_weights(source)
    checkpoint.read_config(source, str(content.get("kind")))  # raises CheckpointError for metadata of other types
    if content["kind"] != "dvae":
        tensors = cast(tensors, options.dtype)
    write_weights(out, tensors, options.max_shard_bytes)
    if (source / checkpoint.TOKENIZER).exists():
        shutil.copyfile(source / checkpoint.TOKENIZER, out / checkpoint.TOKENIZER)
    content["meta"] = without_local_paths(content.get("meta") or {})
    write_json(out / checkpoint.CONFIG, content)


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert floating-point tensors to `dtype`."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def without_local_paths(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's meta without absolute paths: those of the data become the data set's defaults."""
    meta = dict(meta)
    data = dict(meta.get("data", {}))
    entry = DATA_SETS.get(str(data.get("name", "")))
    for name, value in data.items():
        if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
            data[name] = getattr(entry.config, name, "") if entry and entry.config else ""
    if data:
        meta["data"] = data
    if "path" in meta.get("init", {}):
        meta["init"] = meta["init"] | {"path": Path(meta["init"]["path"]).name}
    return meta
