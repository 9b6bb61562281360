"""Weights of a model as safetensors, in one file or in several with an index, as Hugging Face libraries name them.

model.safetensors                     all tensors; read if it exists
model.safetensors.index.json          else {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}
model-00001-of-00002.safetensors ...  the files that the index names
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from dalle.atomic_files import atomic_write

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint could not be read or written; the message names it, the reason and a remedy."""


def has_weights(folder: Path) -> bool:
    """Return True if `folder` has a weights file or an index of several."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def weights_path(folder: str | Path) -> Path:
    """Return the path that messages name: the weights file, or the index if there are several files."""
    single, index = Path(folder) / WEIGHTS, Path(folder) / INDEX
    return index if index.exists() and not single.exists() else single


def weights_files(folder: str | Path) -> list[Path]:
    """Return the files with the weights in `folder`, in order.

    Raises CheckpointError for an invalid index, one that names files outside of `folder`, or a missing file.
    """
    path = weights_path(folder)
    if path.name == WEIGHTS:
        return [path]
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map, which names the file of each tensor")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: {name!r} is not the name of a safetensors file beside it")
    files = [Path(folder) / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, which {path.name} names")
    return files


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Read the weights in `folder` by name. Raises CheckpointError if a file is missing, damaged or in conflict."""
    tensors: dict[str, Tensor] = {}
    for file in weights_files(folder):
        _merge(tensors, read_tensors(file), file)
    return tensors


def weights_as_one_file(folder: str | Path) -> bytes:
    """Return the bytes of one file with the weights in `folder`, as `write_weights` writes it."""
    return save(read_weights(folder))


def read_weights_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the weights in `folder` from the headers of its files. Raises CheckpointError as above."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weights_files(folder):
        with _read_errors(path), safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _merge(shapes, found, path)
    return shapes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name. Raises CheckpointError if it is missing or damaged."""
    with _read_errors(path):
        return load_file(path)


def write_weights(folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int | None = None) -> None:
    """Write weights to `folder`: to one file, or to several of at most `max_shard_bytes` and their index.

    A tensor larger than `max_shard_bytes` gets a file of its own. Raises OSError or SafetensorError if a file cannot be
    written.
    """
    shards = [dict(tensors)] if max_shard_bytes is None else split_into_shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        with atomic_write(folder / WEIGHTS) as path:
            write_tensors(path, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        with atomic_write(folder / name) as path:
            write_tensors(path, shard)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": weight_map}
    write_json(folder / INDEX, index)
    (folder / WEIGHTS).unlink(missing_ok=True)  # it would be read instead


def split_into_shards(tensors: Mapping[str, Tensor], max_shard_bytes: int) -> list[dict[str, Tensor]]:
    """Split tensors, in order, into groups of at most `max_shard_bytes`, file headers included.

    A larger tensor is a group of its own, as in the shards of Hugging Face libraries.
    """
    groups: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.nbytes + 200 + len(name)  # name, dtype, shape and offsets in the header
        if groups[-1] and used + size > max_shard_bytes:
            groups.append({})
            used = 0
        groups[-1][name] = tensor
        used += size
    return groups


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file. Tied weights are written once for each name."""
    # tied weights share memory, which the file format does not allow
    seen, separate = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    path.touch()
    permissions = path.stat().st_mode  # those of other new files; safetensors 0.8 would keep the file to its owner
    save_file(separate, path)
    path.chmod(permissions)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises `CheckpointError` if it cannot be read or is not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object but holds a {type(content).__name__}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object to a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _merge(into: dict[str, Any], found: Mapping[str, Any], path: Path) -> None:
    if twice := into.keys() & found.keys():
        raise CheckpointError(f"{path} holds the tensor {min(twice)}, which another file holds too")
    into.update(found)


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
