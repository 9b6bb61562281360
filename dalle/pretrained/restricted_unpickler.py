"""Safe reading of tensors from files written by `torch.save`, without executing code in them.

Unpickling can call any function that the file names. Here only two kinds of names are accepted: a few for plain values,
and the classes that the caller expects. Objects of those classes become an `OpaqueObject` with their attributes; the
classes are never imported. Files with any other name are rejected. Tensors are read as descriptors, which are checked
before the data is used. Both formats are supported: the zip archive, and the legacy format from before torch 1.6.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from dalle.checkpoint import CheckpointError

ZIP_MAGIC, PICKLE_MAGIC = b"PK\x03\x04", b"\x80"  # first bytes of a zip archive, and of a pickle
LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # first pickle of the older format


class TorchFile(NamedTuple):
    """Tensors and numbers of a module or state dict saved by `torch.save`."""

    tensors: dict[str, Tensor]  # on the CPU, by their state-dict names
    numbers: dict[str, float]  # other numeric attributes, such as "blocks.group_1.block_1.post_gain"


class OpaqueObject:
    """Stand-in for an object whose class is not imported: holds its attributes by name."""

    attributes: dict[str, Any]

    def __new__(cls, *_: Any) -> "OpaqueObject":
        instance = super().__new__(cls)
        instance.attributes = {}
        return instance

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state)


class PlainOrderedDict(dict):
    """Replacement of OrderedDict that ignores attributes, which could otherwise hide its methods."""

    def __setstate__(self, state: Any) -> None:
        pass


class StorageDescriptor(NamedTuple):
    """Descriptor of a tensor storage in the file: its key, and the dtype and number of its elements."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Size of the storage in bytes."""
        return self.numel * self.dtype.itemsize


class TensorDescriptor(NamedTuple):
    """Descriptor of a tensor: a strided view of a storage, with offset and strides in elements."""

    storage: StorageDescriptor
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class RejectedFileError(Exception):
    """Raised for a file that is rejected. The message follows the path of the file: "<path> is empty"."""


def read_torch_file(path: str | Path, is_allowed_class: Callable[[str], bool]) -> TorchFile:
    """Read the tensors and numbers of a module or state dict in a file of `torch.save`.

    is_allowed_class: returns True for the full name of an allowed class, such as
        "torch.nn.modules.container.Sequential".

    Code in the file is not executed. Raises CheckpointError if the file is missing, damaged, not a file of torch.save,
    or contains any other name.
    """
    try:
        with open(path, "rb") as file:
            content, storage_data = _read(file, is_allowed_class)
        leaves = dict(_flatten(content))
        descriptors = {name: leaf for name, leaf in leaves.items() if type(leaf) is TensorDescriptor}
        tensors = {
            name: _build_tensor(descriptor, storage_data[descriptor.storage.key])
            for name, descriptor in descriptors.items()
        }
        return TorchFile(tensors, {name: leaf for name, leaf in leaves.items() if type(leaf) in (int, float)})
    except RejectedFileError as error:
        raise CheckpointError(f"{path} {error}") from None
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a truncated or modified pickle may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is truncated or damaged ({reason}): download it again") from error


def _read(file: BinaryIO, is_allowed_class: Callable[[str], bool]) -> tuple[Any, dict[str, Tensor]]:
    """Read a file of `torch.save`: the object, with tensors as descriptors, and the data of its storages by key."""
    magic = file.read(len(ZIP_MAGIC))
    file.seek(0)
    if magic == ZIP_MAGIC:
        return _read_zip_format(file, is_allowed_class)
    if magic.startswith(PICKLE_MAGIC):
        return _read_legacy_format(file, is_allowed_class)
    raise RejectedFileError(f"was not written by torch.save: it {f'begins with {magic!r}' if magic else 'is empty'}")


def _read_zip_format(file: BinaryIO, is_allowed_class: Callable[[str], bool]) -> tuple[Any, dict[str, Tensor]]:
    """Read a zip archive: <root>/data.pkl describes the object, <root>/data/<key> is the data of a storage."""
    with zipfile.ZipFile(file) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise RejectedFileError("is a zip archive, but was not written by torch.save: it has no data.pkl")
        with archive.open(f"{roots[0]}data.pkl") as file_pkl:
            unpickler = RestrictedUnpickler(file_pkl, is_allowed_class)
            content = unpickler.load()
        storages = unpickler.storages.values()
        return content, {
            storage.key: _storage_data(storage, archive.read(f"{roots[0]}data/{storage.key}")) for storage in storages
        }


