"""Peak memory of operations on fake or meta tensors, or on real ones, counted without a profiler."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Context that counts the bytes of tensors that operations return, until these are freed. They may be fake.

    Memory that an operation uses by itself and frees is not counted.
    """

    def __init__(self, existing: Iterable[Tensor] = ()):
        """existing: tensors that are not counted."""
        super().__init__()
        self.current = self.peak = 0
        self._storages = {tensor.untyped_storage()._cdata: 0 for tensor in existing}  # bytes by storage

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage that is not counted yet."""
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = storage.nbytes()
            self.current += storage.nbytes()
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, storage: int) -> None:
        self.current -= self._storages.pop(storage)
