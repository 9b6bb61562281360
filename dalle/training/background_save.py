"""Saving in a background thread: training goes on while files are written, from copies in the host's memory.

One save is in flight at a time. Each rank has a thread of its own; threads that write together talk over a process
group that training does not use.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import cast

import torch.distributed as dist
from torch import Tensor, nn

from dalle import distributed
from dalle.checkpoint import CheckpointError

log = logging.getLogger(__name__)


def copy_to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor, or the shard of a DTensor, to the CPU's memory. A tensor on the CPU is copied too."""
    return tensor.detach().to("cpu", copy=True)


def copy_model_to_host(model: nn.Module) -> nn.Module:
    """Copy `model` with its parameters and buffers to the CPU's memory."""
    copies: dict[int, Tensor] = {id(buffer): copy_to_host(buffer) for buffer in model.buffers()}
    copies |= {
        id(parameter): nn.Parameter(copy_to_host(parameter), requires_grad=False) for parameter in model.parameters()
    }
    return copy.deepcopy(model, copies)


@contextmanager
def raised_together(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Context that raises on all ranks, or those of `group`, if one of them raised, so that none waits for it forever.

    A rank raises its own error, or CheckpointError if only another rank raised one.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:  # any error: the other ranks wait for this one
        error = raised
    failed = distributed.all_reduce_any(error is not None, group)
    if error is not None:
        raise error
    if failed:
        raise CheckpointError("another rank could not save its part of the checkpoint; its message says why")


class Saver:
    """Runner of the saves of a training run, in a background thread or in the caller.

    group: process group of the background threads, None without several ranks and in the foreground.
    """

    def __init__(self, background: bool):
        """background: write in a thread. All ranks must call it, with the same value."""
        self.background = background
        self.group: dist.ProcessGroup | None = None
        if background:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="save")
            if distributed.is_distributed():
                self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._in_flight: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """True if a save of this rank ended with an error that `wait` will raise."""
        return self._in_flight is not None and self._in_flight.done() and self._in_flight.exception() is not None

    def run(self, write: Callable[[], None]) -> None:
        """Call `write`, in the background with `background`. Call `wait` for the previous save first."""
        if not self.background:
            return write()
        assert self._in_flight is None, "a save is in flight"
        self._in_flight = self._executor.submit(write)

    def wait(self) -> None:
        """Wait until all ranks have finished the save in flight, if there is one. All ranks must call it.

        Raises this rank's error, or CheckpointError if the save failed on another rank only.
        """
        if self._in_flight is None:
            return
        save, self._in_flight = self._in_flight, None
        with raised_together():
            save.result()

    def close(self) -> None:
        """Wait for this rank's save in flight; an error is logged. Ends the thread."""
        if not self.background:
            return
        self._executor.shutdown()
        if self.failed:
            assert self._in_flight is not None
            log.error("the last save failed: %s", self._in_flight.exception())