def _read_legacy_format(file: BinaryIO, is_allowed_class: Callable[[str], bool]) -> tuple[Any, dict[str, Tensor]]:
    """Read a file in torch.save's older format, and return the unpickled object and the storages' data by key.

    The file has three header pickles, the object, the keys of its storages, and the data of each storage.
    `is_allowed_class` decides by full name which classes the object may contain.
    """
    if RestrictedUnpickler(file, is_allowed_class).load() != LEGACY_MAGIC_NUMBER:
        raise RejectedFileError("is a pickle, but was not written by torch.save")
    for _ in ("version of the container", "sizes of integers"):
        RestrictedUnpickler(file, is_allowed_class).load()
    unpickler = RestrictedUnpickler(file, is_allowed_class)
    content = unpickler.load()
    storage_data = {}
    for key in RestrictedUnpickler(file, is_allowed_class).load():
        storage = unpickler.storages[key]
        length = int.from_bytes(file.read(8), "little")
        if length != storage.numel:
            raise EOFError(f"storage {key} has {length:,} numbers, but its descriptor says {storage.numel:,}")
        storage_data[key] = _storage_data(storage, file.read(storage.nbytes))
    return content, storage_data


def _storage_data(storage: StorageDescriptor, raw: bytes) -> Tensor:
    if len(raw) != storage.nbytes:
        raise EOFError(f"storage {storage.key} has {len(raw):,} of {storage.nbytes:,} bytes")
    return torch.frombuffer(bytearray(raw), dtype=storage.dtype)


def _build_tensor(descriptor: TensorDescriptor, data: Tensor) -> Tensor:
    """Create the tensor from its descriptor and its storage's data.

    Raises IndexError if it exceeds the storage, or has more numbers, as an expanded tensor with strides of 0: the model
    that is built from its shape could exceed the memory.
    """
    numel = math.prod(descriptor.shape)
    extents = zip(descriptor.shape, descriptor.strides, strict=True)
    last_index = descriptor.offset + sum((size - 1) * stride for size, stride in extents)
    if min((descriptor.offset, *descriptor.shape, *descriptor.strides)) < 0 or max(last_index + 1, numel) > len(data):
        raise IndexError(f"a tensor of {descriptor.shape} exceeds its storage of {len(data):,} numbers")
    return data.as_strided(descriptor.shape, descriptor.strides, descriptor.offset)


def _flatten(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over (state-dict name, value) for every value in nested modules and mappings."""
    if isinstance(node, OpaqueObject):
        for attribute, value in node.attributes.items():
            is_registry = attribute in ("_parameters", "_buffers", "_modules")  # of nn.Module; not part of names
            yield from _flatten(value, name if is_registry else _join(name, attribute))
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _flatten(value, _join(name, key))
    else:
        yield name, node


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else str(key)


# torch.load with weights_only=True reads neither whole modules nor TorchScript
class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler of one pickle that accepts only the names in SAFE_GLOBALS and the allowed classes."""

    def __init__(self, file: Any, is_allowed_class: Callable[[str], bool]):
        super().__init__(file)
        self.is_allowed_class = is_allowed_class
        self.storages: dict[str, StorageDescriptor] = {}

    def find_class(self, module: str, name: str) -> Any:
        qualified_name = f"{module}.{name}"
        if qualified_name in SAFE_GLOBALS:
            return SAFE_GLOBALS[qualified_name]
        if self.is_allowed_class(qualified_name):
            return OpaqueObject
        raise RejectedFileError(
            f"was rejected before any of its code was run: it refers to {qualified_name}, "
            "which is not allowed in such a file"
        )

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(length), *_):
                return self.storages.setdefault(key, StorageDescriptor(key, dtype, length))
            case ("module", type() as kind, *_):  # the older format stores classes with their source
                return kind
        raise TypeError(f"not a tensor storage: {pid!r:.80}")


def _rebuild_tensor(
    storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> TensorDescriptor:
    if not isinstance(storage, StorageDescriptor):
        raise TypeError("a tensor without a storage")
    return TensorDescriptor(storage, offset, shape, strides)


def _first_argument(data: Any, *_: Any) -> Any:
    return data


# allowed names besides the allowed classes, and their values
SAFE_GLOBALS: dict[str, Any] = {
    "builtins.set": set,
    "__builtin__.set": set,  # name in Python 2, and in pickles of protocol 2
    "collections.OrderedDict": PlainOrderedDict,
    "torch.device": OpaqueObject,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    # TorchScript stores lists with the type of their elements
    **{f"torch.jit._pickle.build_{kind}list": _first_argument for kind in ("bool", "double", "int", "tensor")},
}
