"""A checkpoint is a folder: weights, the config that rebuilds their model, and a state to resume from.

    model.safetensors   the weights that sampling uses
    config.json         {"format": 1, "kind": "dvae", "model": {...}, "meta": {...}}
    tokenizer.json      where the model reads text
    state/00000500/     what training needs to go on after 500 updates: state.safetensors, state.json

Nothing in it is ever unpickled. Files are written beside, flushed and renamed, so what stands under these
names is whole.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dalle.validation import fits, in_words, shortened, validated

FORMAT = 1
WEIGHTS, CONFIG, TOKENIZER, STATE = "model.safetensors", "config.json", "tokenizer.json", "state"


# what `meta` of a config.json may say; other keys are for people to read
META = {
    "caption_dropout": float,
    "guidance": float,
    "temperature": float,
    "dvae": dict,
    "likelihood": dict,
    "data": dict,
    "caption_words": list[str],
}

Model = TypeVar("Model", bound=nn.Module)


class CheckpointError(ValueError):
    """A checkpoint could not be read or written; the message says which, why, and what to do."""


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
    """Write `model` and the dataclass `config` that rebuilds it into `folder`, replacing what stood there.

    `meta` is anything JSON can hold that a reader may want to know. Raises CheckpointError if a file could
    not be written; the previous file is then still in its place.
    """
    folder = Path(folder)
    written = {"format": FORMAT, "kind": kind, "model": dataclasses.asdict(config), "meta": dict(meta or {})}
    with _naming_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as path:
            _write_tensors(path, model.state_dict())
        if tokenizer is not None:
            with replacing(folder / TOKENIZER) as path:
                tokenizer.save(path)
        with replacing(folder / CONFIG) as path:
            _write_json(path, written)


def read_config(folder: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model config, meta) of the `kind` of model in `folder`; CheckpointError if none can be read there."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: there is no such folder")
    path = folder / CONFIG
    if not path.is_file():
        inside = sorted(below.parent.name for below in folder.glob(f"*/{CONFIG}"))
        hint = f"; it holds the checkpoints {', '.join(inside)}: name one of them" if inside else ""
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
        raise CheckpointError(f"{path}: meta={shortened(meta)} must be an object")
    for name, hint in META.items():
        if name in meta and not fits(meta[name], hint):
            raise CheckpointError(f"{path}: meta.{name}={shortened(meta[name])} must be {in_words(hint)}")
    if any(not isinstance(value, str) for value in meta.get("dvae", {}).values()):
        raise CheckpointError(f"{path}: meta.dvae={shortened(meta['dvae'])} must hold texts alone")
    return written["model"], meta


def load_model(folder: str | Path, kind: str, schema: type, build: Callable[[Any], Model]) -> Model:
    """Load the model in `folder`, in eval mode; `build` makes it of its configuration, a dataclass `schema`.

    The configuration is validated by type and range, and against the shapes of the tensors in the file, before
    anything is built, so that a stranger's file allocates no more than it holds. `schema.sizes_in` reads sizes off the
    shapes. Raises CheckpointError with what is wrong.
    """
    written, _ = read_config(folder, kind)
    path = Path(folder) / CONFIG
    try:
        config = validated(schema, written, str(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    weights = Path(folder) / WEIGHTS
    try:
        told = schema.sizes_in(read_shapes(weights))
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{weights} holds no {kind}: its tensor {error} is missing or too flat") from error
    for name, size in told.items():
        if getattr(config, name) not in (size, None):  # None: the usual, which `check_tensors` compares
            raise CheckpointError(f"{path} has {name}={getattr(config, name)}, and the tensors in {WEIGHTS} {size}")
    try:
        model = build(config)
    except (ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    load_weights(folder, model)
    return model.eval()


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, from its header. Raises CheckpointError if that is damaged."""
    with _naming_damage(path), safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def count_children(shapes: Mapping[str, Any], prefix: str) -> int:
    """Count the modules of a list by their tensors: layers.0.norm.weight, layers.1.norm.weight and "layers." give 2."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)})


def load_weights(folder: str | Path, model: nn.Module) -> None:
    """Fill `model`, on whatever device it is, with the weights in `folder`.

    Raises CheckpointError naming the first tensor that is missing, left over or of another shape; the model
    is then as it was.
    """
    path = Path(folder) / WEIGHTS
    tensors = read_tensors(path)
    check_tensors(model.state_dict(), tensors, path)
    model.load_state_dict(tensors)


def check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError, naming the first difference, unless both have the same names and shapes."""
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
    """The first 16 hexadecimal digits of the SHA-256 of weights and model config: which model this is."""
    folder = Path(folder)
    written = read_json(folder / CONFIG)
    known = hashlib.sha256(json.dumps([written["kind"], written["model"]], sort_keys=True).encode())
    try:
        with open(folder / WEIGHTS, "rb") as file:
            while block := file.read(1 << 20):
                known.update(block)
    except OSError as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error.strerror}") from error
    return known.hexdigest()[:16]


def save_state(folder: str | Path, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Keep what training needs to go on after `step` updates; the previous state goes once this one stands.

    `scalars` is anything JSON can hold. Raises CheckpointError if it could not be written; the previous state
    is then still good.
    """
    states = Path(folder) / STATE
    standing, beside = states / f"{step:08d}", states / f".{step:08d}.part"
    with _naming_failures(standing):
        beside.mkdir(parents=True, exist_ok=True)
        try:
            _write_tensors(beside / "state.safetensors", tensors)
            _write_json(beside / "state.json", {"format": FORMAT, "step": step, **scalars})
            for path in (*beside.iterdir(), beside):
                _flush(path)
            if standing.exists():  # the same step again: set aside under a name that load_state knows too
                os.replace(standing, states / f"{step:08d}.old")
            os.replace(beside, standing)
            _flush(states)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    for other in states.iterdir():
        if other != standing:
            shutil.rmtree(other, ignore_errors=True)


def load_state(folder: str | Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """(step, tensors on the CPU, scalars) of the newest state in `folder`, or None where there is none."""
    standing = _newest_state(folder)
    if standing is None:
        return None
    tensors = read_tensors(standing / "state.safetensors")
    scalars = _read_scalars(standing)
    return scalars.pop("step"), tensors, scalars


def read_scalars(folder: str | Path) -> dict[str, Any] | None:
    """`step` and the scalars of the newest state, without its tensors; None where there is none."""
    standing = _newest_state(folder)
    return None if standing is None else _read_scalars(standing)


def _newest_state(folder: str | Path) -> Path | None:
    found = (Path(folder) / STATE).glob("[0-9]*")
    return max(found, key=lambda path: (int(path.stem), path.suffix != ".old"), default=None)


def _read_scalars(standing: Path) -> dict[str, Any]:
    scalars = read_json(standing / "state.json")
    if scalars.pop("format", None) != FORMAT or not isinstance(scalars.get("step"), int):
        raise CheckpointError(f"{standing} was written by another version of this code: use another run name")
    return scalars


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises `CheckpointError` if it is missing or damaged."""
    with _naming_damage(path):
        return load_file(path)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # tied weights share memory, which the file format does not allow
    seen, separate = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    save_file(separate, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises `CheckpointError` if it cannot be read or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object but holds a {type(content).__name__}")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` if the block ends well and vanishes otherwise."""
    # the package for this, atomicwrites, is no longer kept
    beside = path.with_name(f".{path.name}.part")
    try:
        yield beside
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until `path` is on the disk: its name could otherwise outlive a power cut, and its content not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _naming_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not save {path}: {error}. What was saved before is still good: make room, and run again"
        ) from error
