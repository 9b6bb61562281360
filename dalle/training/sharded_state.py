"""Training state whose tensors differ between ranks, by `torch.distributed.checkpoint`: each rank writes its own.

    state/00000500/     state.json, .metadata and a file __<rank>_0.distcp of each rank

A state can be read by any number of ranks, sharded or not. The folder has to be on a file system that all ranks share.
`.metadata` is a pickle, which is read with the classes of `METADATA_CLASSES` only, so that it cannot run any code;
tensors are read with `weights_only`.
"""

import pickle
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from dalle import checkpoint, distributed
from dalle.checkpoint import CheckpointError
from dalle.training import state_files
from dalle.training.background_save import raised_together

METADATA = ".metadata"
METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", "device", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
}


def save_state(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
    group: ProcessGroup | None = None,
) -> None:
    """Write the training state after `step` updates, then delete previous states. All ranks must call it.

    tensors: DTensors, of which each rank writes its shard, and tensors that are equal on all ranks that pass them.
    Ranks may pass different names. `scalars` as in `state_files.save_state`. group: process group of all ranks, such as
    one for a thread; None: the default group.

    Raises CheckpointError on all ranks if the state cannot be written; the previous state is then kept.
    """
    path = state_files.temporary_state(folder, step)
    with ExitStack() as stack:
        with raised_together(group):
            if distributed.is_main_process():
                stack.enter_context(state_files.writing_state(folder, step, scalars))
        try:
            save(dict(tensors), storage_writer=StateWriter(path), process_group=group)
        except CheckpointException as error:
            reason = "; ".join(str(failure[0]) for failure in error.failures.values())
            raise checkpoint.save_error(path, reason, "The previous state is") from error
        with raised_together(group):
            stack.close()  # the first rank gives the state its name


def tensor_names(state: Path) -> list[str]:
    """List the names of the tensors of the state in the folder `state`. Raises CheckpointError if it is damaged."""
    with _read_errors(state):
        return list(_saved_tensors(StateReader(state)))


def read_tensors(
    state: Path, allocate: Callable[[str, torch.Size, torch.dtype], Tensor], names: Collection[str]
) -> dict[str, Tensor]:
    """Read the tensors `names` of the state in the folder `state`. All ranks must call it; their names may differ.

    allocate: allocates the tensor of a name, shape and dtype to read into; of a DTensor, each rank reads its shard.
    Raises CheckpointError if a file is missing or damaged.
    """
    reader = StateReader(state)
    with _read_errors(state):
        saved = _saved_tensors(reader)
        tensors = {name: allocate(name, saved[name].size, saved[name].properties.dtype) for name in names}
        with warnings.catch_warnings():  # of one process, about just that
            warnings.simplefilter("ignore", UserWarning)
            load(tensors, storage_reader=reader, no_dist=not distributed.is_distributed())
    return tensors


def _saved_tensors(reader: "StateReader") -> dict[str, TensorStorageMetadata]:
    """Return the metadata of all tensors by name."""
    saved = reader.read_metadata().state_dict_metadata
    return {name: metadata for name, metadata in saved.items() if isinstance(metadata, TensorStorageMetadata)}


@contextmanager
def _read_errors(state: Path) -> Iterator[None]:
    """Context that raises CheckpointError for the errors of reading a damaged state."""
    try:
        yield
    except (CheckpointException, pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{state} is truncated or damaged: {error}") from error


class StateWriter(FileSystemWriter):
    """Writer of a state whose metadata does not name its temporary folder."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self.save_id)


class StateReader(FileSystemReader):
    """Reader of a state that runs no code of its files. Raises UnpicklingError for metadata with unknown classes."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with open(Path(self.path) / METADATA, "rb") as file:
            metadata = MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{METADATA} holds a {type(metadata).__name__}")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class MetadataUnpickler(pickle.Unpickler):
    """Unpickler that only imports the classes of `METADATA_CLASSES`."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in METADATA_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}")
        return super().find_class(module, name)
