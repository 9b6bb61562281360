"""Checkpoint folders: weights and the model's config.

    model.safetensors   weights for sampling; or several files, see `dalle.weights_files`
    config.json         {"format": 1, "kind": "dvae", "model": {...}, "meta": {...}}
    tokenizer.json      for models that read text

A run's folder also has the training state (`dalle.training.state_files`). No pickles are read here. Files are written
under a temporary name, flushed and renamed, so files under these names are always complete.
"""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError
from torch import Tensor, nn

from dalle.atomic_files import atomic_write
from dalle.config_validation import config_from_json, describe_type, has_type, truncated_repr
from dalle.weights_files import (
    CheckpointError,
    read_json,
    read_weights,
    read_weights_shapes,
    weights_as_one_file,
    weights_files,
    weights_path,
    write_json,
    write_weights,
)

FORMAT = 1
CONFIG, TOKENIZER = "config.json", "tokenizer.json"

# types of the keys in `meta` of a config.json that the code reads; other keys are informative
META = {
    "caption_dropout": float,
    "guidance": float,
    "temperature": float,
    "rerank": str,
    "dvae": dict,
    "init": dict,
    "likelihood": dict,
    "data": dict,
    "caption_words": list[str],
    "attributions": list[dict],
}

Model = TypeVar("Model", bound=nn.Module)


class Tokenizer(Protocol):
    def save(self, path: Path) -> None: ...


def save_model(
    folder: str | Path,
    kind: str,
    model: nn.Module,
    config: Any,
    meta: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write `model` and its config, a dataclass, to `folder`, replacing previous files.

    `meta` is further information, JSON-serialisable. Raises CheckpointError if a file cannot be written; the previous
    file is then kept.
    """
    folder = Path(folder)
    written = {"format": FORMAT, "kind": kind, "model": dataclasses.asdict(config), "meta": dict(meta or {})}
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder, model.state_dict())
        if tokenizer is not None:
            with atomic_write(folder / TOKENIZER) as path:
                tokenizer.save(path)
        write_json(folder / CONFIG, written)


def read_config(folder: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (model config, meta) of a model of `kind` in `folder`. Raises CheckpointError if there is no valid one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: there is no such folder")
    path = folder / CONFIG
    if not path.is_file():
        subfolders = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        hint = f"; it holds the checkpoints {', '.join(subfolders)}: choose one of them" if subfolders else ""
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {CONFIG}{hint}")
    written = read_json(path)
    if "format" not in written or "kind" not in written or not isinstance(written.get("model"), dict):
        raise CheckpointError(f"{path} does not describe a checkpoint: it lacks format, kind or model")
    if written["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {written['format']} but this version reads format {FORMAT}: update the code"
        )
    if written["kind"] != kind:
        raise CheckpointError(f"{folder} holds a {written['kind']}, not a {kind}")
    meta = written.get("meta") or {}
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: meta={truncated_repr(meta)} must be an object")
    for name, hint in META.items():
        if name in meta and not has_type(meta[name], hint):
            raise CheckpointError(f"{path}: meta.{name}={truncated_repr(meta[name])} must be {describe_type(hint)}")
    for name in ("dvae", "init"):
        if any(not isinstance(value, str) for value in meta.get(name, {}).values()):
            raise CheckpointError(f"{path}: meta.{name}={truncated_repr(meta[name])} must contain only strings")
    return written["model"], meta


def load_config(folder: str | Path, kind: str, schema: type) -> Any:
    """Load the config, a dataclass `schema`, of the model in `folder`, validated by type and range.

    Raises CheckpointError for an invalid one.
    """
    written, _ = read_config(folder, kind)
    try:
        return config_from_json(schema, written, str(Path(folder) / CONFIG))
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def load_model(folder: str | Path, kind: str, schema: type, build: Callable[[Any], Model]) -> Model:
    """Load the model in `folder` in eval mode; `build` creates it from its config, a dataclass `schema`.

    Before the model is built, the config is validated by type and range, and against the tensor shapes in the file, so
    that the weights of an untrusted file cannot allocate more memory than its size. Attention masks depend on sizes
    alone, and are limited by `MAX_POSITIONS` of the transformer. `schema.infer_sizes` infers sizes from the shapes.
    Raises CheckpointError for an invalid checkpoint.
    """
    config = load_config(folder, kind, schema)
    path = Path(folder) / CONFIG
    weights = weights_path(folder)
    try:
        sizes = schema.infer_sizes(read_weights_shapes(folder))
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{weights} holds no {kind}: tensor {error} is missing or lacks dimensions") from error
    except ValueError as error:  # a tensor of other dimensions, or of size 0
        raise CheckpointError(f"{weights} holds no {kind}: a tensor has the wrong shape ({error})") from error
    for name, size in sizes.items():
        if getattr(config, name) not in (size, None):  # None: a default size, checked by `check_tensors`
            raise CheckpointError(f"{path} has {name}={getattr(config, name)}, but {weights.name} has {name}={size}")
    try:
        model = build(config)
    except (ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    load_weights(folder, model)
    return model.eval()


def count_children(shapes: Mapping[str, Any], prefix: str) -> int:
    """Count the modules of a list by their tensors: layers.0.norm.weight, layers.1.norm.weight and "layers." give 2."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)})


def load_weights(folder: str | Path, model: nn.Module) -> None:
    """Load the weights in `folder` into `model`, on its device.

    Raises CheckpointError with the name of the first tensor that is missing, unexpected or of another shape; the model
    is then unchanged.
    """
    tensors = read_weights(folder)
    check_tensors(model.state_dict(), tensors, weights_path(folder))
    model.load_state_dict(tensors)


def check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError with the first difference unless both have the same tensor names and shapes."""
    for name, tensor in wanted.items():
        if name not in found:
            raise CheckpointError(f"{path} lacks the tensor {name}, which the model has")
        if found[name].shape != tensor.shape:
            sizes = f"{tuple(found[name].shape)} in the file, {tuple(tensor.shape)} in the model"
            raise CheckpointError(f"{path} does not fit the model: {name} is {sizes}")
    for name in found:
        if name not in wanted:
            raise CheckpointError(f"{path} holds the tensor {name}, which the model does not have")


def digest(folder: str | Path) -> str:
    """Compute the model's digest: the first 16 hexadecimal digits of the SHA-256 of weights and model config.

    That of a dVAE does not depend on the number of its files: models that read its tokens record it.
    Raises CheckpointError if a file is missing or invalid.
    """
    folder = Path(folder)
    written = read_json(folder / CONFIG)
    if "kind" not in written or "model" not in written:
        raise CheckpointError(f"{folder / CONFIG} does not describe a checkpoint: it lacks kind or model")
    sha256 = hashlib.sha256(json.dumps([written["kind"], written["model"]], sort_keys=True).encode())
    files = weights_files(folder)
    if written["kind"] == "dvae" and len(files) > 1:
        sha256.update(weights_as_one_file(folder))
        files = []
    for path in files:
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    sha256.update(block)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return sha256.hexdigest()[:16]


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Context that raises CheckpointError for an error of writing `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise save_error(path, error) from error


def save_error(path: Path, reason: object, unchanged: str = "Files not written yet are") -> CheckpointError:
    """Return the error of a checkpoint that could not be written, with advice if the disk is full.

    unchanged: beginning of the sentence that ends in "unchanged".
    """
    full = any(os.strerror(code) in str(reason) for code in (errno.ENOSPC, errno.EDQUOT))
    advice = ": free some disk space and run again" if full else ""
    return CheckpointError(f"could not save {path}: {reason}. {unchanged} unchanged{advice}")
