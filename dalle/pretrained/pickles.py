"""Safe reading of tensors from files written by `torch.save`, without executing code in them.

Unpickling can call any function that the file names. Here only two kinds of names are accepted: a few for plain values,
and the classes that the caller expects. Objects of those classes become a `Record` of their attributes; the classes are
never imported. Files with any other name are rejected. Tensors are read as descriptions, which are checked before the
data is used. Both formats are supported: the zip archive, and the sequence of pickles from before torch 1.6.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from dalle.checkpoint import CheckpointError

ARCHIVE, PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of a zip archive, and of a pickle
MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the older format


class Saved(NamedTuple):
    """Content of a saved module or state dict."""

    tensors: dict[str, Tensor]  # on the CPU, by their state-dict names
    numbers: dict[str, float]  # other numeric attributes, such as "blocks.group_1.block_1.post_gain"


class Record:
    """Attributes of an object; stands for instances of classes that are not imported."""

    attributes: dict[str, Any]

    def __new__(cls, *_: Any) -> "Record":
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state)


class PlainDict(dict):
    """Replacement of OrderedDict that ignores attributes, which could otherwise hide its methods."""

    def __setstate__(self, state: Any) -> None:
        pass


class Storage(NamedTuple):
    """Description of a tensor storage in the file."""

    key: str
    dtype: torch.dtype
    length: int

    @property
    def bytes(self) -> int:
        return self.length * self.dtype.itemsize


class View(NamedTuple):
    """Description of a tensor: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Refused(Exception):
    """A file is rejected; the message completes a sentence that starts with the file's name."""


def read_saved(path: str | Path, is_expected: Callable[[str], bool]) -> Saved:
    """Read the tensors and numbers of a module or state dict in a file of `torch.save`.

    `is_expected` returns True for the full names of accepted classes, such as "torch.nn.modules.container.Sequential".
    Code in the file is not executed. Raises CheckpointError if the file is missing, damaged, not a file of torch.save,
    or contains any other name.
    """
    try:
        with open(path, "rb") as file:
            tree, rows = _read(file, is_expected)
        leaves = dict(_flatten(tree))
        tensors = {name: _fill(leaf, rows[leaf.storage.key]) for name, leaf in leaves.items() if type(leaf) is View}
        return Saved(tensors, {name: leaf for name, leaf in leaves.items() if type(leaf) in (int, float)})
    except Refused as refusal:
        raise CheckpointError(f"{path} {refusal}") from None
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a truncated or modified pickle may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is truncated or damaged ({reason}): download it again") from error


def _read(file: BinaryIO, is_expected: Callable[[str], bool]) -> tuple[Any, dict[str, Tensor]]:
    """Read the saved object, with tensors as `View`s, and the data of their storages, by key."""
    start = file.read(len(ARCHIVE))
    file.seek(0)
    if start == ARCHIVE:
        return _read_archive(file, is_expected)
    if start.startswith(PICKLE):
        return _read_row_of_pickles(file, is_expected)
    raise Refused(f"is no file of torch.save: it {f'begins with {start!r}' if start else 'is empty'}")


def _read_archive(file: BinaryIO, is_expected: Callable[[str], bool]) -> tuple[Any, dict[str, Tensor]]:
    """Read a zip archive: <root>/data.pkl describes the object, <root>/data/<key> is the data of a storage."""
    with zipfile.ZipFile(file) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Refused("is a zip archive, but not one of torch.save: it has no data.pkl")
        with archive.open(f"{roots[0]}data.pkl") as described:
            reader = Reader(described, is_expected)
            tree = reader.load()
        storages = reader.storages.values()
        return tree, {each.key: _row(each, archive.read(f"{roots[0]}data/{each.key}")) for each in storages}


def _read_row_of_pickles(file: BinaryIO, is_expected: Callable[[str], bool]) -> tuple[Any, dict[str, Tensor]]:
    """Read the older format: three header pickles, the object, the storages' keys, then the data of the storages."""
    if Reader(file, is_expected).load() != MAGIC:
        raise Refused("is a pickle, but not one of torch.save")
    for _ in ("version of the container", "sizes of integers"):
        Reader(file, is_expected).load()
    reader = Reader(file, is_expected)
    tree = reader.load()
    rows = {}
    for key in Reader(file, is_expected).load():
        storage = reader.storages[key]
        length = int.from_bytes(file.read(8), "little")
        if length != storage.length:
            raise EOFError(f"storage {key} has {length:,} numbers where {storage.length:,} were announced")
        rows[key] = _row(storage, file.read(storage.bytes))
    return tree, rows


def _row(storage: Storage, content: bytes) -> Tensor:
    if len(content) != storage.bytes:
        raise EOFError(f"storage {storage.key} has {len(content):,} of {storage.bytes:,} bytes")
    return torch.frombuffer(bytearray(content), dtype=storage.dtype)


def _fill(view: View, row: Tensor) -> Tensor:
    """Create the tensor of `view` on its storage. Raises IndexError if it exceeds the storage."""
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if min((view.offset, *view.shape, *view.strides)) < 0 or last >= len(row):
        raise IndexError(f"a tensor of {view.shape} reaches beyond its storage of {len(row):,} numbers")
    return row.as_strided(view.shape, view.strides, view.offset)


def _flatten(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the leaves of modules and mappings, with their state-dict names."""
    if isinstance(node, Record):
        for attribute, value in node.attributes.items():
            own = attribute in ("_parameters", "_buffers", "_modules")  # nn.Module's, not part of names
            yield from _flatten(value, name if own else _join(name, attribute))
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _flatten(value, _join(name, key))
    else:
        yield name, node


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else str(key)


# torch.load with weights_only=True reads neither whole modules nor TorchScript
class Reader(pickle.Unpickler):
    """Unpickler for one pickle, restricted to the names in PLAIN and the expected classes."""

    def __init__(self, file: Any, is_expected: Callable[[str], bool]):
        super().__init__(file)
        self.is_expected = is_expected
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in PLAIN:
            return PLAIN[full]
        if self.is_expected(full):
            return Record
        raise Refused(f"is refused, and nothing in it was run: it asks for {full}, which has no place in such a file")

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(length), *_):
                return self.storages.setdefault(key, Storage(key, dtype, length))
            case ("module", type() as kind, *_):  # the older format stores classes with their source
                return kind
        raise TypeError(f"no storage: {pid!r:.80}")


def _view(storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> View:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    return View(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> Any:
    return data


# accepted names, besides the expected classes, and their values
PLAIN: dict[str, Any] = {
    "builtins.set": set,
    "__builtin__.set": set,  # name in Python 2, and in pickles of protocol 2
    "collections.OrderedDict": PlainDict,
    "torch.device": Record,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _view,
    # TorchScript stores lists with the type of their elements
    **{f"torch.jit._pickle.build_{kind}list": _parameter for kind in ("bool", "double", "int", "tensor")},
}
